"""What a flattened chain is compressed to; standard library only."""

from dataclasses import dataclass

from loratree_registry.errors import Invalid


@dataclass(frozen=True, slots=True)
class Limit:
    """What each module of a chain is truncated to: a rank, or the least rank that keeps a share of its energy, ‖ΔW‖².

    One of the two. Raises Invalid.
    """

    rank: int | None = None
    energy: float | None = None

    def __post_init__(self) -> None:
        if (self.rank is None) == (self.energy is None):
            raise Invalid("a chain is compressed to a rank or to an energy: give one of the two")
        if self.rank is not None and not 1 <= self.rank < 2**53:
            raise Invalid(f"a rank to compress to is a whole number from 1, got {self.rank}")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise Invalid(f"an energy to keep is a number above 0 and at most 1, such as 0.99, got {self.energy}")

    def __str__(self) -> str:
        return f"rank {self.rank}" if self.energy is None else f"energy {self.energy}"
