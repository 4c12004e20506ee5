"""A small registry's rows as a release wrote them, kept to be upgraded by every later one.

Before the schema changes: `python -m tests.registry.old_rows > tests/registry/golden/rows-REVISION.json`.
"""

import json
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, DateTime, MetaData, func, insert, select

from loratree_registry.database.engine import reading
from loratree_registry.embedded.registry import open_embedded
from loratree_registry.settings import Settings
from tests.registry.material import make, publish

GOLDEN = Path(__file__).parent / "golden"
Rows = dict[str, list[dict[str, Any]]]


def read(revision: str) -> Rows:
    """The rows that were kept of a revision."""
    rows: Rows = json.loads((GOLDEN / f"rows-{revision}.json").read_text(encoding="utf-8"))
    return rows


def put(connection: Connection, rows: Rows) -> None:
    """Inserts rows into the schema that they were read from."""
    tables = _tables(connection)
    for table in tables.sorted_tables:
        times = {column.name for column in table.columns if isinstance(column.type, DateTime)}
        for row in rows.get(table.name, ()):
            values = {name: _moment(value) if name in times else value for name, value in row.items()}
            connection.execute(insert(table).values(values))
        if connection.dialect.name == "postgresql" and rows.get(table.name) and "id" in table.columns:
            last = select(func.max(table.c.id)).scalar_subquery()
            connection.execute(select(func.setval(func.pg_get_serial_sequence(table.name, "id"), last)))


def dump(connection: Connection) -> Rows:
    """Every row of every table but alembic's own."""
    tables = [table for table in _tables(connection).sorted_tables if table.name != "alembic_version"]
    return {t.name: [dict(row) for row in connection.execute(select(t)).mappings()] for t in tables}


def _tables(connection: Connection) -> MetaData:
    tables = MetaData()
    tables.reflect(connection)
    return tables


def _moment(value: str | None) -> datetime | None:
    return None if value is None else datetime.fromisoformat(value).replace(tzinfo=UTC)


def _fill(folder: Path) -> Rows:
    material = make(folder)
    registry = open_embedded(Settings.from_environment({"LORATREE_HOME": str(folder / "home")}))
    registry.add_base("tiny", material.base, source="made by the tests")
    publish(registry, "tiny/medicine", material.rank8, "base", note="the first")
    publish(registry, "tiny/medicine", material.rank8.variant(1), "base")
    publish(registry, "tiny/medicine/cardiology/alice", material.rank4, "tiny/medicine@1")
    publish(registry, "tiny/medicine/cardiology/alice", material.rank2)
    registry.set_alias("tiny/medicine", "stable", version=1, expected=None)
    registry.set_alias("tiny/medicine", "stable", version=2, expected=1)
    registry.set_alias("tiny/medicine", "canary", version=2, expected=None)
    registry.delete_alias("tiny/medicine", "canary", expected=2)
    try:
        with reading(registry._engine) as connection:
            return dump(connection)
    finally:
        registry.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        json.dump(_fill(Path(temporary)), sys.stdout, indent=1, sort_keys=True, default=str)
