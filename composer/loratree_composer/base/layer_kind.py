"""What a layer computes, by its class and not by its name."""

import sys
from typing import Final

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

# Which way round each kind of linear layer keeps its weight: Hugging Face's Conv1D has [in, out].
TRANSPOSED: Final[dict[str, bool]] = {"Linear": False, "Conv1D": True}

_CONVOLUTIONS: Final = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_KINDS: Final = (nn.Linear, nn.Embedding, *_CONVOLUTIONS, nn.MultiheadAttention)
_NAMES: Final = frozenset({*TRANSPOSED, *(cls.__name__ for cls in _KINDS), "Experts"})

# Classes with a forward of their own that was read: x Wᵀ + b, and experts that are only ever called.
_LINEAR: Final = ("transformers.models.falcon.modeling_falcon.FalconLinear",)
_EXPERTS: Final = ("transformers.models.llama4.modeling_llama4.Llama4TextExperts",)
# All that the forward of transformers' scaled embeddings names, where it is embedding · embed_scale and no more.
_SCALED: Final = frozenset({"super", "forward", "embed_scale", "to", "weight", "dtype"})


def kind_of(layer: nn.Module) -> str:
    """The name of torch's own class where `layer` is of it, or of a subclass that computes the same; or `Conv1D`.

    An Embedding may multiply its rows (embed_scale). A layer whose settings LoRA ignores has them in brackets:
    `Conv2d(dilation)`, `Embedding(max_norm)`, and `Linear(parametrized)` where torch computes the weight from other
    tensors, as weight norm does. Transformers' modules of many experts in one tensor are `Experts`, or
    `Experts(transposed)` where it is [experts, in, out]. Anything else has its class's name, with the module's before
    it where the bare name would pass for one of these.
    """
    cls = type(layer)
    full = f"{cls.__module__}.{cls.__qualname__}"
    if full in _LINEAR:
        return "Linear"
    if _computes_as(cls, getattr(sys.modules.get("transformers.pytorch_utils"), "Conv1D", None)):
        return "Conv1D" + _ignored(layer)
    if _is_experts(layer, full):
        return "Experts(transposed)" if getattr(layer, "is_transposed", False) else "Experts"
    root = next((root for root in _KINDS if _computes_as(cls, root)), None)
    if root is None and _is_scaled(cls, full):
        root = nn.Embedding
    if root is not None:
        return root.__name__ + _ignored(layer)
    return full if cls.__name__ in _NAMES else cls.__name__


def _computes_as(cls: type[nn.Module], root: type[nn.Module] | None) -> bool:
    # The layer inside MultiheadAttention is a Linear whose forward is never called: its weight is read.
    if root is None or issubclass(cls, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return False
    return issubclass(cls, root) and cls.forward is root.forward


def _is_scaled(cls: type[nn.Module], full: str) -> bool:
    names = getattr(getattr(cls.forward, "__code__", None), "co_names", ())
    is_named = full.startswith("transformers.models.") and full.endswith("ScaledWordEmbedding")
    return is_named and issubclass(cls, nn.Embedding) and _SCALED.issuperset(names)


def _is_experts(layer: nn.Module, full: str) -> bool:
    # What transformers' use_experts_implementation gives each instance.
    is_marked = all(hasattr(layer, name) for name in ("is_transposed", "has_gate", "is_concatenated"))
    return full in _EXPERTS or (full.startswith("transformers.models.") and is_marked)


def _ignored(layer: nn.Module) -> str:
    """The settings that PEFT's lora_A does not take over, in brackets: its delta is then none of the weight's."""
    found = []
    if isinstance(layer, _CONVOLUTIONS):
        found += ["dilation"] if set(layer.dilation) != {1} else []
        found += ["padding_mode"] if layer.padding_mode != "zeros" else []
    if isinstance(layer, nn.Embedding) and layer.max_norm is not None:
        found.append("max_norm")
    if is_parametrized(layer) or not _owns_weight(layer):
        found.append("parametrized")
    return f"({', '.join(found)})" if found else ""


def _owns_weight(layer: nn.Module) -> bool:
    # The older weight norm computes the weight in a hook, from weight_g and weight_v.
    return isinstance(layer, nn.MultiheadAttention) or "weight" in dict(layer.named_parameters(recurse=False))
