"""Names within the modules that PEFT wraps around the base's, and the base's own names; standard library only."""

from collections.abc import Container
from typing import Final, NamedTuple

LAYER: Final = "base_layer"  # the base's module within one that LoRA is on

TOKENS: Final = "token_adapter"  # what replaces rows of an embedding; the base's is its base_layer

SAVED: Final = "modules_to_save"  # the trained copy of a whole module

ORIGINAL: Final = "original_module"  # the base's, beside that copy

_WRAPPERS: Final = frozenset({LAYER, TOKENS, SAVED, ORIGINAL})


class BaseName(NamedTuple):
    """A name of the base, and PEFT's segments that were taken out of another one to find it, from the right."""

    name: str
    taken: tuple[str, ...]


def base_name(name: str, known: Container[str]) -> BaseName | None:
    """The first of `known` that is left of `name` as PEFT's segments are taken out, the last one first.

    A base may have modules with such names itself: those stay, where the name is then known.
    """
    segments, taken = name.split("."), []
    while ".".join(segments) not in known:
        at = next((at for at in range(len(segments) - 1, -1, -1) if segments[at] in _WRAPPERS), None)
        if at is None:
            return None
        taken.append(segments.pop(at))
    return BaseName(".".join(segments), tuple(taken))


PREFIX: Final = "base_model.model."  # of every tensor's key, before the module's name in the base
