"""What a chain does to each tensor of the base, as parts of one adapter that need no base."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce

import torch
from torch import Tensor

from loratree_composer.arithmetic.edits import Add, Edit, Replace, ReplaceRows, Rescale, Shift, joined
from loratree_composer.arithmetic.lowrank import LowRank, concat
from loratree_composer.arithmetic.merge import merge_into
from loratree_composer.arithmetic.precision import full_float32
from loratree_composer.arithmetic.program import Program
from loratree_registry.errors import Invalid, listed

REMEDY = "compose it by merging"


@dataclass(frozen=True, slots=True, eq=False)
class FlatParts:
    """The parts by the base's tensor names: what is added, and what is put in place of the base's values.

    A delta is the way round that the tensor is stored. Rows are [n] ids, ascending, and their values [n, …]; a tensor
    with rows and a delta has the rows replaced first.
    """

    deltas: dict[str, LowRank] = field(default_factory=dict)
    shifts: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def names(self) -> set[str]:
        """Every tensor that changes."""
        return {*self.deltas, *self.shifts, *self.values, *self.rows}


def flat_parts(programs: Mapping[str, Program]) -> FlatParts:
    """The parts of what `programs` do, summed in float32. Raises Invalid, naming every tensor that has no such form.

    A whole value takes in all that comes after it. A sum that is rescaled is no sum of products, and rows that are
    replaced behind a delta are none either.
    """
    parts, ordered, mixed = FlatParts(), [], []
    with full_float32():
        for name, program in programs.items():
            edits = joined(program.edits)
            if isinstance(edits[0], Replace):
                parts.values[name] = _value(edits[0], edits[1:], name)
            elif any(isinstance(edit, Rescale) for edit in edits):
                ordered.append(name)
            elif not _add(parts, name, edits):
                mixed.append(name)
    problems = [f"DoRA rescales what is above it in {listed(ordered, limit=3)}"] if ordered else []
    problems += [f"rows of {listed(mixed, limit=3)} are replaced after deltas were added to it"] if mixed else []
    if problems:
        raise Invalid(f"one adapter cannot hold what the chain does ({'; '.join(problems)}): {REMEDY}")
    return parts


def _add(parts: FlatParts, name: str, edits: Sequence[Edit]) -> bool:
    """Adds edits with no whole value among them: rows, then deltas, or shifts; False for any other order."""
    rows = [edit for edit in edits if isinstance(edit, ReplaceRows)]
    adds = [edit for edit in edits if isinstance(edit, Add)]
    shifts = [edit.value for edit in edits if isinstance(edit, Shift)]
    if [type(edit) for edit in edits] != [ReplaceRows] * len(rows) + [Add] * len(adds) + [Shift] * len(shifts):
        return False
    if rows:
        parts.rows[name] = _united(rows)
    if adds:
        parts.deltas[name] = _concat([add.delta for add in adds], adds[0].groups)
    if shifts:
        parts.shifts[name] = torch.stack(_alike(shifts)).sum(0)
    return True


def _concat(deltas: Sequence[LowRank], groups: int) -> LowRank:
    """Σ BᵢAᵢ as one product; each group of a convolution has ranks of its own: a [rank, in], b [out, rank/groups]."""
    if groups == 1:
        return concat(deltas)
    a = torch.cat([delta.a.reshape(groups, -1, delta.a.shape[-1]) for delta in deltas], dim=1)
    return LowRank(a.flatten(0, 1), torch.cat([delta.b for delta in deltas], dim=-1))


def _value(replaced: Replace, edits: Sequence[Edit], name: str) -> Tensor:
    """The value with what comes after it, in float32 where there is anything."""
    if not edits:
        return replaced.value
    value = replaced.value.to(torch.promote_types(replaced.value.dtype, torch.float32), copy=True)
    merge_into(value, value, edits, name=name)
    return value


def _united(edits: Sequence[ReplaceRows]) -> tuple[Tensor, Tensor]:
    """The rows of all, the last value of each."""
    values = dict(
        pair
        for edit, value in zip(edits, _alike([edit.value for edit in edits]), strict=True)
        for pair in zip(edit.rows.tolist(), value, strict=True)
    )
    rows = sorted(values)
    return torch.tensor(rows), torch.stack([values[row] for row in rows])


def _alike(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors in the smallest dtype that holds all of them."""
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
    return [tensor.to(dtype) for tensor in tensors]
