"""Grammar of paths, refs and levels; standard library only."""

import re
from dataclasses import dataclass
from typing import Final, Literal, get_args

from loratree_registry.core.text import shortened
from loratree_registry.errors import Conflict, Invalid

Level = Literal["base", "domain", "subdomain", "task", "user"]
LEVELS: Final[tuple[Level, ...]] = get_args(Level)
_SUBDOMAIN: Final = LEVELS.index("subdomain")
MAX_DEPTH: Final = 32
HEAD: Final = "latest"
BASE: Final = "base"  # stands in place of a ref for an adapter that was trained on the plain base
MAX_NUMBER: Final = 999_999_999  # the highest version number: nine digits

# Regular expressions, without anchors, which the OpenAPI document states too.
SEGMENT: Final = r"[a-z0-9][a-z0-9._-]{0,127}"
ALIAS: Final = r"[a-z][a-z0-9._-]{0,63}"
DIGEST: Final = r"sha256:[0-9a-f]{64}"
NUMBER: Final = r"[1-9][0-9]{0,8}"
START: Final = r"(?:sha256:)?[0-9a-f]{12,64}"  # of a digest, as a screen prints it, or all of it

_SEGMENT, _ALIAS, _DIGEST, _NUMBER, _START = (re.compile(text) for text in (SEGMENT, ALIAS, DIGEST, NUMBER, START))
# What people write who do not know the grammar yet: a version after another character, and what no segment holds.
_VERSION: Final = re.compile(rf"({SEGMENT})[:#=](?:v(?=[0-9]))?({NUMBER}|{ALIAS})")
_FOREIGN: Final = re.compile(r"[^a-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class Ref:
    """A path and the selector of a version at it: a number, an alias, a digest or its start, or None for the head.

    The start of a digest begins with `sha256:`, unless it could be an alias too.
    """

    path: str
    selector: int | str | None = None

    def __str__(self) -> str:
        return self.path if self.selector is None else f"{self.path}@{self.selector}"


def parse_path(text: str) -> str:
    """Check a path, `base/segment/…`, and return it unchanged. Raises Invalid."""
    segments = text.split("/")
    if not all(map(_SEGMENT.fullmatch, segments)):
        raise Invalid(_explain_path(text))
    if len(segments) > MAX_DEPTH:
        raise Invalid(f"path {shortened(text, 80)!r} has {len(segments)} segments, at most {MAX_DEPTH} are allowed")
    return text


def parse_base_name(text: str) -> str:
    """Check the name of a base, a path of one segment, and return it unchanged. Raises Invalid."""
    if "/" in parse_path(text):
        raise Invalid(f"the base's name {text!r} has a slash: a base is one segment, such as {text.split('/')[0]!r}")
    return text


def parse_ref(text: str) -> Ref:
    """Parse `PATH` or `PATH@SELECTOR`; `@latest` selects the head. Raises Invalid."""
    if not isinstance(text, str):
        raise Invalid(f"a ref is text such as tiny/medicine@2, got {ascii(text)[:80]}")
    path, at, selector = text.partition("@")
    if at and not path:
        raise Invalid(f"ref {shortened(text, 80)!r} has no path before the @: write both, as in tiny/medicine@2")
    parse_path(path)
    if at and not selector:
        raise Invalid(
            f"ref {shortened(text, 80)!r} has no selector after the @: give a version number or an alias, or "
            f"{shortened(path, 80)} alone for its head"
        )
    if not at or selector == HEAD:
        return Ref(path)
    if _NUMBER.fullmatch(selector):
        return Ref(path, int(selector))
    if _ALIAS.fullmatch(selector):
        return Ref(path, selector)
    if (start := digest_start(selector)) is not None:
        return Ref(path, start)
    raise Invalid(
        f"ref {shortened(text, 80)!r} has the selector {shortened(selector, 80)!r}: "
        "give a version number from 1, an alias, or the first 12 or more digits of a digest"
    )


def parse_alias(text: str) -> str:
    """Check an alias's name and return it; `latest` is reserved for the head. Raises Invalid."""
    if text == HEAD:
        raise Invalid(f"alias {HEAD!r} always names the head and cannot be set: choose another name")
    if not _ALIAS.fullmatch(text):
        alone = text.removeprefix("@")
        such_as = f", such as {alone!r}" if alone != text and _ALIAS.fullmatch(alone) else ""
        raise Invalid(
            f"alias {shortened(text, 80)!r} is not a name: start with a lower-case letter, "
            f"then up to 63 of a-z, 0-9, '.', '_' and '-'{such_as}"
        )
    return text


def is_digest(text: object) -> bool:
    """Return whether `text` is `sha256:` and 64 lower-case hexadecimal digits."""
    return isinstance(text, str) and _DIGEST.fullmatch(text) is not None


def digest_start(text: str) -> str | None:
    """Return `sha256:` and the 12 to 64 digits in `text`, which may have that before them; None for other text."""
    return f"sha256:{text.removeprefix('sha256:')}" if _START.fullmatch(text) else None


def base_of(path: str) -> str:
    """Return the first segment of `path`, which names the base."""
    return path.partition("/")[0]


def parent_of(path: str) -> str | None:
    """Return `path` without its last segment, or None if `path` is a base."""
    return path.rpartition("/")[0] or None


def ancestors_of(path: str) -> list[str]:
    """Return every ancestor of `path`, the base first: `a/b/c` gives `a`, `a/b`."""
    segments = path.split("/")
    return ["/".join(segments[:count]) for count in range(1, len(segments))]


def is_ancestor(upper: str, lower: str) -> bool:
    """Return whether `upper` is a proper ancestor of `lower`, by whole segments."""
    return lower.startswith(upper + "/")


def descendant_range(path: str) -> tuple[str, str]:
    """Return the half-open range of byte-ordered paths that holds exactly the descendants of `path`."""
    return f"{path}/", f"{path}0"  # '0' is the byte after '/'


def default_level(parent: Level) -> Level:
    """Return the next level below `parent`. Raises Invalid if `parent` is a user, the lowest level."""
    if parent == "user":
        raise Invalid(
            "a user is the lowest level, so nothing can be published below it: publish at the user's own path"
        )
    return LEVELS[LEVELS.index(parent) + 1]


def check_level(child: Level, parent: Level, path: str) -> Level:
    """Return `child` if it is deeper than `parent`, or if both are sub-domains. Raises Invalid otherwise."""
    deeper = LEVELS.index(child) > LEVELS.index(parent)
    if deeper or child == parent == "subdomain":
        return child
    allowed = ", ".join(LEVELS[LEVELS.index(parent) + (parent != "subdomain") :]) or "nothing"
    raise Invalid(f"{path} cannot be a {child} under a {parent}: expected one of {allowed}")


def planned_level(path: str, parent: str, parent_level: Level, *, below: int, leaf: Level | None) -> Level:
    """Return the level for a new node that has `below` missing nodes under it, the last one of level `leaf`.

    The last node takes `leaf`, or the next level down from its parent. A grouping on the way takes the next level down
    if that leaves a level for each node below, else sub-domain, which may repeat. Raises Invalid if neither fits.
    """
    if below == 0:
        return check_level(leaf or default_level(parent_level), parent_level, path)
    lowest = LEVELS.index(leaf or "user")
    for level in _list_choices(parent_level):
        index = LEVELS.index(level)
        if index + below <= lowest or index <= _SUBDOMAIN <= lowest:
            return level
    raise Invalid(
        f"{path} and {below} more below it do not fit between {parent}, a {parent_level}, and a {LEVELS[lowest]}: "
        "publish at a shorter path, or create the nodes between with levels of your choice"
    )


def check_same_level(path: str, level: Level, wanted: Level | None) -> None:
    """Raise Conflict if an existing node is to have another level than it has."""
    if wanted not in (None, level):
        raise Conflict(f"{path} is a {level} and cannot become a {wanted}: levels never change")


def versionless(base: str) -> str:
    """Return the error message for a base that was given in place of a node with versions."""
    return f"{base} is a base, which has no versions: name a node below it, such as {base}/DOMAIN"


def _list_choices(parent: Level) -> list[Level]:
    choices: list[Level] = [] if parent == "user" else [default_level(parent)]
    return [*choices, "subdomain"] if LEVELS.index(parent) <= _SUBDOMAIN else choices


def _explain_path(text: str) -> str:
    """Return why `text` is no path, and what to write instead."""
    shown, (path, at, _) = f"path {shortened(text, 80)!r}", text.partition("@")
    named = [part for part in path.split("/") if part]
    if digest_start(text) is not None:
        return f"{shown} is a digest: it follows the path of its node, as in tiny/medicine@{text}"
    if not text.strip(" /"):
        return f"{shown} is empty: a path begins with the name of a base, as in tiny/medicine"
    if wrong := [part for part in named if not _SEGMENT.fullmatch(part)]:
        return f"{shown} has the segment {shortened(wrong[0], 80)!r}: {_explain_segment(wrong[0])}"
    tidy = repr(shortened("/".join(named), 80)) if named else "its path"
    if at:
        return f"{shown} names a version, and only a path fits here: write {tidy}"
    return f"{shown} has a slash too many: write {tidy}"


def _explain_segment(segment: str) -> str:
    if len(segment) > 128:
        return f"it has {len(segment)} characters, at most 128 are allowed"
    if _SEGMENT.fullmatch(segment.lower()):
        return f"use lower case, such as {shortened(segment.lower(), 80)!r}"
    if segment in (".", "..", "~"):
        return "a path is no folder, and begins with the name of a base, as in tiny/medicine"
    if (version := _VERSION.fullmatch(segment)) is not None:
        return f"a version is written after an @, such as {'@'.join(version.groups())!r}"
    names = segment.split("\\")
    if all(map(_SEGMENT.fullmatch, names)):
        return f"names are parted by a slash, such as {shortened('/'.join(names), 80)!r}"
    similar = _FOREIGN.sub("-", segment.lower()).strip("-._")
    such_as = f", such as {shortened(similar, 80)!r}" if similar else ""
    return f"expected a letter or digit first, then letters a-z, digits, '.', '_' or '-'{such_as}"
