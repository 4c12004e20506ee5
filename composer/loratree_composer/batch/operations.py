"""What a batch does beside one layer's own product, operation by operation, on tokens in the plan's order."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, slots=True, eq=False)
class Product:
    """y += w (x Aᵀ) B for n groups of `each` tokens: a [n, rank, in], b [n, rank, out], weights [n, each, 1]."""

    start: int
    stop: int
    each: int
    a: Tensor
    b: Tensor
    weights: Tensor | None

    def apply(self, x: Tensor, y: Tensor) -> None:
        """Add to y [tokens, out], for x [tokens, in]."""
        x, y = x[self.start : self.stop], y[self.start : self.stop]
        if len(self.a) == 1:
            inner = functional.linear(x, self.a[0])
            y.addmm_(inner if self.weights is None else inner * self.weights[0], self.b[0])
            return
        shape = len(self.a), self.each, -1
        inner = torch.bmm(x.view(shape), self.a.mT)
        y.view(shape).baddbmm_(inner if self.weights is None else inner * self.weights, self.b)

    def apply_to_ids(self, ids: Tensor, y: Tensor) -> None:
        """Add to y [tokens, dim], for ids [tokens] of rows of an embedding: x are rows of the identity."""
        ids, y = ids[self.start : self.stop], y[self.start : self.stop]
        groups, rank = len(self.a), self.a.shape[1]
        columns = ids.view(groups, 1, self.each).expand(groups, rank, self.each)
        inner = self.a.gather(2, columns).mT
        y.view(groups, self.each, -1).baddbmm_(inner if self.weights is None else inner * self.weights, self.b)


@dataclass(frozen=True, slots=True, eq=False)
class Gain:
    """y ← g ⊙ y for the tokens from `start` to `stop`: g [out], DoRA's m / ‖W + BA‖."""

    start: int
    stop: int
    gain: Tensor

    def apply(self, _: Tensor, y: Tensor) -> None:
        """Scale y [tokens, out]."""
        y[self.start : self.stop].mul_(self.gain)

    apply_to_ids = apply


@dataclass(frozen=True, slots=True, eq=False)
class NewRows:
    """New rows of a weight [out, in] for the tokens from `start` to `stop`: rows [n], values [n, in]."""

    start: int
    stop: int
    rows: Tensor
    values: Tensor

    def apply(self, x: Tensor, y: Tensor) -> None:
        """Replace outputs of y [tokens, out]."""
        here = slice(self.start, self.stop)
        y[here].index_copy_(-1, self.rows, functional.linear(x[here], self.values))

    def apply_to_ids(self, ids: Tensor, y: Tensor) -> None:
        """Replace y [tokens, dim] where the id is that of a new row."""
        here = slice(self.start, self.stop)
        is_new = ids[here].unsqueeze(-1) == self.rows  # [tokens, n]
        values = self.values[is_new.int().argmax(-1)]
        y[here] = torch.where(is_new.any(-1, keepdim=True), values, y[here])


@dataclass(frozen=True, slots=True, eq=False)
class Shifted:
    """y += value for the tokens from `start` to `stop`: value [out], a bias's."""

    start: int
    stop: int
    value: Tensor

    def apply(self, _: Tensor, y: Tensor) -> None:
        """Add to y [tokens, out]."""
        y[self.start : self.stop].add_(self.value)

    apply_to_ids = apply


Operation = Product | Gain | NewRows | Shifted
