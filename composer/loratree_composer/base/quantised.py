"""Quantised linear layers of a live model: their own tensors stand for one weight of the base, which is gone."""

from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor, nn

from loratree_composer.base.sharing import tensors
from loratree_registry.errors import Invalid, listed

# Packages of quantised layers and tensors. Transformers' own are in its integrations.
_PACKAGES: Final = (
    "auto_gptq",
    "autoawq",
    "awq",
    "bitsandbytes",
    "compressed_tensors",
    "fbgemm_gpu",
    "gptqmodel",
    "hqq",
    "optimum",
    "quanto",
    "torchao",
)
_INTEGRATIONS: Final = "transformers.integrations."
_OWN: Final = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")  # torch's own quantised layers
_WRAPPERS: Final = "transformers.integrations.executorch"
_SIZES: Final = (("out_features", "in_features"), ("outfeatures", "infeatures"))


def quantised_layers(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Return (out, in) of each quantised linear layer of `model`, by the layer's name.

    Raises Invalid if a quantised layer is not linear, or if the config says quantised and no known layer is.
    """
    made = {name: makers for name, layer in model.named_modules() if (makers := _find_makers(layer))}
    inside = tuple(f"{name}." for name in made)  # a layer's packed tensors may be modules too
    sizes = {name: _size_of(model.get_submodule(name)) for name in made if not name.startswith(inside)}
    if others := [f"{name} is a {made[name]}" for name, size in sizes.items() if size is None]:
        raise Invalid(
            f"a chain can be stacked on quantised linear layers alone, and {listed(others, limit=3)}: quantise only "
            "linear layers, or compose to files first and quantise the result"
        )
    config: Any = getattr(model, "config", None)
    if not made and getattr(config, "quantization_config", None) is not None:
        raise Invalid(
            "the model's config has a quantization_config, and none of its layers is of a known quantiser: load the "
            "model without quantization, or compose to files first and quantise the result"
        )
    return {name: size for name, size in sizes.items() if size is not None}


@dataclass(frozen=True, slots=True)
class LiveTensors:
    """A model's parameters and persistent buffers by name, and (out, in) of each quantised linear layer by its name.

    Of what a quantised layer owns, `plain` has the bias alone.
    """

    plain: dict[str, Tensor]
    quantised: dict[str, tuple[int, int]]

    def sizes(self) -> dict[str, tuple[int, int]]:
        """Return (out, in) of each quantised weight, by the name that the base has for it."""
        return {f"{layer}.weight": size for layer, size in self.quantised.items()}


def read_live(model: nn.Module) -> LiveTensors:
    """Return the tensors of a model. Raises Invalid, as `quantised_layers` does."""
    layers = quantised_layers(model)
    inside, biases = tuple(f"{layer}." for layer in layers), {f"{layer}.bias" for layer in layers}
    plain = {name: value for name, value in tensors(model).items() if name in biases or not name.startswith(inside)}
    return LiveTensors(plain, layers)


def describe_quantised(layer: nn.Module) -> str:
    """Name what quantised a layer: its class, or the class of its weight."""
    return _find_makers(layer) or "not quantised"


def _find_makers(layer: nn.Module) -> str:
    """Return the package and class that make `layer` or a tensor of its own quantised, or '' if none does."""
    own = (*layer._parameters.values(), *layer._buffers.values())
    classes = [type(layer), *(cls for tensor in own if tensor is not None for cls in (type(tensor), type(tensor.data)))]
    return next((f"{_package_of(cls)} {cls.__name__}" for cls in classes if _package_of(cls)), "")


def _package_of(cls: type) -> str:
    module = cls.__module__
    if module.startswith(_INTEGRATIONS) and module != _WRAPPERS:
        return "transformers"
    if module.startswith(_OWN):
        return "torch.ao"
    root = module.partition(".")[0]
    return root if root in _PACKAGES else ""


def _size_of(layer: nn.Module) -> tuple[int, int] | None:
    """Return (out, in) of a linear layer, or None if the layer has no such sizes."""
    for out, into in _SIZES:
        sizes: list[Any] = [getattr(layer, name, None) for name in (out, into)]
        if all(isinstance(size, int) for size in sizes):
            return sizes[0], sizes[1]
    return None
