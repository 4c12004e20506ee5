"""Composer: a live model, and any path of the tree on it."""

from pathlib import Path

from torch import nn

from loratree_composer.adapter import summed
from loratree_composer.adapters import Adapters
from loratree_composer.identify import identify
from loratree_composer.lowrank import LowRank
from loratree_composer.merged_weights import MergedWeights, Place
from loratree_composer.stack import Stack, is_stacked
from loratree_registry.errors import Invalid, listed
from loratree_registry.paths import base_of
from loratree_registry.protocol import Registry
from loratree_registry.schemas import Base, Resolution
from loratree_registry.settings import Settings


class Composer:
    """Puts compositions on a live model, one at a time, and takes them off without a trace.

    `use` stacks (the base's weights stay untouched), `merge` writes the sum into the weights, `restore` gives the bare
    base back, bit for bit. A call replaces what was there before; if it fails while adapters are fetched, that stays.
    It changes the model for the whole process, so it is not for several threads.

    The model is any torch.nn.Module whose tensors are those of a base in the registry: `base` names it, else it is
    found. With `verify` every tensor is hashed, which reads the whole model once; a model that is held in another
    dtype than its base is compared with the base's checkpoint, cast. Without, names and shapes alone are compared.
    `pristine` is where merging keeps a copy of the weights that it touches: on the host, or on their own device. `home`
    is the folder of this machine's caches (default: LORATREE_HOME). Raises Invalid where the model is another one.
    """

    def __init__(
        self,
        model: nn.Module,
        registry: Registry,
        *,
        base: str | None = None,
        verify: bool = True,
        pristine: Place = "host",
        home: Path | None = None,
    ) -> None:
        _check_plain(model)
        home = home or Settings.from_environment().home
        self._model = model
        self._registry = registry
        self._base, manifest = identify(model, registry, name=base, verify=verify, home=home)
        self._adapters = Adapters(registry, manifest, home)
        self._merged = MergedWeights(model, pristine=pristine)
        self._stack: Stack | None = None
        self._current: Resolution | None = None

    @property
    def base(self) -> Base:
        """The base that the model is."""
        return self._base

    @property
    def current(self) -> Resolution | None:
        """What is on the model now; None for the bare base."""
        return self._current

    @property
    def unreached(self) -> list[str]:
        """The stacked layers whose forward has not run yet: after a pass, those whose delta was left out."""
        return self._stack.unreached if self._stack is not None else []

    def use(self, ref: str, *, follow: str | None = None) -> Resolution:
        """Stacks the chain of `ref`: y = Wx + Σ sᵢBᵢ(Aᵢx), as one pair of products a layer."""
        resolution, deltas = self._read(ref, follow)
        self.restore()
        self._stack = Stack(self._model, deltas)
        self._current = resolution
        return resolution

    def merge(self, ref: str, *, follow: str | None = None) -> Resolution:
        """Merges the chain of `ref`: W' = W + Σ sᵢBᵢAᵢ, from the pristine weights. After a failure the base is back."""
        resolution, deltas = self._read(ref, follow)
        self._unstack()
        self._current = None
        self._merged.merge(deltas)
        self._current = resolution
        return resolution

    def restore(self) -> None:
        """Gives the bare base back, bit for bit."""
        self._unstack()
        self._merged.restore()
        self._current = None

    def _read(self, ref: str, follow: str | None) -> tuple[Resolution, dict[str, LowRank]]:
        if base_of(ref.partition("@")[0]) != self._base.name:
            raise Invalid(f"{ref} is not in the tree of {self._base.name}, the base that this model is")
        resolution = self._registry.resolve(ref, follow=follow)
        return resolution, summed(self._adapters.chain(resolution))

    def _unstack(self) -> None:
        if self._stack is not None:
            self._stack.remove()
            self._stack = None


def _check_plain(model: nn.Module) -> None:
    """Refuses a model that others have put adapters on."""
    peft = sorted({type(layer).__name__ for layer in model.modules() if type(layer).__module__.startswith("peft.")})
    if peft:
        raise Invalid(
            f"the model carries PEFT's layers ({listed(peft, limit=3)}): give the base model itself, or what its "
            "unload() returns"
        )
    if is_stacked(model):
        raise Invalid("another Composer has a composition on this model: call its restore() first")
