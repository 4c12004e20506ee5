"""The migrations: they make the schema that the tables say, on both databases, once, whoever else migrates."""

import multiprocessing
import re
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, delete, insert, inspect, text

import loratree_migrations
from loratree_registry.core.digests import version_digest
from loratree_registry.core.times import now
from loratree_registry.database import queries
from loratree_registry.database.engine import open_engine, prepare, reading, upgrade_database, writing
from loratree_registry.database.tables import metadata, tombstones
from loratree_registry.embedded.registry import open_embedded
from loratree_registry.embedded.storage import upgrade
from loratree_registry.errors import LoratreeError, Unavailable
from tests.registry import old_rows
from tests.registry.conftest import Storage
from tests.registry.material import Material, publish

POSTGRESQL_SCHEMA = """
    SELECT format('%s.%s %s %s %s', table_name, column_name, data_type, is_nullable, collation_name)
    FROM information_schema.columns WHERE table_schema = 'public'
    UNION SELECT format('%s %s %s', conrelid::regclass, conname, pg_get_constraintdef(oid))
    FROM pg_constraint WHERE connamespace = 'public'::regnamespace
    UNION SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'
"""


def sqlite_schema(connection: Connection) -> set[str]:
    """Every column and constraint of every table, and every index, as SQLite keeps them."""
    statements = connection.execute(text("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")).all()
    return {f"{name} {part}" for name, sql in statements for part in parts(" ".join(sql.split()))}


def parts(statement: str) -> Iterator[str]:
    """A statement cut at the commas of its outermost list: a column or a constraint each, however it was added."""
    depth, part = 0, ""
    for letter in statement:
        depth += (letter == "(") - (letter == ")")
        if (letter, depth) in ((",", 1), ("(", 1), (")", 0)):
            yield part.strip()
            part = ""
        else:
            part += letter


def postgresql_schema(connection: Connection) -> set[str]:
    """Every column with its type and collation, every constraint and every index."""
    return set(connection.execute(text(POSTGRESQL_SCHEMA)).scalars())


Schema = Callable[[Connection], set[str]]


@pytest.fixture(params=["sqlite", "postgresql"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@contextmanager
def new(kind: str, storage: Storage) -> Iterator[str]:
    """The address of a new database without a schema."""
    if kind == "sqlite":
        yield f"sqlite:///{tempfile.mkdtemp(dir=storage.folder)}/loratree.db"
    else:
        with storage.postgresql().empty() as address:
            yield address


def test_the_migrated_schema_is_the_one_that_the_tables_say(kind: str, storage: Storage) -> None:
    schema: Schema = sqlite_schema if kind == "sqlite" else postgresql_schema
    with new(kind, storage) as migrated, new(kind, storage) as created:
        upgrade_database(migrated)
        first, second = open_engine(migrated), open_engine(created)
        with writing(second) as connection:
            metadata.create_all(connection)
        with reading(first) as one, reading(second) as other:
            ours = {line for line in schema(one) if "alembic_version" not in line}
            assert ours == schema(other)
            assert len(ours) > 80
        first.dispose()
        second.dispose()


def test_alembic_finds_nothing_to_migrate(kind: str, storage: Storage) -> None:
    with new(kind, storage) as address:
        upgrade_database(address)
        engine = open_engine(address)
        with reading(engine) as connection:
            context = MigrationContext.configure(connection, opts={"compare_type": True})
            assert compare_metadata(context, metadata) == []
        engine.dispose()


def test_head_is_the_last_migration_and_there_is_one_line_of_them() -> None:
    scripts = ScriptDirectory(str(Path(loratree_migrations.__file__).parent))
    assert scripts.get_heads() == [loratree_migrations.HEAD]


def test_upgrading_twice_changes_nothing(kind: str, storage: Storage) -> None:
    with new(kind, storage) as address:
        assert upgrade_database(address) == upgrade_database(address) == loratree_migrations.HEAD
        engine = open_engine(address)
        with reading(engine) as connection:
            assert loratree_migrations.current(connection) == loratree_migrations.HEAD
        engine.dispose()


def test_a_downgrade_leaves_no_table(kind: str, storage: Storage) -> None:
    with new(kind, storage) as address:
        upgrade_database(address)
        engine = open_engine(address)
        with writing(engine) as connection:
            config = Config(attributes={"connection": connection, "metadata": metadata})
            config.set_main_option("script_location", str(Path(loratree_migrations.__file__).parent))
            command.downgrade(config, "base")
            assert inspect(connection).get_table_names() == ["alembic_version"]
        engine.dispose()


def test_a_downgrade_keeps_no_bytes_that_are_not_there_and_forgets_no_tombstone(kind: str, storage: Storage) -> None:
    digest = "sha256:" + "0" * 64
    with new(kind, storage) as address:
        upgrade_database(address)
        engine = open_engine(address)
        config = Config()
        config.set_main_option("script_location", str(Path(loratree_migrations.__file__).parent))
        with writing(engine) as connection:
            config.attributes |= {"connection": connection, "metadata": metadata}
            queries.blobs.lease_blob(connection, digest, 1)
            base = queries.bases.insert_base(
                connection, name="tiny", digest=digest, parameters=1, manifest={}, architecture="x"
            )
            node = queries.nodes.insert_node(connection, base_id=base, parent_id=None, path="tiny", level="base")
            connection.execute(
                insert(tombstones).values(
                    node_id=node, number=1, digest=digest, content=digest, created_at=now(), reason="x"
                )
            )
            with pytest.raises(ValueError, match="no room for deleted versions"):
                command.downgrade(config, "0001")
            connection.execute(delete(tombstones))
            command.downgrade(config, "0001")
            assert connection.execute(text("SELECT count(*) FROM blobs")).scalar() == 0
        engine.dispose()


def test_a_migration_that_fails_leaves_no_table(kind: str, storage: Storage) -> None:
    with new(kind, storage) as address:
        engine = open_engine(address)
        with writing(engine) as connection:  # in the way of the last table
            connection.execute(text("CREATE TABLE event_views (id INTEGER)"))
        with pytest.raises(LoratreeError, match="event_views"):
            upgrade_database(address)
        with reading(engine) as connection:
            assert inspect(connection).get_table_names() == ["event_views"]
            assert loratree_migrations.current(connection) is None
        engine.dispose()


def test_eight_processes_that_migrate_one_new_database_at_once_all_succeed(kind: str, storage: Storage) -> None:
    spawn = multiprocessing.get_context("spawn")
    with new(kind, storage) as address, ProcessPoolExecutor(8, mp_context=spawn) as pool:
        assert list(pool.map(upgrade_database, [address] * 8)) == [loratree_migrations.HEAD] * 8


OLD = [script.revision for script in ScriptDirectory(str(Path(loratree_migrations.__file__).parent)).walk_revisions()][
    1:
]


def at_revision(address: str, revision: str) -> None:
    """Makes the schema of an earlier release, and puts in what that release wrote."""
    engine = open_engine(address)
    with writing(engine) as connection:
        config = Config(attributes={"connection": connection, "metadata": metadata})
        config.set_main_option("script_location", str(Path(loratree_migrations.__file__).parent))
        command.upgrade(config, revision)
        old_rows.put(connection, old_rows.read(revision))
    engine.dispose()


@pytest.mark.parametrize("revision", OLD)
def test_what_an_earlier_release_wrote_is_all_there_after_the_upgrade_and_can_be_added_to(
    kind: str, storage: Storage, revision: str, material: Material
) -> None:
    with new(kind, storage) as address:
        at_revision(address, revision)
        upgrade_database(address)
        registry = open_embedded(storage.settings(LORATREE_DATABASE=address))
        first, second, alice, other = (
            registry.version(f"tiny/medicine{ref}")
            for ref in ("@1", "@2", "/cardiology/alice@1", "/cardiology/alice@2")
        )
        for version in (first, second, alice, other):
            assert version.digest == version_digest(
                base_digest=registry.base_manifest("tiny").digest,
                pin_digest=version.pin.digest,
                config=version.config,
                files=version.files,
            )
        assert (first.note, first.pin.digest, alice.pin.digest, other.pin.found) == (
            "the first",
            None,
            first.digest,
            "assumed",
        )
        assert registry.node("tiny/medicine").aliases == {"stable": 2}
        assert [event.kind for event in reversed(registry.events("tiny").items)] == [
            "base-added",
            "node-created",
            *["version-published"] * 2,
            *["node-created"] * 2,
            *["version-published"] * 2,
            *["alias-set"] * 3,
            "alias-deleted",
        ]
        assert publish(registry, "tiny/medicine", material.rank4).version.number == 3
        registry.set_alias("tiny/medicine", "stable", version=3, expected=2)
        registry.close()


@pytest.mark.parametrize("revision", OLD)
def test_eight_who_upgrade_one_old_database_at_once_all_succeed(kind: str, storage: Storage, revision: str) -> None:
    with new(kind, storage) as address:
        at_revision(address, revision)
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(upgrade_database, [address] * 8)) == [loratree_migrations.HEAD] * 8


def test_the_embedded_sqlite_migrates_by_itself(storage: Storage) -> None:
    registry = open_embedded(storage.settings())
    assert registry.bases().items == []
    registry.close()
    connection = sqlite3.connect(storage.folder / "home" / "loratree.db")
    assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [(loratree_migrations.HEAD,)]
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_postgresql_is_not_migrated_by_itself_and_the_command_is_named(storage: Storage) -> None:
    with storage.postgresql().empty() as address:
        settings = storage.settings(LORATREE_DATABASE=address)
        with pytest.raises(
            Unavailable, match=rf"is at schema none, expected {loratree_migrations.HEAD}: run `loratree db upgrade`"
        ):
            open_embedded(settings)
        assert upgrade(settings) == loratree_migrations.HEAD
        open_embedded(settings).close()


def test_a_database_of_a_newer_release_is_refused(kind: str, storage: Storage) -> None:
    with new(kind, storage) as address:
        upgrade_database(address)
        engine = open_engine(address)
        with writing(engine) as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        for refuse in (lambda: prepare(engine), lambda: upgrade_database(address)):
            with pytest.raises(Unavailable, match=r"is at schema 9999.*install a newer loratree"):
                refuse()
        engine.dispose()


def test_the_migrations_import_nothing_of_ours() -> None:
    folder = Path(loratree_migrations.__file__).parent
    for file in folder.rglob("*.py"):
        assert not re.search(r"^\s*(from|import) loratree_(registry|cli|composer)", file.read_text(), re.MULTILINE)


def test_a_path_with_a_percent_sign_is_no_trouble(storage: Storage) -> None:
    folder = storage.folder / "50% off"
    folder.mkdir()
    assert upgrade_database(f"sqlite:///{folder}/x.db") == loratree_migrations.HEAD
