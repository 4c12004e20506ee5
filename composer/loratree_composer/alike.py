"""Whether two edits, or parts of adapters, hold the same values."""

from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor


def alike(one: Any, other: Any) -> bool:
    """Tells whether two edits, or parts of them, hold the same values."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    if is_dataclass(one):
        return all(alike(getattr(one, field.name), getattr(other, field.name)) for field in fields(one))
    return bool(one == other)
