"""Level weights against the chain that they are for, and the way they take: a query, a digest, a lockfile."""

import hashlib
import json
import math
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
import rfc8785
from hypothesis import example, given
from hypothesis import strategies as st

from loratree_registry.catalog.level_weights import level_weights
from loratree_registry.core.chain import Chain, Step
from loratree_registry.database.rows import VersionRow
from loratree_registry.errors import Invalid
from loratree_registry.wire.query import read, written
from loratree_registry.workspace.lockfile import LOCKFILE, Artifact, Lockfile, read_lockfile
from tests.registry.material import sha256

MED, CARDIO = "tiny/medicine", "tiny/medicine/cardiology"


def version(path: str, number: int = 1, **rules: int) -> VersionRow:
    """A version whose adapter has so many parts of each rule."""
    summary = {"ranks": [4], "scales": [2.0], "modules": 14, "parameters": 9, "dtypes": ["F32"]}
    return VersionRow(
        id=number,
        node_id=1,
        path=path,
        level="domain",
        base="tiny",
        base_digest=sha256(b"base"),
        number=number,
        digest=sha256(path.encode()),
        content=sha256(b"content"),
        config={},
        summary=summary | {"rules": rules or {"additive": 14}},
        size=1,
        note=None,
        created_at=datetime(2026, 1, 31, tzinfo=UTC),
        pin_path=None,
        pin_number=None,
        pin_digest=None,
        pin_found="explicit",
        pin_forced=False,
        withdrawn_at=None,
        withdrawn_reason=None,
        quarantined_at=None,
        quarantined_reason=None,
        head=number,
        pin_head=None,
    )


ADDITIVE = [version(MED), version(CARDIO, 3)]


def refusal(chain: list[VersionRow], weights: Any) -> str:
    with pytest.raises(Invalid) as caught:
        level_weights(CARDIO, chain, weights)
    return str(caught.value)


def test_a_level_that_is_not_named_counts_once() -> None:
    assert level_weights(CARDIO, ADDITIVE, {CARDIO: -0.25}) == [1.0, -0.25]
    assert level_weights(CARDIO, ADDITIVE, {}) == level_weights(CARDIO, ADDITIVE, None) == [1.0, 1.0]
    assert level_weights("tiny", [], None) == []


def test_a_weight_is_a_float_and_zero_has_no_sign() -> None:
    assert [str(weight) for weight in level_weights(CARDIO, ADDITIVE, {MED: -0.0, CARDIO: 2})] == ["0.0", "2.0"]


def test_every_weight_that_the_chain_does_not_take_is_named_in_one_sentence() -> None:
    chain = [*ADDITIVE, version(f"{CARDIO}/alice", 2, additive=7, ordered=7)]
    weights = {"tiny/law": 1, MED: math.nan, CARDIO: "0.5", f"{CARDIO}/alice": 0.5}
    assert refusal(chain, weights) == (
        f"{CARDIO} does not take these level weights (tiny/law is not in its chain; {MED} has NaN, expected a finite "
        f'number; {CARDIO} has "0.5", expected a finite number; {CARDIO}/alice@2 has ordered parts, so it takes 1, or '
        f"0 to drop the level, got 0.5): its levels are {MED}; {CARDIO}; {CARDIO}/alice"
    )


NO_NUMBERS: list[Any] = [math.nan, math.inf, -math.inf, True, False, "1", "", None, [1], {}, 1j, 10**400, 2**53 + 1]
NO_NUMBERS += [10**5000, {(1, 2): 3}, object()]


@pytest.mark.parametrize("weight", NO_NUMBERS, ids=lambda weight: repr(weight)[:20] if weight != 10**5000 else "huge")
def test_what_is_no_finite_number_is_no_weight(weight: Any) -> None:
    sentence = refusal(ADDITIVE, {MED: weight})
    assert f"{MED} has " in sentence
    assert "expected a finite number" in sentence
    assert sentence.isprintable()
    assert len(sentence) < 300
    assert refusal(ADDITIVE, read(written({MED: weight}))) == sentence  # the same over HTTP


@pytest.mark.parametrize(
    "path", ["tiny", "tiny/medicin", f"{MED}@1", f"{CARDIO}/alice", "", "a\nb", "x" * 500, 7, None]
)
def test_a_path_that_is_not_in_the_chain_is_refused_and_the_levels_are_named(path: Any) -> None:
    sentence = refusal(ADDITIVE, {path: 0.5})
    assert f"is not in its chain): its levels are {MED}; {CARDIO}" in sentence
    assert sentence.isprintable()
    assert len(sentence) < 300
    assert refusal(ADDITIVE, read(written({path: 0.5}))) == sentence


def test_a_base_alone_has_no_level_to_weight() -> None:
    with pytest.raises(Invalid, match=r"\(tiny is not in its chain\): it is the base alone, without a level"):
        level_weights("tiny", [], {"tiny": 0.5})


@pytest.mark.parametrize(
    ("rules", "named"),
    [
        ({"override": 1}, "override"),
        ({"ordered": 14}, "ordered"),
        ({"additive": 14, "override": 2}, "override"),
        ({"additive": 3, "ordered": 1, "override": 2}, "override and ordered"),
    ],
)
def test_what_overrides_or_is_ordered_is_taken_whole_or_dropped(rules: dict[str, int], named: str) -> None:
    chain = [version(MED, 5, **rules)]
    for weight in (0, 1, 0.0, -0.0, 1.0):
        assert level_weights(CARDIO, chain, {MED: weight}) == [weight]
    for weight in (0.5, -1, 2, 5e-324, 1 - 2**-53):
        sentence = f"{MED}@5 has {named} parts, so it takes 1, or 0 to drop the level, got {weight}"
        assert sentence in refusal(chain, {MED: weight})


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ([MED], f"'{MED}' is not PATH:NUMBER"),
        ([""], "'' is not PATH:NUMBER"),
        ([f"{MED}=1", f"{MED}:1"], f"'{MED}=1' is not PATH:NUMBER"),
        ([f"{MED}:1", f"{MED}:1"], f"'{MED}' is given 2 times"),
        ([MED, f"{CARDIO}:1", f"{CARDIO}:2"], f"'{MED}' is not PATH:NUMBER; '{CARDIO}' is given 2 times"),
    ],
)
def test_a_query_that_is_not_one_number_a_path_is_refused(query: list[str], named: str) -> None:
    with pytest.raises(Invalid, match=r"such as weight=tiny/medicine:0\.5: ") as caught:
        read(query)
    assert named in str(caught.value)


@pytest.mark.parametrize(
    "number", ["", "abc", "nan", ".5", "0x1", "1_0", " ", "1e999", "true", "[" * 100_000, "9" * 5000]
)
def test_a_number_that_is_not_jsons_is_refused_with_the_chains_sentence(number: str) -> None:
    sentence = refusal(ADDITIVE, read([f"{MED}:{number}"]))
    assert f"{MED} has " in sentence
    assert len(sentence) < 300


numbers = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53)


@given(numbers)
@example(-0.0)
@example(5e-324)
@example(1.7976931348623157e308)
@example(1e16)
@example(1e21)
@example(2**53)
def test_a_weight_comes_through_query_digest_and_lockfile_as_it_is(
    tmp_path_factory: pytest.TempPathFactory, weight: float
) -> None:
    [held] = level_weights(MED, [version(MED)], read(written({MED: weight})))
    assert held == weight
    chain = Chain("tiny", sha256(b"base"), (Step(MED, 1, sha256(b"a"), held),))
    document: dict[str, Any] = {
        "schema": "loratree/composition/1",
        "base": sha256(b"base"),
        "chain": [[sha256(b"a"), float(weight)]],
    }
    assert chain.digest == "sha256:" + hashlib.sha256(rfc8785.dumps(document)).hexdigest()
    folder = tmp_path_factory.mktemp("lockfile")
    Lockfile(MED, chain, Artifact("merge", "F32", ())).write(folder)
    found = read_lockfile(folder)
    assert found is not None
    assert (found.chain, found.chain.digest) == (chain, chain.digest)
    assert json.loads((folder / LOCKFILE).read_text())["chain"][0]["weight"] == weight


@given(st.lists(st.integers(-(2**53), 2**53), min_size=1, max_size=4))
def test_a_whole_weight_is_the_same_composition_as_int_and_as_float(weights: list[int]) -> None:
    steps = tuple(Step(MED, 1, sha256(b"a"), weight) for weight in weights)
    whole = Chain("tiny", sha256(b"base"), steps)
    floats = replace(whole, steps=tuple(replace(step, weight=float(step.weight)) for step in steps))
    signed = replace(whole, steps=tuple(replace(step, weight=step.weight or -0.0) for step in steps))
    files = [
        json.dumps(Lockfile(MED, chain, Artifact("merge", "F32", ())).to_json()) for chain in (whole, floats, signed)
    ]
    assert len({chain.digest for chain in (whole, floats, signed)}) == len(set(files)) == 1
