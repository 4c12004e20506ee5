"""The effect of a chain on each tensor of the base, as parts of one adapter that need no base values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce

import torch
from torch import Tensor

from loratree_composer.arithmetic.edits import Add, Edit, Replace, ReplaceRows, Rescale, Shift
from loratree_composer.arithmetic.lowrank import LowRank, concat
from loratree_composer.arithmetic.merge import check_deltas, check_held, is_surely_finite, merge_into
from loratree_composer.arithmetic.precision import full_float32
from loratree_composer.arithmetic.program import Program
from loratree_registry.core.progress import Tick, uncounted
from loratree_registry.errors import Invalid, listed

REMEDY = "compose it by merging"


@dataclass(frozen=True, slots=True, eq=False)
class FlatParts:
    """The parts by the base's tensor names: deltas and shifts are added, values and rows replace the base's values.

    A delta has the orientation of the stored tensor. Rows are [n] ids, ascending, and their values [n, …]. If a tensor
    has rows and a delta, the rows are replaced first.
    """

    deltas: dict[str, LowRank] = field(default_factory=dict)
    shifts: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def names(self) -> set[str]:
        """The names of all tensors that change."""
        return {*self.deltas, *self.shifts, *self.values, *self.rows}


def flat_parts(
    programs: Mapping[str, Program], dtypes: Mapping[str, torch.dtype], *, on_done: Tick = uncounted
) -> FlatParts:
    """Return the parts of `programs`, summed in float32. Raises Invalid, naming every tensor that has no such form.

    `dtypes` are those of the base's tensors: a sum that is not finite there is refused, as a merge refuses it.

    A whole value absorbs all later edits. A tensor that is rescaled, or has rows replaced after a delta, has no such
    form, because the result is not a sum of products.
    """
    parts, ordered, mixed = FlatParts(), [], []
    with full_float32():
        for name, program in programs.items():
            # The leaf may join the ancestors' product here, as a flattened adapter has no cached sum of the ancestors.
            edits = program.joined_edits
            if name in dtypes:
                _check_finite(program, edits, dtypes[name])
            if isinstance(edits[0], Replace):
                parts.values[name] = _compute_value(edits[0], edits[1:], name)
            elif any(isinstance(edit, Rescale) for edit in edits):
                ordered.append(name)
            elif not _add(parts, name, edits):
                mixed.append(name)
            on_done(1)
    problems = [f"DoRA rescales what is above it in {listed(ordered, limit=3)}"] if ordered else []
    problems += [f"rows of {listed(mixed, limit=3)} are replaced after deltas were added to it"] if mixed else []
    if problems:
        raise Invalid(f"one adapter cannot hold what the chain does ({'; '.join(problems)}): {REMEDY}")
    return parts


def _check_finite(program: Program, edits: Sequence[Edit], dtype: torch.dtype) -> None:
    adds = [edit for edit in edits if isinstance(edit, Add)]
    if not is_surely_finite(adds, dtype):
        check_deltas(program.edits, dtype, name=program.name)  # made again, in a merge's own order
    for edit in edits:
        if isinstance(edit, Replace | ReplaceRows | Shift):
            check_held(edit.value, dtype, name=program.name)


def _add(parts: FlatParts, name: str, edits: Sequence[Edit]) -> bool:
    """Add edits without a whole value to `parts`: rows, then deltas, or shifts. Return False for any other order."""
    rows = [edit for edit in edits if isinstance(edit, ReplaceRows)]
    adds = [edit for edit in edits if isinstance(edit, Add)]
    shifts = [edit.value for edit in edits if isinstance(edit, Shift)]
    if [type(edit) for edit in edits] != [ReplaceRows] * len(rows) + [Add] * len(adds) + [Shift] * len(shifts):
        return False
    if rows:
        parts.rows[name] = _unite_rows(rows)
    if adds:
        parts.deltas[name] = concat([add.delta for add in adds], adds[0].groups)
    if shifts:
        parts.shifts[name] = torch.stack(_cast_alike(shifts)).sum(0)
    return True


def _compute_value(replaced: Replace, edits: Sequence[Edit], name: str) -> Tensor:
    """Return the value after the later edits, in float32 or wider if there are any."""
    if not edits:
        return replaced.value
    value = replaced.value.to(torch.promote_types(replaced.value.dtype, torch.float32), copy=True)
    merge_into(value, value, edits, name=name)
    return value


def _unite_rows(edits: Sequence[ReplaceRows]) -> tuple[Tensor, Tensor]:
    """Return the rows of all edits, each row with its last value."""
    values = dict(
        pair
        for edit, value in zip(edits, _cast_alike([edit.value for edit in edits]), strict=True)
        for pair in zip(edit.rows.tolist(), value, strict=True)
    )
    rows = sorted(values)
    return torch.tensor(rows), torch.stack([values[row] for row in rows])


def _cast_alike(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors in the smallest dtype that holds all of them."""
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
    return [tensor.to(dtype) for tensor in tensors]
