"""Names in the modules that PEFT wraps around the base's, and the base's own names; standard library only."""

import re
from collections import defaultdict
from collections.abc import Container
from typing import Final, NamedTuple

from loratree_registry.core.manifest import PAST_FORWARD, BaseManifest, Parameter

PREFIX: Final = "base_model.model."  # every tensor's key begins so; the module's name in the base follows
LAYER: Final = "base_layer"  # the base's module, inside the module that PEFT wraps around it
TOKENS: Final = "token_adapter"  # the module that replaces rows of an embedding; its base_layer is the base's
SAVED: Final = "modules_to_save"  # the trained copy of a whole module
ORIGINAL: Final = "original_module"  # the base's module, beside its trained copy
# Architecture → the layers that its head is given and does not call, for bases whose manifest has no marks of such
# layers: those that were recorded before loratree marked the layers of heads.
_READ_BY_HEADS: Final[dict[str, tuple[str, ...]]] = {
    "DebertaForMaskedLM": ("word_embeddings",),
    "DebertaV2ForMaskedLM": ("word_embeddings",),
    "DiffusionGemmaForBlockDiffusion": ("embed_tokens",),
    "PerceiverForMaskedLM": ("embeddings",),
}
_WRAPPERS: Final = frozenset({LAYER, TOKENS, SAVED, ORIGINAL})
_NAMED_COPY: Final = re.compile(rf"(^|\.){SAVED}\.[^.]+\.")


class BaseName(NamedTuple):
    """A name of the base, and the segments of PEFT that were removed from a name of the file to get it, last first."""

    name: str
    taken: tuple[str, ...]


def base_name(name: str, known: Container[str]) -> BaseName | None:
    """Remove PEFT's segments from `name`, the last one first, until it is in `known`; return None if it never is.

    A base may use such a segment in its own names: the segment stays if the name with it is known. The biases in a
    saved module are saved once more, with the adapter's name after `modules_to_save`.
    """
    segments, taken = name.split("."), []
    while ".".join(segments) not in known:
        at = next((at for at in range(len(segments) - 1, -1, -1) if segments[at] in _WRAPPERS), None)
        if at is None:
            unnamed = _NAMED_COPY.sub(rf"\1{SAVED}.", name)
            return base_name(unnamed, known) if unnamed != name else None
        taken.append(segments.pop(at))
    return BaseName(".".join(segments), tuple(taken))


class BaseIndex:
    """An index of a base, for checking an adapter. It lists only the modules that own parameters directly.

    `untied` is true for an adapter that was trained where ancestors had taken the base's ties apart. The config of that
    model said `tie_word_embeddings: false`, so PEFT trained no name together with another.
    """

    def __init__(self, manifest: BaseManifest, *, untied: bool = False) -> None:
        manifest = manifest.untied() if untied else manifest
        self.untied = untied
        self.parameters = manifest.by_name()
        self.vocabulary_size = manifest.vocabulary_size
        self.casts = manifest.casts or {}
        self.older_modules, self.lost_modules = manifest.older_modules or {}, manifest.lost_modules or {}
        self.expert_layers = manifest.expert_layers
        self.architecture = manifest.architecture or ""
        self.kinds: dict[str, str] = {}
        self._owned: dict[str, list[Parameter]] = defaultdict(list)
        self._ties: dict[str, list[str]] = defaultdict(list)
        self.is_marked = manifest.token_ties is not None  # both were recorded from the same version on
        self.input_embedding, self._token_ties = manifest.input_embedding, manifest.token_ties
        for parameter in manifest.parameters:
            self.kinds[module_of(parameter.name)] = parameter.kind
            self._owned[module_of(parameter.name)].append(parameter)
            self._ties[parameter.tied_to or parameter.name].append(parameter.name)

    def present_layer(self, layer: str) -> str:
        """Return a LoRA's place under the present names, if `layer` has the older name of a module; else `layer`."""
        if base_name(layer, self.kinds) is not None:
            return layer
        old = base_name(layer, self.older_modules)
        if old is None or not layer.startswith(old.name):
            return layer
        return self.older_modules[old.name] + layer.removeprefix(old.name)

    def renamed_to(self, module: str) -> str | None:
        """Return the present name of a module whose older name is `module`, or None if it is not known."""
        return self.older_modules.get(module) or self.lost_modules.get(module)

    def is_read_past_forward(self, module: str) -> bool:
        """Return whether the base's model reads the weight of the layer `module` without calling the layer.

        PEFT's wrapper never runs there. A merged weight would change the output, and a LoRA would not.
        """
        if self.kinds.get(module, "").endswith(f"{PAST_FORWARD})"):
            return True
        return not self.is_marked and module.rpartition(".")[2] in _READ_BY_HEADS.get(self.architecture, ())

    def token_ties(self) -> dict[str, list[str]]:
        """Map an embedding to the modules that PEFT trains on the same token rows; {} if the config ties nothing.

        A base that was recorded without its input embedding has the ties of each embedding that is a tensor's first
        name, which is right for most models.
        """
        if self.untied:
            return {}
        if self._token_ties is not None:
            return {} if self.input_embedding is None else {self.input_embedding: list(self._token_ties)}
        firsts = [first for first in self._ties if len(self._ties[first]) > 1]
        return {
            module_of(first): [module_of(name) for name in self._ties[first] if name != first]
            for first in firsts
            if self.parameters[first].kind == "Embedding"
        }

    def owned(self, module: str) -> list[Parameter]:
        """Return the parameters that `module` owns directly, not through a submodule."""
        return self._owned.get(module, [])

    def source(self, name: str) -> Parameter:
        """Return the tensor that stores the values of the parameter `name`: its own, or the one that it is tied to."""
        parameter = self.parameters[name]
        return parameter if parameter.tied_to is None else self.parameters[parameter.tied_to]

    def tied(self, name: str) -> list[str]:
        """Return every name that shares a tensor with `name`, including `name`."""
        return self._ties[self.source(name).name]

    def trained_with(self, name: str) -> list[str]:
        """Return every name that PEFT trains together with `name` if it is asked to keep ties, including `name`."""
        return [name] if self.untied else self.tied(name)


def module_of(name: str) -> str:
    """Return the module that owns the parameter `name`."""
    return name.rpartition(".")[0]
