"""How transformers reads a checkpoint into a model: under which names, what it leaves out, and what it makes itself."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from loratree_composer.base.sharing import ties
from loratree_registry.errors import Invalid, listed


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The reading of a checkpoint's tensors.

    `names` maps each stored name to the model's name for the tensor. `leftovers` are the stored names that the model
    has no place for: transformers ignores them. If `is_converted`, some tensors of the model are made of several stored
    ones, or computed, so that none can be read alone.
    """

    names: Mapping[str, str]
    leftovers: tuple[str, ...]
    is_converted: bool


def layout_of(model: nn.Module, stored: Iterable[str]) -> Layout:
    """Return how tensors of the names `stored` are read into `model`, which may be on the meta device.

    For a model of transformers, each name goes through the renamings that from_pretrained applies: older names, the
    conversions of the architecture, and the prefix of the base model. Raises Invalid if two names are read as one.
    """
    from transformers import PreTrainedModel

    rename = _Renaming(model) if isinstance(model, PreTrainedModel) else _Same(model)
    names: dict[str, str] = {}
    leftovers, made = [], set()
    for name in sorted(stored):
        target, is_made = rename.read(name)
        if target is None:
            leftovers.append(name)
        elif is_made:
            made.add(target)
        else:
            names[name] = target
    if twice := [name for name, count in Counter(names.values()).items() if count > 1]:
        sources = sorted(name for name, target in names.items() if target == twice[0])
        raise Invalid(f"{twice[0]} is stored twice, as {listed(sources)}: save the model again with save_pretrained")
    return Layout(names=names, leftovers=tuple(leftovers), is_converted=bool(made) or _is_completed(model, names))


def _is_completed(model: nn.Module, names: Mapping[str, str]) -> bool:
    """Return whether the model computes a tensor that the checkpoint does not hold."""
    firsts = ties(model)
    present = {firsts[name] for name in names.values()}
    return any(first not in present and _is_computed(model, name) for name, first in firsts.items())


def never_saved(module: nn.Module) -> set[str]:
    """Return the tensors that `save_pretrained` leaves out because the model computes them when it is built."""
    return set(getattr(module, "_keys_to_ignore_on_save", None) or ())


def _is_computed(model: nn.Module, name: str) -> bool:
    """Return whether a model that is built without a value for `name` computes one, always the same."""
    if name in never_saved(model):
        return True
    patterns = getattr(model, "_keys_to_ignore_on_load_missing", None) or ()
    is_buffer = name in dict(model.named_buffers())  # a parameter would get a random value
    return is_buffer and any(re.search(pattern, name) for pattern in patterns)


class _Same:
    """The reading of a model that transformers does not know: a name is the model's name, or is left over."""

    def __init__(self, model: nn.Module) -> None:
        self._names = model.state_dict().keys()

    def read(self, name: str) -> tuple[str | None, bool]:
        return (name if name in self._names else None), False


class _Renaming:
    """The reading of a model of transformers."""

    def __init__(self, model: Any) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

        mapping = get_model_conversion_mapping(model)
        self._renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
        self._converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
        self._state = model.state_dict()
        self._rename = partial(
            rename_source_key, base_model_prefix=model.base_model_prefix, meta_state_dict=self._state
        )

    def read(self, name: str) -> tuple[str | None, bool]:
        """Return the model's name for a stored name, and whether a conversion makes that tensor; None if ignored."""
        target, pattern = self._rename(name, self._renamings, self._converters)
        if target not in self._state and name in self._state:
            target, pattern = self._rename(name, [], [])
        return (target if target in self._state else None), pattern is not None
