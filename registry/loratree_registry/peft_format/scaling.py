"""The rank and scale of each module, from a config and its patterns, as PEFT computes them; standard library only."""

import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from loratree_registry.core.text import shortened
from loratree_registry.errors import Invalid, listed
from loratree_registry.peft_format.name_regex import NameRegex

MAX_RANK: Final = 2**24
MAX_FORMS: Final = 32  # different places of the dots in plain names of one length; a model has a few
MAX_REGEXES: Final = 32  # plain names have no limit

_PLAIN = re.compile(r"\^?[^\\^$*+?{}\[\]|()]+")
_Form = tuple[bool, int, tuple[int, ...]]  # anchored at the start, length, positions of the dots


class ModulePatterns:
    """The keys of rank_pattern or alpha_pattern with their values, tried in sorted order, as in a saved file.

    PEFT takes the first key, in the order of the file, with re.match((.*\\.)?(key)$, module). PEFT sorts the keys when
    it saves the file, and so does canonical JSON; so a file is refused if another order of its keys changes a value. A
    dot in a key matches any character.
    """

    def __init__(self, field: str, values: Mapping[str, float]) -> None:
        """Raises Invalid, which names every key that is no regular expression matched in linear time."""
        self.field, self.values = field, dict(values)
        self._order = {key: position for position, key in enumerate(values)}
        plain = [key for key in values if _PLAIN.fullmatch(key)]
        self._plain = {(_form_of(key), _mask(key.removeprefix("^"), _form_of(key))): key for key in plain}
        self._forms = _by_length(field, {form for form, _ in self._plain})
        self._regexes = _compile(field, sorted(set(values) - set(plain)))

    def first(self, module: str, default: float) -> float:
        """Return the value of the first key that matches `module`. Raises Invalid if a save would change the value."""
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
        """Return every key that matches `module`, sorted."""
        ends = [len(module), *(len(module) - at - 1 for at, character in enumerate(module) if character == ".")]
        tails = ((form, _tail_of(module, form)) for end in ends for form in self._forms.get(end, ()))
        plain = ((form, _mask(tail, form)) for form, tail in tails if tail is not None)
        keys = {self._plain[entry] for entry in plain if entry in self._plain}
        return sorted(keys | {key for key, regex in self._regexes.items() if self._is_match(key, regex, module)})

    def _is_match(self, key: str, regex: NameRegex, module: str) -> bool:
        try:
            return regex.matches(module)
        except ValueError as error:
            raise Invalid(f"{self.field} has the key {shortened(key, 80)!a}: {error}") from error


@dataclass(frozen=True, slots=True)
class Scaling:
    """The r and α of a config, and the rank_pattern and alpha_pattern that replace them for matching modules."""

    r: int
    alpha: float
    rslora: bool
    ranks: ModulePatterns
    alphas: ModulePatterns

    def rank(self, module: str) -> int:
        """Return the rank that PEFT gives `module`."""
        return int(self.ranks.first(module, self.r))

    def scale(self, module: str) -> float:
        """Return α/r, or α/√r for rsLoRA, in float64 as PEFT computes it."""
        rank, alpha = self.rank(module), self.alphas.first(module, self.alpha)
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank


def read_scaling(config: Mapping[str, Any]) -> Scaling:
    """Read r, lora_alpha, use_rslora, rank_pattern and alpha_pattern. Raises Invalid, listing every wrong field."""
    r, alpha = config.get("r", 8), config.get("lora_alpha", 8)
    rslora = config.get("use_rslora") or False
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    expected = {
        f"r is {shown(r)}, expected a whole number from 1": _is_rank(r),
        f"lora_alpha is {shown(alpha)}, expected a finite number": _is_number(alpha),
        f"use_rslora is {shown(rslora)}, expected true or false": isinstance(rslora, bool),
        f"rank_pattern is {shown(ranks)}, expected an object of whole numbers from 1": _is_table(ranks, _is_rank),
        f"alpha_pattern is {shown(alphas)}, expected an object of finite numbers": _is_table(alphas, _is_number),
    }
    wrong = [problem for problem, right in expected.items() if not right]
    if wrong:
        raise Invalid(listed(wrong))
    return Scaling(r, alpha, rslora, ModulePatterns("rank_pattern", ranks), ModulePatterns("alpha_pattern", alphas))


def shown(value: object) -> str:
    """Return a config's value for a message: JSON, cut at 60 characters."""
    text = json.dumps(value, default=repr)
    return text if len(text) <= 60 else text[:57] + "..."


def _is_rank(value: object) -> bool:
    return type(value) is int and 1 <= value <= MAX_RANK


def _is_number(value: object) -> bool:
    return (type(value) is int and abs(value) < 2**53) or (type(value) is float and math.isfinite(value))


def _is_table(value: object, is_right: Callable[[object], bool]) -> bool:
    return isinstance(value, dict) and all(is_right(item) for item in value.values())


def _compile(field: str, keys: list[str]) -> dict[str, NameRegex]:
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


def _by_length(field: str, forms: set[_Form]) -> dict[int, list[_Form]]:
    """Sort the forms of the plain keys by their length. Raises Invalid if one length has too many to be tried."""
    lengths: dict[int, list[_Form]] = defaultdict(list)
    for form in forms:
        lengths[form[1]].append(form)
    most = max(map(len, lengths.values()), default=0)
    if most > MAX_FORMS:
        raise Invalid(
            f"{field} has names of one length with {most} different places of dots, at most {MAX_FORMS} are matched: "
            "name the modules that the adapter has"
        )
    return lengths


def _form_of(key: str) -> _Form:
    name = key.removeprefix("^")
    return key != name, len(name), tuple(position for position, character in enumerate(name) if character == ".")


def _tail_of(module: str, form: _Form) -> str | None:
    """Return the end of `module` that a key of this form must match: all of it, or the part after a dot."""
    anchored, length, _ = form
    if len(module) == length:
        return module
    return module[-length:] if not anchored and module[: -length or None].endswith(".") else None


def _mask(name: str, form: _Form) -> str:
    """Return `name` with a dot at each position where the key has one."""
    for position in form[2]:
        name = f"{name[:position]}.{name[position + 1 :]}"
    return name
