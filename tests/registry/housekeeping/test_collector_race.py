"""A sample of the collector's race; `make soak` runs it for 10⁵ operations on each database."""

from collections.abc import Callable
from contextlib import ExitStack

import pytest

from tests.collector_race import FORBIDDEN, race, told
from tests.registry.conftest import Storage
from tests.registry.material import Material


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_no_version_loses_its_bytes_to_a_collector_without_a_grace(
    database: str, storage: Storage, material: Material, record_property: Callable[[str, object], None]
) -> None:
    with ExitStack() as opened:
        environment = {}
        if database == "postgresql":
            environment["LORATREE_DATABASE"] = opened.enter_context(storage.postgresql().migrated())
        counts = race(storage.settings(**environment), material, operations=120)
    record_property("measured", f"the collector's race on {database}: {told(counts)}")
    assert not any(counts[name] for name in FORBIDDEN), told(counts)
    assert counts["publishes"] > 10
    assert counts["collected"] > 5
