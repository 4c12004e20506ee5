"""The invariants that the schema holds, whatever the code above it does."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, Table, insert, select, update
from sqlalchemy.exc import DataError, IntegrityError

from loratree_registry.database.engine import open_engine, upgrade_database
from loratree_registry.database.tables import aliases, bases, blobs, nodes, version_files, versions
from tests.registry.conftest import Storage
from tests.registry.material import sha256

A, B = sha256(b"a"), sha256(b"b")
WRONG_DIGESTS = ["", "sha256:", A[:-1], A + "0", A.upper(), A.replace("sha256", "sha512"), A[:-1] + "g", A[:-1] + "\n"]


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest, storage: Storage) -> Iterator[Engine]:
    if request.param == "sqlite":
        address = f"sqlite:///{storage.folder}/models.db"
        upgrade_database(address)
        engine = open_engine(address)
        yield engine
        engine.dispose()
    else:
        with storage.postgresql().migrated() as address:
            engine = open_engine(address)
            yield engine
            engine.dispose()


@pytest.fixture
def connection(engine: Engine) -> Iterator[Connection]:
    """A transaction with a base, a domain with two versions, and a stored blob."""
    with engine.connect() as connection:
        add(connection, bases, name="tiny", digest=A, parameters=1, manifest={})
        add(connection, nodes, base_id=1, parent_id=None, path="tiny", level="base")
        add(connection, nodes, base_id=1, parent_id=1, path="tiny/a", level="domain")
        add(connection, blobs, sha256=A, size=1)
        add_version(connection, number=1, digest=A)
        add_version(connection, number=2, digest=B, pin_id=1)
        yield connection
        connection.rollback()


def add(connection: Connection, table: Table, **values: Any) -> None:
    connection.execute(insert(table).values(values))


def add_version(connection: Connection, **values: Any) -> None:
    given = {"node_id": 2, "base_id": 1, "content": A, "pin_found": "assumed", "config": {}, "summary": {}, "size": 1}
    add(connection, versions, **(given | values))


def refused(connection: Connection, table: Table, **values: Any) -> bool:
    """Whether the schema itself refuses a row, for its constraints and for no other reason."""
    return _refused(connection, insert(table).values(values))


def _refused(connection: Connection, statement: Any) -> bool:
    nested = connection.begin_nested()
    try:
        connection.execute(statement)
    except IntegrityError:
        nested.rollback()
        return True
    nested.rollback()
    return False


def test_a_digest_is_sha256_and_64_lower_case_hexadecimal_digits(connection: Connection) -> None:
    version = {"node_id": 2, "base_id": 1, "number": 3, "pin_found": "assumed", "config": {}, "summary": {}, "size": 1}
    for wrong in WRONG_DIGESTS:
        assert refused(connection, bases, name="x", digest=wrong, parameters=1, manifest={})
        assert refused(connection, blobs, sha256=wrong, size=1)
        assert refused(connection, versions, digest=wrong, content=A, **version)
        assert refused(connection, versions, digest=sha256(b"c"), content=wrong, **version)
    assert not refused(connection, versions, digest=sha256(b"c"), content=A, **version)


def test_a_base_is_the_root_and_no_other_node_is_one(connection: Connection) -> None:
    assert refused(connection, nodes, base_id=1, parent_id=None, path="x", level="domain")
    assert refused(connection, nodes, base_id=1, parent_id=1, path="tiny/x", level="base")
    assert refused(connection, nodes, base_id=1, parent_id=1, path="tiny/x", level="team")
    assert refused(connection, nodes, base_id=1, parent_id=99, path="tiny/x", level="task")
    assert refused(connection, nodes, base_id=99, parent_id=1, path="tiny/x", level="task")
    assert not refused(connection, nodes, base_id=1, parent_id=1, path="tiny/x", level="task")


def test_names_paths_numbers_and_digests_are_unique_where_they_name_something(connection: Connection) -> None:
    assert refused(connection, bases, name="tiny", digest=B, parameters=1, manifest={})
    assert refused(connection, nodes, base_id=1, parent_id=1, path="tiny/a", level="task")
    version = {"node_id": 2, "base_id": 1, "content": A, "pin_found": "assumed", "config": {}, "summary": {}, "size": 1}
    assert refused(connection, versions, number=1, digest=sha256(b"c"), **version)
    assert refused(connection, versions, number=3, digest=B, **version)


def test_numbers_and_sizes_count(connection: Connection) -> None:
    version = {"node_id": 2, "base_id": 1, "digest": sha256(b"c"), "content": A, "config": {}, "summary": {}}
    assert refused(connection, versions, number=0, size=1, pin_found="assumed", **version)
    assert refused(connection, versions, number=3, size=-1, pin_found="assumed", **version)
    assert refused(connection, versions, number=3, size=1, pin_found="guessed", **version)
    assert refused(connection, blobs, sha256=B, size=-1)
    assert _refused(connection, update(nodes).values(last_number=-1))


def test_a_pin_is_an_older_version_so_lineage_has_no_cycle(connection: Connection) -> None:
    assert _refused(connection, update(versions).where(versions.c.id == 1).values(pin_id=2))
    assert _refused(connection, update(versions).where(versions.c.id == 1).values(pin_id=1))
    assert _refused(connection, update(versions).where(versions.c.id == 2).values(pin_id=99))
    version = {
        "node_id": 2,
        "base_id": 1,
        "number": 3,
        "digest": sha256(b"c"),
        "content": A,
        "pin_found": "assumed",
        "size": 1,
    }
    assert not refused(connection, versions, pin_id=2, config={}, summary={}, **version)  # its key is not given here


def test_a_version_is_of_its_nodes_base(connection: Connection) -> None:
    add(connection, bases, name="other", digest=B, parameters=1, manifest={})
    assert _refused(connection, update(versions).where(versions.c.id == 1).values(base_id=2))
    assert _refused(connection, update(nodes).where(nodes.c.id == 2).values(base_id=2))


def test_a_versions_file_must_be_stored_before_it(connection: Connection) -> None:
    assert refused(connection, version_files, version_id=1, name="x", size=1, sha256=B)
    assert not refused(connection, version_files, version_id=1, name="x", size=1, sha256=A)


def test_stored_bytes_that_a_version_holds_are_not_forgotten(connection: Connection) -> None:
    add(connection, version_files, version_id=1, name="x", size=1, sha256=A)
    assert _refused(connection, blobs.delete())


def test_an_alias_names_a_version_of_its_own_node(connection: Connection) -> None:
    add(connection, nodes, base_id=1, parent_id=1, path="tiny/b", level="domain")
    assert refused(connection, aliases, node_id=3, name="stable", version_id=1)
    assert refused(connection, aliases, node_id=2, name="stable", version_id=99)
    assert not refused(connection, aliases, node_id=2, name="stable", version_id=1)


def test_a_moment_is_stored_in_utc_to_the_microsecond(connection: Connection) -> None:
    moment = datetime(2026, 1, 31, 23, 30, 0, 123456, tzinfo=timezone(timedelta(hours=-5)))
    add(connection, blobs, sha256=B, size=1, touched_at=moment)
    found = connection.execute(select(blobs.c.touched_at).where(blobs.c.sha256 == B)).scalar_one()
    assert found == moment
    assert found.utcoffset() == timedelta(0)
    assert datetime.now(UTC) - timedelta(minutes=1) < connection.execute(select(bases.c.created_at)).scalar_one()


def test_paths_compare_by_bytes(connection: Connection) -> None:
    names = ["tiny/a/b", "tiny/a-b", "tiny/a.b", "tiny/a0", "tiny/a_b", "tiny/ab", "tiny/b"]
    for name in names:
        add(connection, nodes, base_id=1, parent_id=1, path=name, level="task")
    found = (
        connection.execute(select(nodes.c.path).where(nodes.c.level == "task").order_by(nodes.c.path)).scalars().all()
    )
    assert found == sorted(names, key=str.encode)


def test_a_size_beyond_32_bits_is_kept(connection: Connection) -> None:
    try:
        add(connection, blobs, sha256=B, size=2**40)
    except DataError:  # pragma: no cover - the assertion below says what this would mean
        pytest.fail("a blob's size does not hold a terabyte")
    assert connection.execute(select(blobs.c.size).where(blobs.c.sha256 == B)).scalar_one() == 2**40
