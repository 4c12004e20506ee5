"""The trained rows of embeddings (trainable_token_indices) in an adapter; standard library only."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from math import prod
from typing import Any

from loratree_registry.core.manifest import PAST_FORWARD
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
        loaded = self._find_loaded(tensors)
        specs = [rows for module, key in tensors.items() for rows in self._read_module(module, key, loaded)]
        trained = {*loaded, *tensors}
        for end in sorted(self._ids):
            if not any(module.endswith(end) for module in trained):
                self._saved.findings.add(
                    f"trainable_token_indices names {end or 'rows'}, and the file holds none of them"
                )
        for module in sorted(module for module, source in loaded.items() if module == source and module not in tensors):
            self._saved.findings.add(
                f"trainable_token_indices chooses rows of {module}, and the file does not hold them"
            )
        return tuple(sorted(specs, key=lambda rows: rows.parameter))

    def _find_loaded(self, tensors: Collection[str]) -> dict[str, str]:
        """Map each module whose rows PEFT replaces to the module whose rows it takes: its own, or an embedding's.

        A plain list chooses the input embedding. Of several entries that fit tied modules, those that name a tied
        module in full are skipped if all ids are the same, and nothing is tied if they differ.
        """
        base, ids, ties = self._saved.base, self._ids, self._saved.base.token_ties()
        if "" in ids:
            named = base.input_embedding
            own = set(tensors) if named is None else {named}
            return {
                **{tied: module for module in own for tied in ties.get(module, ())},
                **{module: module for module in own},
            }
        skipped: set[str] = set()
        differing: set[str] = set()
        for embedding, tied in ties.items():
            fitting = [end for end in ids if embedding.endswith(end) or any(_fits(end, name) for name in tied)]
            if len(ids) > 1 and len(fitting) > 1:
                if all(ids[end] == ids[fitting[0]] for end in fitting):
                    skipped |= set(fitting) & set(tied)
                else:
                    differing.add(embedding)
        ends = tuple(end for end in ids if end not in skipped)
        loaded = {module: module for module in base.kinds if ends and module.endswith(ends)}
        for embedding, tied in ties.items():
            if embedding in loaded and embedding not in differing:
                loaded = {name: embedding for name in tied if name in base.kinds} | loaded
        return loaded

    def _read_ids(self, value: object) -> dict[str, Ids]:
        """Return the ids by the end of a module's name. A plain list has the empty end, which fits every module."""
        if not value:
            return {}
        table: dict[str, Any] = value if isinstance(value, dict) else {"": value}
        if all(isinstance(ids, list) and all(type(number) is int for number in ids) for ids in table.values()):
            return {end: tuple(ids) for end, ids in table.items()}
        self._saved.findings.add(f"trainable_token_indices is {shown(value)}, expected a list of token ids")
        return {}

    def _read_module(self, module: str, key: str, loaded: Mapping[str, str]) -> Iterator[RowsSpec]:
        parameter, base = f"{module}.weight", self._saved.base
        chosen = {ids for end, ids in self._ids.items() if module.endswith(end)}
        if parameter not in base.parameters:
            self._saved.findings.add(f"tensor {key} has rows of {parameter}, which is not in the base")
        elif len(chosen) != 1:
            several = "several lists" if chosen else "no list"
            self._saved.findings.add(f"trainable_token_indices has {several} of ids for {module}")
        elif loaded.get(module) != module:
            self._saved.findings.add(
                f"tensor {key} has rows of {module}, and PEFT would not load them with this config"
            )
        elif self._is_valid(parameter, key, ids := next(iter(chosen))):
            for name in (f"{tied}.weight" for tied, source in loaded.items() if source == module):
                if (refusal := self._find_refusal(name, is_own=name == parameter)) is not None:
                    self._saved.findings.refuse(refusal, module_of(name))
                    continue
                tensor = self._saved.tensors[key]
                yield RowsSpec(parameter=name, key=key, rows=ids, dtype=tensor.dtype, shape=tensor.shape)

    def _is_valid(self, parameter: str, key: str, ids: Ids) -> bool:
        shape = self._saved.base.parameters[parameter].shape
        got, expected, vocabulary = self._saved.tensors[key].shape, (len(ids), *shape[1:]), prod(shape[:1])
        problems = []
        if got != expected:
            problems.append(f"tensor {key} has shape {list(got)}, expected {list(expected)}: a row for each token id")
        if outside := sorted({number for number in ids if not 0 <= number < vocabulary}):
            named = listed([str(number) for number in outside], limit=5)
            problems.append(
                f"trainable_token_indices has {named}, and {parameter} has the rows 0 to {vocabulary - 1}: if the "
                "vocabulary was resized for the training, save the resized base, add it, and publish to its tree"
            )
        if twice := sorted(number for number, count in Counter(ids).items() if count > 1):
            named = listed([str(number) for number in twice], limit=5)
            problems.append(f"trainable_token_indices has {named} more than once, and one row would win")
        for problem in problems:
            self._saved.findings.add(problem)
        return self._saved.is_float(key) and not problems

    def _find_refusal(self, parameter: str, *, is_own: bool) -> Refusal | None:
        # A layer whose weight is read past its forward takes rows: PEFT replaces them in the weight that is read.
        kind = self._saved.base.parameters[parameter].kind.removesuffix(f"({PAST_FORWARD})")
        module = module_of(parameter)
        if kind not in ("Embedding", "Linear"):
            return TOKENS_KIND
        if kind == "Linear" and f"{module}.bias" in self._saved.base.parameters:
            return TOKENS_BIAS
        return TOKENS_TWICE if parameter in self._changed and (is_own or kind == "Embedding") else None


def _fits(end: str, module: str) -> bool:
    """Return whether PEFT takes an entry for a tied module: by the end of its name, or by a word in it."""
    return module.endswith(end) or end in module.split(".")
