"""The kind of a layer: what the layer computes, decided by its class and not by its name."""

import sys
from typing import Final

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

# True if a kind of linear layer stores its weight as [in, out], as Hugging Face's Conv1D does.
TRANSPOSED: Final[dict[str, bool]] = {"Linear": False, "Conv1D": True}

_CONVOLUTIONS: Final = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_KINDS: Final = (nn.Linear, nn.Embedding, *_CONVOLUTIONS, nn.MultiheadAttention)
_NAMES: Final = frozenset({*TRANSPOSED, *(cls.__name__ for cls in _KINDS), "Experts"})

# Checked by hand: the forward of _LINEAR computes x Wᵀ + b, and no other code reads the weights of _EXPERTS.
_LINEAR: Final = ("transformers.models.falcon.modeling_falcon.FalconLinear",)
_EXPERTS: Final = ("transformers.models.llama4.modeling_llama4.Llama4TextExperts",)
# Every name in the forward of transformers' scaled embeddings that compute only embedding · embed_scale.
_SCALED: Final = frozenset({"super", "forward", "embed_scale", "to", "weight", "dtype"})


def kind_of(layer: nn.Module) -> str:
    """Return the kind of `layer`: the class of torch, or `Conv1D`, that computes what `layer` computes.

    An Embedding may multiply its rows (embed_scale). Settings that LoRA ignores follow in brackets: `Conv2d(dilation)`,
    `Embedding(max_norm)`, and `Linear(parametrized)` if torch computes the weight from other tensors, as weight norm
    does. Transformers' modules with many experts in one tensor are `Experts`, or `Experts(transposed)` if the tensor is
    [experts, in, out]. Any other layer has the name of its class, with the module's name before it if the bare name
    would look like one of these kinds.
    """
    cls = type(layer)
    full = f"{cls.__module__}.{cls.__qualname__}"
    if full in _LINEAR:
        return "Linear"
    if _is_equivalent(cls, getattr(sys.modules.get("transformers.pytorch_utils"), "Conv1D", None)):
        return "Conv1D" + _format_ignored(layer)
    if _is_experts(layer, full):
        return "Experts(transposed)" if getattr(layer, "is_transposed", False) else "Experts"
    root = next((root for root in _KINDS if _is_equivalent(cls, root)), None)
    if root is None and _is_scaled(cls, full):
        root = nn.Embedding
    if root is not None:
        return root.__name__ + _format_ignored(layer)
    return full if cls.__name__ in _NAMES else cls.__name__


def _is_equivalent(cls: type[nn.Module], root: type[nn.Module] | None) -> bool:
    # MultiheadAttention reads the weight of its inner Linear and never calls the forward.
    if root is None or issubclass(cls, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return False
    return issubclass(cls, root) and cls.forward is root.forward


def _is_scaled(cls: type[nn.Module], full: str) -> bool:
    names = getattr(getattr(cls.forward, "__code__", None), "co_names", ())
    is_named = full.startswith("transformers.models.") and full.endswith("ScaledWordEmbedding")
    return is_named and issubclass(cls, nn.Embedding) and _SCALED.issuperset(names)


def _is_experts(layer: nn.Module, full: str) -> bool:
    # The use_experts_implementation of transformers sets these attributes on each instance.
    is_marked = all(hasattr(layer, name) for name in ("is_transposed", "has_gate", "is_concatenated"))
    return full in _EXPERTS or (full.startswith("transformers.models.") and is_marked)


def _format_ignored(layer: nn.Module) -> str:
    """Return, in brackets, the settings that PEFT's lora_A ignores: with these, B A is not a delta of the weight."""
    settings = []
    if isinstance(layer, _CONVOLUTIONS):
        settings += ["dilation"] if set(layer.dilation) != {1} else []
        settings += ["padding_mode"] if layer.padding_mode != "zeros" else []
    if isinstance(layer, nn.Embedding) and layer.max_norm is not None:
        settings.append("max_norm")
    if is_parametrized(layer) or not _has_own_weight(layer):
        settings.append("parametrized")
    return f"({', '.join(settings)})" if settings else ""


def _has_own_weight(layer: nn.Module) -> bool:
    # The older weight norm computes the weight in a hook, from weight_g and weight_v.
    return isinstance(layer, nn.MultiheadAttention) or "weight" in dict(layer.named_parameters(recurse=False))
