"""What a layer computes, by its class and not by its name."""

import sys
from typing import Final

from torch import nn

# Which way round each kind of layer that is composed keeps its weight: Hugging Face's Conv1D has [in, out].
TRANSPOSED: Final[dict[str, bool]] = {"Linear": False, "Conv1D": True}

# Subclasses of Linear with a forward of their own that was read and is x Wᵀ + b.
_LINEAR: Final = ("transformers.models.falcon.modeling_falcon.FalconLinear",)


def kind_of(layer: nn.Module) -> str:
    """`Linear` or `Conv1D` where `layer` is torch's or transformers' own, or a subclass that computes the same.

    Anything else has its class's name, with the module's before it where the bare name would pass for one of these.
    """
    cls = type(layer)
    full = f"{cls.__module__}.{cls.__qualname__}"
    if _computes_as(cls, nn.Linear) or full in _LINEAR:
        return "Linear"
    if _computes_as(cls, getattr(sys.modules.get("transformers.pytorch_utils"), "Conv1D", None)):
        return "Conv1D"
    return full if cls.__name__ in TRANSPOSED else cls.__name__


def _computes_as(cls: type[nn.Module], root: type[nn.Module] | None) -> bool:
    # The layer inside MultiheadAttention is a Linear whose forward is never called: its weight is read.
    if root is None or issubclass(cls, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return False
    return issubclass(cls, root) and cls.forward is root.forward
