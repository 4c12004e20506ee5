"""The start of a digest, as screens print it, selects a version wherever the whole digest does."""

from collections.abc import Callable

import pytest
from sqlalchemy import text

from loratree_registry.core.registry import Registry
from loratree_registry.database.engine import writing
from loratree_registry.errors import Gone, Invalid, NotFound
from tests.registry.conftest import Build
from tests.registry.material import Material, publish

MED, CARDIO = "tiny/medicine", "tiny/medicine/cardiology"
ASKS: dict[str, Callable[[Registry, str], object]] = {
    "version": lambda registry, ref: registry.version(ref),
    "resolve": lambda registry, ref: registry.resolve(ref).chain,
    "follow": lambda registry, ref: registry.resolve(ref, follow="latest").chain,
    "lineage": lambda registry, ref: registry.lineage(ref).edges,
    "ancestry": lambda registry, ref: registry.ancestry(ref),
    "dependents": lambda registry, ref: registry.dependents(ref),
    "documents": lambda registry, ref: registry.documents(ref),
    "damaged": lambda registry, ref: registry.damaged_files(ref),
    "withdraw": lambda registry, ref: registry.withdraw(ref, reason="diverges"),
    "quarantine": lambda registry, ref: registry.quarantine(ref, reason="names"),
}


@pytest.fixture
def filled(registry: Registry, material: Material) -> Registry:
    publish(registry, MED, material.rank4, "base")
    publish(registry, MED, material.rank2, "base")
    publish(registry, CARDIO, material.rank2, f"{MED}@1")
    return registry


def starts_of(digest: str) -> list[str]:
    """The forms in which people have a digest at hand."""
    bare = digest.removeprefix("sha256:")
    return [bare[:12], f"sha256:{bare[:12]}", bare[:13], bare[:40], f"sha256:{bare[:63]}", bare, digest]


@pytest.mark.parametrize("ask", ASKS)
def test_the_start_of_a_digest_is_the_digest(filled: Registry, ask: str) -> None:
    digest = filled.version(f"{MED}@1").digest
    whole = ASKS[ask](filled, f"{MED}@1")
    for start in starts_of(digest):
        assert ASKS[ask](filled, f"{MED}@{start}") == whole, start


def test_a_parent_is_named_by_the_start_of_its_digest(filled: Registry, material: Material) -> None:
    for start in starts_of(filled.version(f"{MED}@1").digest):
        again = publish(filled, CARDIO, material.rank2, f"{MED}@{start}")
        assert (again.created, again.version.pin.version) == (False, 1)


def test_a_start_that_no_digest_has_or_that_is_too_short_selects_nothing(filled: Registry) -> None:
    digest = filled.version(f"{MED}@1").digest
    other = "".join("1" if digit == "0" else "0" for digit in digest[7:19])
    for start in (other, f"sha256:{other}", "abcdefabcdef", digest[7:19] + other):
        for ask in ("version", "resolve", "lineage", "withdraw"):
            with pytest.raises(NotFound, match=r"has no version .*: it has versions 1 to 2 and no alias"):
                ASKS[ask](filled, f"{MED}@{start}")
    with pytest.raises(Invalid, match="the first 12 or more digits of a digest"):
        filled.version(f"{MED}@{digest[:18]}")
    with pytest.raises(NotFound, match=r"a digest follows the path of its node, as in tiny/medicine@abcdefabcdef"):
        filled.version("abcdefabcdef")
    with pytest.raises(Invalid, match=f"is a digest: it follows the path of its node, as in tiny/medicine@{digest}"):
        filled.version(digest)


def test_an_alias_of_the_same_letters_comes_first(filled: Registry) -> None:
    filled.set_alias(MED, "abcdefabcdef", version=2, expected=None)
    assert filled.version(f"{MED}@abcdefabcdef").number == 2
    with pytest.raises(Invalid, match="may be another one at any time"):
        filled.withdraw(f"{MED}@abcdefabcdef", reason="diverges")


def test_the_start_of_a_deleted_versions_digest_tells_of_its_deletion(filled: Registry) -> None:
    digest = filled.version(f"{MED}@2").digest
    assert filled.delete(f"{MED}@{digest[:20]}", reason="by mistake").number == 2
    for start in starts_of(digest):
        with pytest.raises(Gone, match=f"{MED}@2 was deleted on .* .by mistake."):
            filled.version(f"{MED}@{start}")


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_a_start_that_two_digests_share_is_refused_with_both(build: Build, material: Material, database: str) -> None:
    registry = build(database).registry
    registry.add_base("tiny", material.base)
    for number, adapter in enumerate((material.rank4, material.rank2, material.rank4.variant(1)), start=1):
        publish(registry, MED, adapter, "base")
        made_up = "sha256:" + ("fedcba987654" if number < 3 else "fedcba987655") + f"{number:052}"
        with writing(registry._engine) as connection:
            connection.execute(
                text("UPDATE versions SET digest = :digest WHERE number = :number"),
                {"digest": made_up, "number": number},
            )
    for start in ("fedcba987654", "sha256:fedcba987654", "fedcba987654" + "0" * 51):
        with pytest.raises(Invalid, match=r"is the start of several digests: .*@1 .*; .*@2 .*; give more digits"):
            registry.version(f"{MED}@{start}")
    assert [registry.version(f"{MED}@fedcba98765{last}").number for last in ("4" + "0" * 51 + "1", "5")] == [1, 3]
    for ask in ("resolve", "follow", "lineage", "withdraw"):  # letters first, as an alias may have them
        assert ASKS[ask](registry, f"{MED}@fedcba987655") == ASKS[ask](registry, f"{MED}@3"), ask
