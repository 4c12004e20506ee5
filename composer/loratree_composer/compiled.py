"""What torch.compile made of a model, when its layers' forwards change."""

import sys

import torch


def drop_compiled() -> None:
    """Drops what torch.compile holds in memory for this process: each compiled function is traced again when called.

    Dynamo notices a layer's other forward and compiles anew, but a function at most eight times (recompile_limit):
    of twelve stacks in turn the last four ran uncompiled, with a warning. Any function may have inlined a model's
    layers and none of them is known by the model, so there is nothing narrower to drop. Inductor's cache on disk stays
    and makes the next compilation of the same graph short. It takes microseconds where nothing was compiled.
    """
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
