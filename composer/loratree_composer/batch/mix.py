"""What the layers of a model compute now: one plan, and the operations that it means for each layer."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from loratree_composer.batch.operations import Gain, NewRows, Operation, Product, Shifted
from loratree_composer.batch.plan import Level, Plan, Prefix, Run
from loratree_registry.core.text import counted
from loratree_registry.errors import Invalid

Gains = Mapping[tuple[str, Prefix], Tensor]  # DoRA's, by the name of the weight and the sum that it scales


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """One layer's work in one pass: operations before the bias, and after it, on tokens in the plan's order.

    `indices` are the tokens in this order and their places in it, or None if they are in this order already.
    """

    before: list[Operation]
    after: list[Operation]
    indices: tuple[Tensor, Tensor] | None

    @property
    def has_gain(self) -> bool:
        """True if the product with the weight is scaled, so that the bias must wait."""
        return any(isinstance(operation, Gain) for operation in self.before)


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """A plan with its gains, and the tasks that were made of it.

    If some segments' last tokens alone reach the last layers, as with transformers' logits_to_keep, `kept` is the work
    of these tokens.
    """

    plan: Plan
    gains: Gains
    kept: "Work | None" = None
    tasks: dict[tuple[str, int], Task] = field(default_factory=dict)

    def task(self, name: str, tokens: int, device: torch.device) -> Task:
        """Return the task of the weight `name` for a number of tokens. Raises Invalid if the plan has others."""
        if self.kept is not None and tokens == self.kept.plan.tokens != self.plan.tokens:
            return self.kept.task(name, tokens, device)
        if tokens % self.plan.tokens:
            raise Invalid(
                f"{name} got {counted(tokens, 'token')} for a batch of "
                f"{counted(self.plan.tokens, 'path' if self.plan.is_rows else 'token')}: give a path for each row of "
                "the model's input"
            )
        factor = tokens // self.plan.tokens
        if (task := self.tasks.get((name, factor))) is None:
            bias = f"{name.removesuffix('weight')}bias"
            before = [
                operation
                for depth, level in enumerate(self.plan.levels)
                if depth >= self.plan.depths.get(name, 0)
                for operation in self._find_operations(level, name, factor)
            ]
            after: list[Operation] = [
                Shifted(factor * span.start, factor * span.stop, span.path[-1][1] * span.node.shifts[bias])
                for depth, level in enumerate(self.plan.levels)
                if depth >= self.plan.depths.get(bias, 0)
                for span in level.spans
                if bias in span.node.shifts
            ]
            task = self.tasks[name, factor] = Task(before, after, self.plan.indices(factor, device))
        return task

    def _find_operations(self, level: Level, name: str, factor: int) -> Iterator[Operation]:
        for span in level.spans:
            if (edit := span.node.rows.get(name)) is not None:
                yield NewRows(factor * span.start, factor * span.stop, edit.rows, edit.value)
        for run in level.runs:
            if name in run.block.a:
                yield _product(run, name, factor)
        for span in level.spans:
            if name in span.node.magnitudes:
                yield Gain(factor * span.start, factor * span.stop, self.gains[name, span.prefix])


def _product(run: Run, name: str, factor: int) -> Product:
    slots, each, start = slice(run.slot, run.slot + run.count), factor * run.each, factor * run.start
    a, b = run.block.a[name][slots], run.block.b[name][slots]
    weights = None
    if run.weights is not None:
        weights = torch.tensor(run.weights, dtype=a.dtype, device=a.device).repeat_interleave(factor)
        weights = weights.view(run.count, each, 1)
    return Product(start, start + run.count * each, each, a, b, weights)


class Mix:
    """The work of the next pass, for all layers of a model; whichever thread runs the model.

    The owner replaces it between two passes. None means the bare base.
    """

    def __init__(self) -> None:
        self.work: Work | None = None
