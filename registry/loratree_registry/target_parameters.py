"""Which parameters an adapter's config lets PEFT put a LoRA on by their own names; standard library only."""

from collections.abc import Sequence

from loratree_registry.manifest import Parameter
from loratree_registry.saved_adapter import SavedAdapter


class TargetParameters:
    """The config's target_parameters: PEFT takes a parameter whose name is one of them, or ends with one at a dot."""

    def __init__(self, saved: SavedAdapter) -> None:
        self._names = set(saved.names("target_parameters"))
        self._base = saved.base

    def of(self, module: str) -> Sequence[Parameter]:
        """The parameters of `module` itself that are chosen."""
        if not self._names:
            return ()
        return [parameter for parameter in self._base.owned(module) if self._chooses(parameter.name)]

    def _chooses(self, name: str) -> bool:
        dots = (at for at, character in enumerate(name) if character == ".")
        return name in self._names or any(name[at + 1 :] in self._names for at in dots)
