"""Names in the modules that PEFT wraps around the base's, and the base's own names; standard library only."""

from collections.abc import Container
from typing import Final, NamedTuple

LAYER: Final = "base_layer"  # the base's module, inside the module that PEFT wraps around it

TOKENS: Final = "token_adapter"  # the module that replaces rows of an embedding; its base_layer is the base's

SAVED: Final = "modules_to_save"  # the trained copy of a whole module

ORIGINAL: Final = "original_module"  # the base's module, beside its trained copy

_WRAPPERS: Final = frozenset({LAYER, TOKENS, SAVED, ORIGINAL})


class BaseName(NamedTuple):
    """A name of the base, and the segments of PEFT that were removed from a name of the file to get it, last first."""

    name: str
    taken: tuple[str, ...]


def base_name(name: str, known: Container[str]) -> BaseName | None:
    """Remove PEFT's segments from `name`, the last one first, until it is in `known`; return None if it never is.

    A base may use such a segment in its own names: the segment stays if the name with it is known.
    """
    segments, taken = name.split("."), []
    while ".".join(segments) not in known:
        at = next((at for at in range(len(segments) - 1, -1, -1) if segments[at] in _WRAPPERS), None)
        if at is None:
            return None
        taken.append(segments.pop(at))
    return BaseName(".".join(segments), tuple(taken))


PREFIX: Final = "base_model.model."  # every tensor's key begins so; the module's name in the base follows
