"""A tree with siblings, which the tests of batches share."""

from typing import Any

import pytest

from tests import tiny
from tests.composer.conftest import LEVELS, Catalog

MED, CARDIO, DIAG, ALICE = ("/".join(("tiny", *LEVELS[:depth])) for depth in (1, 2, 3, 4))


@pytest.fixture
def tree(catalog: Catalog, tmp_path: Any) -> Catalog:
    """The chain, and two more users and a sibling of cardiology beside it."""
    base = catalog.tree.base
    for seed, (path, parent) in enumerate(
        (
            (f"{DIAG}/bob", DIAG),
            (f"{DIAG}/carol", DIAG),
            (f"{MED}/surgery", MED),
            (f"{MED}/surgery/dan", f"{MED}/surgery"),
        )
    ):
        adapter = tiny.adapter(base, tmp_path / f"more{seed}", seed=20 + seed, rank=2 + 2 * (seed % 2), alpha=5)
        catalog.publish(adapter, path, parent=parent)
    return catalog
