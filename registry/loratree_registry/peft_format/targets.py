"""The modules that PEFT loads for an adapter's config; standard library only.

PEFT makes a LoRA on every module that target_modules, exclude_modules, layers_to_transform and layers_pattern choose
together (check_target_module_exists). It leaves out the tensors of every other module without a warning.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from loratree_registry.core.manifest import Parameter
from loratree_registry.errors import Invalid, listed
from loratree_registry.peft_format.name_regex import NameRegex, widened
from loratree_registry.peft_format.saved_adapter import SavedAdapter
from loratree_registry.peft_format.scaling import shown

ALL_LINEAR: Final = "all-linear"

_LINEAR: Final = ("Linear", "Conv1D")  # the layer kinds that all-linear chooses

_HEADS: Final = ("lm_head", "embed_out")  # all-linear leaves out these heads of a language model

MAX_PATTERNS: Final = 32

_FIRST_NUMBER: Final = re.compile(r".*?\.[^.]*\.(\d+)\.")  # PEFT's own regex, fast enough because names are short

_PLAIN: Final = re.compile(r"[A-Za-z0-9_.-]+")

_Chooses = Callable[[str], bool]


class TargetModules:
    """The config's choice of modules. `unchecked` lists the settings that were not matched; they exclude no module.

    A regular expression of target_modules with lookarounds or word boundaries is matched without them. So it may choose
    more modules than PEFT does, and never fewer; the file has the tensors of those that PEFT chose.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Read the fields. Raises Invalid if one has a form that PEFT does not know."""
        self.unchecked: list[str] = []
        self._config = config
        self._names = config.get("target_modules")
        self.is_all_linear = isinstance(self._names, str) and self._names.lower() == ALL_LINEAR
        self._chosen = self._make_matcher("target_modules", otherwise=True)
        self._excluded = self._make_matcher("exclude_modules", otherwise=False)
        self._layers = self._read_layers()
        self._patterns = self._read_patterns()

    def includes(self, module: str, kind: str = "Linear") -> bool:
        """Return whether PEFT makes a LoRA on `module`, a layer of the base of this kind."""
        if self._excluded(module) or not self._chosen(module) or (self.is_all_linear and kind not in _LINEAR):
            return False
        if self._layers is None or not isinstance(self._names, list) or module in self._names:
            return True
        return self._patterns is None or _find_layer_number(module, self._patterns) in self._layers

    def _make_matcher(self, field: str, *, otherwise: bool) -> _Chooses:
        value = self._config.get(field)
        if value is None or (field == "exclude_modules" and not value):
            return lambda _: otherwise
        if isinstance(value, str):
            is_all = field == "target_modules" and self.is_all_linear
            return (lambda module: module not in _HEADS) if is_all else self._compile(field, value, otherwise=otherwise)
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise Invalid(f"{field} is {shown(value)}, expected a list of names or a regular expression")
        names = set(value)
        return lambda module: not names.isdisjoint(_list_tails(module))

    def _compile(self, field: str, pattern: str, *, otherwise: bool) -> _Chooses:
        try:
            regex = NameRegex(pattern if field == "exclude_modules" else widened(pattern), whole=True)
        except ValueError as error:
            self._give_up(field, pattern, str(error))
            return lambda _: otherwise

        def is_match(module: str) -> bool:
            try:
                return regex.matches(module)
            except ValueError as error:
                self._give_up(field, pattern, str(error))
                return otherwise

        return is_match

    def _read_layers(self) -> set[int] | None:
        layers = self._config.get("layers_to_transform")
        if layers is None or layers == []:
            return None
        numbers = layers if isinstance(layers, list) else [layers]
        if not all(type(number) is int for number in numbers):
            raise Invalid(f"layers_to_transform is {shown(layers)}, expected whole numbers")
        return set(numbers)

    def _read_patterns(self) -> list[re.Pattern[str]] | None:
        """Return the patterns that find a layer's number in a name, or None if the search might take unbounded time."""
        value = self._config.get("layers_pattern") or []
        patterns = [value] if isinstance(value, str) else value
        if not isinstance(patterns, list) or not all(isinstance(pattern, str) for pattern in patterns):
            raise Invalid(f"layers_pattern is {shown(value)}, expected names")
        if len(patterns) > MAX_PATTERNS:
            raise Invalid(f"layers_pattern has {len(patterns)} names, at most {MAX_PATTERNS} are matched")
        if self._layers is not None and (odd := [pattern for pattern in patterns if not _PLAIN.fullmatch(pattern)]):
            self._give_up("layers_pattern", odd[0], "only plain names can be")
            return None
        return [re.compile(rf"(?:^|.*?\.){pattern}\.(\d+)\.") for pattern in patterns] or [_FIRST_NUMBER]

    def _give_up(self, field: str, pattern: str, reason: str) -> None:
        clause = (
            f"{field} {shown(pattern)} is not matched here ({reason}), so check whether PEFT would leave out some "
            "of the adapter's modules"
        )
        if clause not in self.unchecked:
            self.unchecked.append(clause)


def left_out(targets: TargetModules, modules: Mapping[str, str]) -> str | None:
    """Return a clause that names the `modules` (name → kind) on which PEFT would make no LoRA, or None."""
    outside = [module for module, kind in modules.items() if not targets.includes(module, kind)]
    if not outside:
        return None
    return (
        f"its config does not choose {listed(outside, limit=5)} (by target_modules, exclude_modules or "
        "layers_to_transform), so PEFT would leave their tensors out: restore the config that was saved with them"
    )


def _list_tails(module: str) -> list[str]:
    """Return the whole name, and the rest of it after each dot."""
    return [module, *(module[at + 1 :] for at, character in enumerate(module) if character == ".")]


def _find_layer_number(module: str, patterns: list[re.Pattern[str]]) -> int | None:
    first = next((match for pattern in patterns if (match := pattern.match(module))), None)
    return None if first is None else int(first[1])


class TargetParameters:
    """The config's target_parameters. PEFT chooses a parameter if its name, or the rest after a dot, is among them."""

    def __init__(self, saved: SavedAdapter) -> None:
        self._names = set(saved.names("target_parameters"))
        self._base = saved.base

    def of(self, module: str) -> Sequence[Parameter]:
        """Return the chosen parameters that `module` owns directly."""
        if not self._names:
            return ()
        return [parameter for parameter in self._base.owned(module) if self._is_chosen(parameter.name)]

    def _is_chosen(self, name: str) -> bool:
        dots = (at for at, character in enumerate(name) if character == ".")
        return name in self._names or any(name[at + 1 :] in self._names for at in dots)
