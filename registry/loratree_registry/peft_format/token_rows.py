"""The trained rows of embeddings (trainable_token_indices) in an adapter; standard library only."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from math import prod
from typing import Any

from loratree_registry.errors import listed
from loratree_registry.peft_format.findings import Refusal
from loratree_registry.peft_format.names import module_of
from loratree_registry.peft_format.rules import TOKENS_BIAS, TOKENS_KIND, TOKENS_TWICE
from loratree_registry.peft_format.saved_adapter import SavedAdapter
from loratree_registry.peft_format.scaling import shown
from loratree_registry.peft_format.spec import RowsSpec

Ids = tuple[int, ...]


class TokenRows:
    """A reader of the token rows of one adapter. Only the config has the ids, by the ends of modules' names.

    `changed` holds the parameters that the adapter also changes in another way.
    """

    def __init__(self, saved: SavedAdapter, changed: Collection[str]) -> None:
        self._saved, self._changed = saved, changed
        self._ids = self._read_ids(saved.config.get("trainable_token_indices"))

    def read(self, tensors: Mapping[str, str]) -> tuple[RowsSpec, ...]:
        """Read the tensors (module in the file → key); return the rows, sorted by parameter; record each problem."""
        specs = [rows for module, key in tensors.items() for rows in self._read_module(module, key, tensors)]
        base = self._saved.base
        trained = {module_of(name) for rows in specs for name in base.trained_with(rows.parameter)} | set(tensors)
        for end in sorted(self._ids):
            if not any(module.endswith(end) for module in trained):
                self._saved.findings.add(
                    f"trainable_token_indices names {end or 'rows'}, and the file holds none of them"
                )
        return tuple(sorted(specs, key=lambda rows: rows.parameter))

    def _read_ids(self, value: object) -> dict[str, Ids]:
        """Return the ids by the end of a module's name. A plain list has the empty end, which fits every module."""
        if not value:
            return {}
        table: dict[str, Any] = value if isinstance(value, dict) else {"": value}
        if all(isinstance(ids, list) and all(type(number) is int for number in ids) for ids in table.values()):
            return {end: tuple(ids) for end, ids in table.items()}
        self._saved.findings.add(f"trainable_token_indices is {shown(value)}, expected a list of token ids")
        return {}

    def _read_module(self, module: str, key: str, keys: Collection[str]) -> Iterator[RowsSpec]:
        parameter, base = f"{module}.weight", self._saved.base
        chosen = {ids for end, ids in self._ids.items() if module.endswith(end)}
        if parameter not in base.parameters:
            self._saved.findings.add(f"tensor {key} has rows of {parameter}, which is not in the base")
        elif len(chosen) != 1:
            several = "several lists" if chosen else "no list"
            self._saved.findings.add(f"trainable_token_indices has {several} of ids for {module}")
        elif self._is_valid(parameter, key, ids := next(iter(chosen))):
            for name in self._find_trained_parameters(parameter, keys):
                if (refusal := self._find_refusal(name, is_own=name == parameter)) is not None:
                    self._saved.findings.refuse(refusal, module_of(name))
                    continue
                tensor = self._saved.tensors[key]
                yield RowsSpec(parameter=name, key=key, rows=ids, dtype=tensor.dtype, shape=tensor.shape)

    def _find_trained_parameters(self, parameter: str, keys: Collection[str]) -> list[str]:
        """Return the parameters that PEFT trains with these rows: for an embedding, its ties too.

        If one of the ties has rows of its own, their ids differ, and PEFT ties none of them.
        """
        own = self._saved.base.parameters[parameter]
        if own.tied_to is not None or own.kind != "Embedding":
            return [parameter]
        tied = self._saved.base.trained_with(parameter)
        has_others = any(module_of(name) in keys for name in tied if name != parameter)
        return [parameter] if has_others else tied

    def _is_valid(self, parameter: str, key: str, ids: Ids) -> bool:
        shape = self._saved.base.parameters[parameter].shape
        got, expected, vocabulary = self._saved.tensors[key].shape, (len(ids), *shape[1:]), prod(shape[:1])
        problems = []
        if got != expected:
            problems.append(f"tensor {key} has shape {list(got)}, expected {list(expected)}: a row for each token id")
        if outside := sorted({number for number in ids if not 0 <= number < vocabulary}):
            named = listed([str(number) for number in outside], limit=5)
            problems.append(f"trainable_token_indices has {named}, and {parameter} has the rows 0 to {vocabulary - 1}")
        if twice := sorted(number for number, count in Counter(ids).items() if count > 1):
            named = listed([str(number) for number in twice], limit=5)
            problems.append(f"trainable_token_indices has {named} more than once, and one row would win")
        for problem in problems:
            self._saved.findings.add(problem)
        return self._saved.is_float(key) and not problems

    def _find_refusal(self, parameter: str, *, is_own: bool) -> Refusal | None:
        kind, module = self._saved.base.parameters[parameter].kind, module_of(parameter)
        if kind not in ("Embedding", "Linear"):
            return TOKENS_KIND
        if kind == "Linear" and f"{module}.bias" in self._saved.base.parameters:
            return TOKENS_BIAS
        return TOKENS_TWICE if parameter in self._changed and (is_own or kind == "Embedding") else None
