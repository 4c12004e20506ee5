"""The digest of a chain, which is written a shorter way where its weights are whole numbers."""

import math

from hypothesis import example, given
from hypothesis import strategies as st

from loratree_registry.core.chain import COMPOSITION_SCHEMA, Chain, Step
from loratree_registry.core.digests import digest_json

WEIGHTS = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-5, 5).map(float)


@given(st.text(), st.lists(st.tuples(st.text(), WEIGHTS), max_size=4))
@example('sha256:é\u2028\x7f\x00"\\/\U0001f600', [("a\tb", 1.0), ("", -0.0), ("c", 1e20)])
@example("base", [])
def test_every_chain_has_the_digest_of_its_canonical_json(base: str, steps: list[tuple[str, float]]) -> None:
    chain = Chain("name", base, tuple(Step("name/path", 1, digest, weight) for digest, weight in steps))
    written = [
        [digest, weight if math.fmod(weight, 1) or abs(weight) >= 2**53 else int(weight)] for digest, weight in steps
    ]
    assert chain.digest == digest_json({"schema": COMPOSITION_SCHEMA, "base": base, "chain": written})
