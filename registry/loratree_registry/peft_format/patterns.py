"""rank_pattern and alpha_pattern: which keys match a module's name, as PEFT decides it; standard library only."""

import re
from collections.abc import Mapping
from typing import Final

from loratree_registry.core.text import shortened
from loratree_registry.errors import Invalid, listed
from loratree_registry.peft_format.name_regex import NameRegex

MAX_REGEXES: Final = 32  # keys that are plain names have no such limit

_PLAIN = re.compile(r"\^?[^\\^$*+?{}\[\]|()]+")
_Form = tuple[bool, int, tuple[int, ...]]  # anchored at the start, length, where its dots are


class ModulePatterns:
    """The keys of one pattern field with their values, tried in the order that a save gives them: sorted.

    PEFT takes the first key, in the order of the file, with re.match((.*\\.)?(key)$, module). Its own save sorts the
    file and so does canonical JSON, so a file in another order is refused where the order decides a value. A dot in a
    key matches any character.
    """

    def __init__(self, field: str, values: Mapping[str, float]) -> None:
        """Raises Invalid, naming every key that is no regular expression which can be matched in linear time."""
        self.field, self.values = field, dict(values)
        self._order = {key: position for position, key in enumerate(values)}
        plain = [key for key in values if _PLAIN.fullmatch(key)]
        self._plain = {(_form(key), _masked(key.removeprefix("^"), _form(key))): key for key in plain}
        self._forms = {form for form, _ in self._plain}
        self._regexes = _compiled(field, sorted(set(values) - set(plain)))

    def first(self, module: str, default: float) -> float:
        """The value of the first key that matches `module`. Raises Invalid where a save would make it another one."""
        matching = self.matching(module)
        if not matching:
            return default
        first, in_file = matching[0], min(matching, key=self._order.__getitem__)
        if self.values[first] != self.values[in_file]:
            raise Invalid(
                f"{self.field} gives {module} {self.values[in_file]} by {in_file!r}, but {self.values[first]} by "
                f"{first!r} once PEFT saves it and sorts its keys: write keys that do not overlap"
            )
        return self.values[first]

    def matching(self, module: str) -> list[str]:
        """Every key that matches `module`, sorted."""
        tails = ((form, _tail(module, form)) for form in self._forms)
        plain = ((form, _masked(tail, form)) for form, tail in tails if tail is not None)
        found = {self._plain[entry] for entry in plain if entry in self._plain}
        return sorted(found | {key for key, regex in self._regexes.items() if self._matches(key, regex, module)})

    def _matches(self, key: str, regex: NameRegex, module: str) -> bool:
        try:
            return regex.matches(module)
        except ValueError as error:
            raise Invalid(f"{self.field} has the key {shortened(key, 80)!a}: {error}") from error


def _compiled(field: str, keys: list[str]) -> dict[str, NameRegex]:
    if len(keys) > MAX_REGEXES:
        raise Invalid(
            f"{field} has {len(keys)} regular expressions, at most {MAX_REGEXES} are matched: use plain names"
        )
    regexes, problems = {}, []
    for key in keys:
        try:
            regexes[key] = NameRegex(key)
        except ValueError as error:
            problems.append(f"{field} has the key {shortened(key, 80)!a}: {error}")
    if problems:
        raise Invalid(listed(problems))
    return regexes


def _form(key: str) -> _Form:
    name = key.removeprefix("^")
    return key != name, len(name), tuple(position for position, character in enumerate(name) if character == ".")


def _tail(module: str, form: _Form) -> str | None:
    """The end of `module` that a key of this form would have to match: all of it, or what follows a dot."""
    anchored, length, _ = form
    if len(module) == length:
        return module
    return module[-length:] if not anchored and module[: -length or None].endswith(".") else None


def _masked(name: str, form: _Form) -> str:
    """`name` with a dot wherever the key has one."""
    for position in form[2]:
        name = f"{name[:position]}.{name[position + 1 :]}"
    return name
