"""What torch.compile made of a model, when the model's hooks change."""

import sys

import torch


def drop_compiled() -> None:
    """Drops what torch.compile holds in memory for this process: each compiled function is traced again when called.

    Dynamo does not guard on hooks (torch._dynamo.config.skip_nnmodule_hook_guards), so code that it compiled before a
    hook came or went runs on as if nothing had happened. Any function may have inlined a model's layers and none of
    them is known by the model, so there is nothing narrower to drop. Inductor's cache on disk stays and makes the next
    compilation of the same graph short. It takes microseconds where nothing was compiled.
    """
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
