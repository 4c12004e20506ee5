"""Deltas merged into a live module, and taken out again bit for bit: the one place that writes weights in place."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from loratree_composer.lowrank import LowRank
from loratree_composer.merge import merged
from loratree_composer.targets import check_unshared, is_transposed, target_layers

Place = Literal["host", "device"]


class MergedWeights:
    """A module's weights, W or W + Σ sᵢBᵢAᵢ, written where they are: addresses and references stay.

    Every merge starts from a pristine copy of the weights that it changes, and restoring writes that copy back, so the
    base is bit-exact however often it is switched. The copies are as large as the touched weights, on their own device
    or on the `host`. What a caller writes to a merged weight is lost when it is restored. Not for several threads.
    """

    def __init__(self, module: nn.Module, *, pristine: Place = "host") -> None:
        self._module = module
        self._place: Place = pristine
        self._pristine: dict[str, Tensor] = {}

    @property
    def names(self) -> list[str]:
        """The modules that are merged into now."""
        return sorted(self._pristine)

    def merge(self, deltas: Mapping[str, LowRank]) -> None:
        """Makes every weight W + BA by module name, and W where `deltas` does not name it, whatever was merged before.

        a [rank, in], b [out, rank]. Raises Invalid where a delta does not fit or a result is not finite. After any
        failure the whole base is back.
        """
        try:
            layers = target_layers(self._module, deltas)
            check_unshared(self._module, layers)
            for name, layer in layers.items():
                self._merge(name, layer, deltas[name])
            self._restore(set(self._pristine) - set(layers))
        except BaseException:
            self.restore()
            raise

    def restore(self) -> None:
        """Writes every pristine copy back, bit for bit, and frees it."""
        self._restore(set(self._pristine))

    def _merge(self, name: str, layer: nn.Module, delta: LowRank) -> None:
        weight = _weight(layer)
        if name not in self._pristine:
            self._pristine[name] = _copy(weight, self._place)
        pristine = self._pristine[name].to(weight.device)
        oriented = delta.transposed() if is_transposed(layer) else delta
        _write(weight, merged(pristine, oriented, name=f"{name}.weight"))

    def _restore(self, names: set[str]) -> None:
        for name in sorted(names):
            _write(_weight(self._module.get_submodule(name)), self._pristine[name])
            del self._pristine[name]


def _weight(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight


def _copy(weight: Tensor, place: Place) -> Tensor:
    with torch.inference_mode(False):
        return weight.detach().to("cpu" if place == "host" else weight.device, copy=True)


def _write(weight: Tensor, value: Tensor) -> None:
    # A weight made under inference mode may be written under it alone, any other anywhere.
    with torch.inference_mode(weight.is_inference()), torch.no_grad():
        weight.copy_(value)
