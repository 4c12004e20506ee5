"""Chains, their digests, and the limit that a flattened chain is compressed to; standard library only."""

import hashlib
import json
import math
from dataclasses import dataclass
from typing import Final, Literal

from loratree_registry.core.digests import DIGEST_PREFIX, digest_json
from loratree_registry.errors import Invalid


@dataclass(frozen=True, slots=True)
class Limit:
    """The limit that each module of a chain is truncated to: a rank, or a share of its energy, ‖ΔW‖².

    An energy gives each module the lowest rank that keeps this share. Raises Invalid unless exactly one is given.
    """

    rank: int | None = None
    energy: float | None = None

    def __post_init__(self) -> None:
        if (self.rank is None) == (self.energy is None):
            raise Invalid("a chain is compressed to a rank or to an energy: give one of the two")
        if self.rank is not None and not (type(self.rank) is int and 1 <= self.rank < 2**53):
            raise Invalid(f"a rank to compress to is a whole number from 1, got {self.rank!r}")
        if self.energy is not None and not (isinstance(self.energy, int | float) and 0 < self.energy <= 1):
            raise Invalid(f"an energy to keep is a number above 0 and at most 1, such as 0.99, got {self.energy!r}")

    def __str__(self) -> str:
        return f"rank {self.rank}" if self.energy is None else f"energy {self.energy}"


COMPOSITION_SCHEMA: Final = "loratree/composition/1"

Mode = Literal["merge", "flatten"]


@dataclass(frozen=True, slots=True)
class Step:
    """One version of a chain and the level weight that multiplies its delta."""

    path: str
    version: int
    digest: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Chain:
    """The versions from the root to a leaf, over one base. A chain without steps is the base itself."""

    base: str
    base_digest: str
    steps: tuple[Step, ...] = ()

    @property
    def digest(self) -> str:
        """The composition digest, which names the sum W + Σ wᵢ sᵢ BᵢAᵢ, whatever its dtype and form."""
        steps = [[step.digest, weight_number(step.weight)] for step in self.steps]
        document = {"base": self.base_digest, "chain": steps, "schema": COMPOSITION_SCHEMA}
        if any(isinstance(weight, float) for _, weight in steps):
            return digest_json(document)
        # Without floats, and with sorted keys, json writes the same in a fifth of the time.
        text = json.dumps(document, separators=(",", ":"), ensure_ascii=False)
        return DIGEST_PREFIX + hashlib.sha256(text.encode()).hexdigest()


def form(mode: Mode, limit: Limit | None) -> str:
    """Return a mode and a limit as text for people: `merge`, `flatten`, `flatten to rank 32`."""
    return mode if limit is None else f"{mode} to {limit}"


def weight_number(weight: float) -> float | int:
    """Return a level weight as canonical JSON writes it: 1.0 becomes 1. Raises Invalid if it is not finite."""
    if not math.isfinite(weight):
        raise Invalid(f"a level weight is a finite number, got {weight}")
    return int(weight) if weight == int(weight) and abs(weight) < 2**53 else float(weight)
