"""Trained rows of embeddings: trainable_token_indices of an adapter; standard library only."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from math import prod
from typing import Any

from loratree_registry.errors import listed
from loratree_registry.peft_format.base_index import module_of
from loratree_registry.peft_format.findings import Refusal
from loratree_registry.peft_format.rules import TOKENS_BIAS, TOKENS_KIND, TOKENS_TWICE
from loratree_registry.peft_format.saved_adapter import SavedAdapter
from loratree_registry.peft_format.scaling import shown
from loratree_registry.peft_format.spec import RowsSpec

Ids = tuple[int, ...]


class TokenRows:
    """Reads the token rows of one adapter, whose ids stand in its config alone: by the ends of modules' names.

    `changed` are the parameters that the adapter changes otherwise as well.
    """

    def __init__(self, saved: SavedAdapter, changed: Collection[str]) -> None:
        self._saved, self._changed = saved, changed
        self._ids = self._read_ids(saved.config.get("trainable_token_indices"))

    def read(self, tensors: Mapping[str, str]) -> tuple[RowsSpec, ...]:
        """Reads the rows by their modules' names in the file, sorted by parameter; notes what is wrong."""
        found = [rows for module, key in tensors.items() for rows in self._module(module, key, tensors)]
        trained = {module for rows in found for module in map(module_of, self._saved.base.tied(rows.parameter))} | set(
            tensors
        )
        for end in sorted(self._ids):
            if not any(module.endswith(end) for module in trained):
                self._saved.findings.add(
                    f"trainable_token_indices names {end or 'rows'}, and the file holds none of them"
                )
        return tuple(sorted(found, key=lambda rows: rows.parameter))

    def _read_ids(self, value: object) -> dict[str, Ids]:
        """The ids by how their modules' names end; a list is for the embedding, by whatever name it has in the file."""
        if not value:
            return {}
        table: dict[str, Any] = value if isinstance(value, dict) else {"": value}
        if all(isinstance(ids, list) and all(type(number) is int for number in ids) for ids in table.values()):
            return {end: tuple(ids) for end, ids in table.items()}
        self._saved.findings.add(f"trainable_token_indices is {shown(value)}, expected a list of token ids")
        return {}

    def _module(self, module: str, key: str, keys: Collection[str]) -> Iterator[RowsSpec]:
        parameter, base = f"{module}.weight", self._saved.base
        chosen = {ids for end, ids in self._ids.items() if module.endswith(end)}
        if parameter not in base.parameters:
            self._saved.findings.add(f"tensor {key} has rows of {parameter}, which is not in the base")
        elif len(chosen) != 1:
            several = "several lists" if chosen else "no list"
            self._saved.findings.add(f"trainable_token_indices has {several} of ids for {module}")
        elif self._is_right(parameter, key, ids := next(iter(chosen))):
            for name in self._trained_together(parameter, keys):
                if (refusal := self._refusal(name, is_own=name == parameter)) is not None:
                    self._saved.findings.refuse(refusal, module_of(name))
                    continue
                tensor = self._saved.tensors[key]
                yield RowsSpec(parameter=name, key=key, rows=ids, dtype=tensor.dtype, shape=tensor.shape)

    def _trained_together(self, parameter: str, keys: Collection[str]) -> list[str]:
        """PEFT trains the rows of all that is tied to the embedding; those of anything else, or with rows, alone."""
        own = self._saved.base.parameters[parameter]
        if own.tied_to is not None or own.kind != "Embedding":
            return [parameter]
        tied = self._saved.base.tied(parameter)
        return [name for name in tied if name == parameter or module_of(name) not in keys]

    def _is_right(self, parameter: str, key: str, ids: Ids) -> bool:
        shape = self._saved.base.parameters[parameter].shape
        found, expected, vocabulary = self._saved.tensors[key].shape, (len(ids), *shape[1:]), prod(shape[:1])
        problems = []
        if found != expected:
            problems.append(f"tensor {key} has shape {list(found)}, expected {list(expected)}: a row for each token id")
        if outside := sorted({number for number in ids if not 0 <= number < vocabulary}):
            named = listed([str(number) for number in outside], limit=5)
            problems.append(f"trainable_token_indices has {named}, and {parameter} has the rows 0 to {vocabulary - 1}")
        if twice := sorted(number for number, count in Counter(ids).items() if count > 1):
            named = listed([str(number) for number in twice], limit=5)
            problems.append(f"trainable_token_indices has {named} more than once, and one row would win")
        for problem in problems:
            self._saved.findings.add(problem)
        return self._saved.is_float(key) and not problems

    def _refusal(self, parameter: str, *, is_own: bool) -> Refusal | None:
        kind, module = self._saved.base.parameters[parameter].kind, module_of(parameter)
        if kind not in ("Embedding", "Linear"):
            return TOKENS_KIND
        if kind == "Linear" and f"{module}.bias" in self._saved.base.parameters:
            return TOKENS_BIAS
        return TOKENS_TWICE if parameter in self._changed and (is_own or kind == "Embedding") else None
