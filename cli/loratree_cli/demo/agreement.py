"""The differences between several forms of one composition, and the verdict whether they agree."""

import math
from dataclasses import dataclass
from typing import Final

BOUND: Final = 1e-5


@dataclass(frozen=True, slots=True)
class Agreement:
    """The difference of each pair of forms: max |logits − logits'| over the largest |logit| of the reference.

    `bare` is the difference between the merged form and the bare base, the error of a composition that adds nothing.
    """

    pairs: tuple[tuple[str, str, float], ...]
    bare: float

    @property
    def holds(self) -> bool:
        """Whether every pair is within 1e-5 while the bare base is not; a NaN is never within 1e-5."""
        return all(difference <= BOUND for _, _, difference in self.pairs) and self.bare > BOUND

    def sentence(self) -> str:
        """Write the verdict in plain words."""
        if not self.bare > BOUND:
            return f"this proves nothing: the bare base is as near, {self.bare:.1e} of the largest logit"
        one, other, worst = max(self.pairs, key=lambda pair: (math.isnan(pair[2]), pair[2]))
        apart = f"{one} and {other} are furthest apart, by {worst:.1e} of the largest logit, {BOUND:.0e} allowed"
        return f"all forms agree: {apart}" if self.holds else f"the forms do not agree: {apart}"
