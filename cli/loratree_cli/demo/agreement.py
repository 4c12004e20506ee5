"""How far several forms of one composition are apart, and whether that is close enough."""

import math
from dataclasses import dataclass
from typing import Final

BOUND: Final = 1e-5


@dataclass(frozen=True, slots=True)
class Agreement:
    """For each pair of forms, max |logits − logits'| over the largest |logit| of the reference.

    `bare` is the same between the merged form and the bare base: what a composition that adds nothing would miss by.
    """

    pairs: tuple[tuple[str, str, float], ...]
    bare: float

    @property
    def holds(self) -> bool:
        """Tells whether every pair is within 1e-5, while the bare base is not; a NaN is not within anything."""
        return all(difference <= BOUND for _, _, difference in self.pairs) and self.bare > BOUND

    def sentence(self) -> str:
        """The verdict in plain words."""
        if not self.bare > BOUND:
            return f"this proves nothing: the bare base is as near, {self.bare:.1e} of the largest logit"
        one, other, worst = max(self.pairs, key=lambda pair: (math.isnan(pair[2]), pair[2]))
        apart = f"{one} and {other} are furthest apart, by {worst:.1e} of the largest logit, {BOUND:.0e} allowed"
        return f"all forms agree: {apart}" if self.holds else f"the forms do not agree: {apart}"
