"""The place of a new version: the nodes that publishing makes on the way to its path, and what is odd about them.

A node keeps its name and its level for ever, so publish asks before it makes one that looks like a mistake.
"""

from collections import Counter
from typing import Final

from loratree_registry.core.paths import (
    LEVELS,
    Level,
    ancestors_of,
    check_same_level,
    default_level,
    parse_path,
    planned_level,
)
from loratree_registry.core.records import Node
from loratree_registry.core.registry import MAX_PAGE, Registry
from loratree_registry.errors import Invalid, NotFound

_FEW: Final = 20  # children whose levels are looked at
_SHORT: Final = 4  # letters of a name, below which another one is no typing error


def find_place(registry: Registry, path: str, level: Level | None, *, new_path: bool = False) -> dict[str, Level]:
    """Return the nodes that publishing at `path` makes, root to leaf, with their levels; none if there is no such base.

    `level` is the leaf's, None for the level below its parent's. Raises Invalid if the first new node on the way has
    nearly the name of one that is there, unless `new_path`; if no level is given and most nodes beside the leaf have
    another one than it would get; or if the levels do not fit. Raises Conflict if the leaf is there with another level.
    """
    if level not in (None, *LEVELS):
        raise Invalid(f"level {ascii(level)[:80]} is not known: expected one of {', '.join(LEVELS[1:])}")
    trail = [*ancestors_of(parse_path(path)), path]
    missing: list[str] = []
    while trail and (above := _find_node(registry, trail[-1])) is None:
        missing.insert(0, trail.pop())
    if not trail or above is None:
        return {}
    parent, here = trail[-1], above.level
    if not missing:
        check_same_level(path, here, level)
    if len(missing) > 1 and not new_path:
        _check_name(registry, parent, missing[0])
    if len(missing) == 1 and level is None:
        check_beside(path, here, find_level_beside(registry, parent))
    made: dict[str, Level] = {}
    for below, step in zip(range(len(missing) - 1, -1, -1), missing, strict=True):
        here = made[step] = planned_level(step, parent, here, below=below, leaf=level)
        parent = step
    return made


def find_level_beside(registry: Registry, parent: str) -> Level | None:
    """Return the level of most of the first nodes directly below `parent`; None if no level has more than half."""
    levels = Counter(node.level for node in registry.children(parent, limit=_FEW).items)
    return next((level for level, count in levels.items() if count > levels.total() / 2), None)


def check_beside(path: str, parent: Level, beside: Level | None) -> None:
    """Raise Invalid if a new node at `path` would get another level than most beside it, and nobody has given one."""
    if beside is not None and parent != "user" and (level := default_level(parent)) != beside:
        raise Invalid(
            f"{path} is new and would be a {level}, but most nodes beside it are of the level {beside}, and no level "
            f"ever changes: say --level {beside}, or --level {level}"
        )


def _check_name(registry: Registry, parent: str, new: str) -> None:
    """Raise Invalid if a node that is to be made below `parent` has nearly the name of one that is there.

    Of the leaf this is not asked: the names of leaves, such as those of users, are alike.
    """
    for node in registry.children(parent, limit=MAX_PAGE).items:
        if _is_one_error_away(new.rpartition("/")[2], node.path.rpartition("/")[2]):
            raise Invalid(
                f"{new} is new, and there is {node.path}: publish there, or say --new-path if another is meant"
            )


def _is_one_error_away(new: str, name: str) -> bool:
    """Return whether one name becomes the other by one letter more, less or another, or by two that change places.

    Names that are counted, as team-a and team-b or v1 and v2, and short ones, as uk and us, are no errors.
    """
    if min(len(new), len(name)) < _SHORT:
        return False
    start = _count_alike(new, name)
    end = _count_alike(new[start:][::-1], name[start:][::-1])
    first, second = (text[start : len(text) - end] for text in (new, name))
    is_near = max(len(first), len(second)) == 1 or (len(first) == 2 and first == second[::-1])
    is_number = any(map(str.isdigit, first + second))
    return is_near and not is_number and not _is_counted(new, start) and not _is_counted(name, start)


def _count_alike(text: str, other: str) -> int:
    """Return how many characters are the same from the beginning on."""
    return next(
        (at for at, pair in enumerate(zip(text, other, strict=False)) if pair[0] != pair[1]), min(len(text), len(other))
    )


def _is_counted(name: str, at: int) -> bool:
    """Return whether the letter at a place stands alone between separators, as in team-a."""
    around = name[max(at - 1, 0) : at] + name[at + 1 : at + 2]
    return not any(map(str.isalnum, around))


def _find_node(registry: Registry, path: str) -> Node | None:
    try:
        return registry.node(path)
    except NotFound:
        return None
