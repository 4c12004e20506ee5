"""The tables, with the invariants as constraints.

Paths and names compare by bytes on every database (collation "C" on PostgreSQL, SQLite's BINARY), so that the half-open
range `p/` to `p0` holds exactly the descendants of `p`.
"""

from datetime import UTC, datetime
from typing import get_args

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    Dialect,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)

from loratree_registry.core.paths import LEVELS
from loratree_registry.core.records import PinSource
from loratree_registry.core.times import now

BLOB_STATES = ("expected", "stored", "condemned")

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)


class UtcTime(TypeDecorator[datetime]):
    """A moment in UTC, to the microsecond; SQLite keeps it without its zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Turns any aware time into UTC."""
        utc = None if value is None else value.astimezone(UTC)
        return utc.replace(tzinfo=None) if utc and dialect.name == "sqlite" else utc

    def process_result_value(self, value: datetime | None, _dialect: Dialect) -> datetime | None:
        """Gives the zone back; PostgreSQL answers in its session's."""
        if value is None:
            return None
        return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)


_Id = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers rows by itself only where the type is INTEGER

_Name = Text().with_variant(Text(collation="C"), "postgresql")


def _digest(column: str) -> CheckConstraint:
    """`sha256:` and 64 lower-case hexadecimal digits, in words that both databases have."""
    return CheckConstraint(
        f"length({column}) = 71 AND substr({column}, 1, 7) = 'sha256:' "
        f"AND ltrim(substr({column}, 8), '0123456789abcdef') = ''",
        name=f"{column}_is_sha256",
    )


def _one_of(column: str, values: tuple[str, ...]) -> CheckConstraint:
    return CheckConstraint(f"{column} IN ({', '.join(map(repr, values))})", name=f"{column}_is_known")


def _both(column: str, other: str) -> CheckConstraint:
    """Either both columns hold something, or neither does."""
    return CheckConstraint(f"({column} IS NULL) = ({other} IS NULL)", name=f"{column}_has_its_time")


bases = Table(
    "bases",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("name", _Name, nullable=False, unique=True),
    Column("digest", Text, nullable=False),
    Column("architecture", Text),
    Column("vocabulary_size", BigInteger),
    Column("parameters", BigInteger, nullable=False),
    Column("source", Text),
    Column("manifest", JSON, nullable=False),
    Column("created_at", UtcTime, nullable=False, default=now),
    _digest("digest"),
)

nodes = Table(
    "nodes",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("base_id", ForeignKey(bases.c.id), nullable=False),
    Column("parent_id", ForeignKey("nodes.id")),
    Column("path", _Name, nullable=False, unique=True),
    Column("level", Text, nullable=False),
    Column("last_number", Integer, nullable=False, default=0),
    Column("created_at", UtcTime, nullable=False, default=now),
    UniqueConstraint("id", "base_id"),  # what a version refers to
    Index(None, "parent_id", "path"),
    _one_of("level", LEVELS),
    CheckConstraint("(parent_id IS NULL) = (level = 'base')", name="base_is_root"),
    CheckConstraint("last_number >= 0", name="last_number_counts"),
)

# Bytes are `expected` while on their way, `stored` once they are verified, `condemned` while they are collected.
# `touched_at` is the last moment at which an upload, a version or a deletion had to do with them: a grace starts there.
blobs = Table(
    "blobs",
    metadata,
    Column("sha256", Text, primary_key=True),
    Column("size", BigInteger, nullable=False),
    Column("touched_at", UtcTime, nullable=False, default=now),
    Column("state", Text, _one_of("state", BLOB_STATES), nullable=False, server_default="stored"),
    Column("lease", Text, nullable=False, server_default=""),  # another one once they were condemned
    _digest("sha256"),
    CheckConstraint("size >= 0", name="size_counts"),
)

_condemned = blobs.c.state == "condemned"

Index("ix_blobs_condemned", blobs.c.sha256, sqlite_where=_condemned, postgresql_where=_condemned)

# The files of a base's checkpoint, where its weights are stored.
base_files = Table(
    "base_files",
    metadata,
    Column("base_id", ForeignKey(bases.c.id), nullable=False),
    Column("name", _Name, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("sha256", ForeignKey(blobs.c.sha256), nullable=False, index=True),  # bytes first
    PrimaryKeyConstraint("base_id", "name"),
    CheckConstraint("size >= 0", name="size_counts"),
)

# Bytes on their way to a store that clients send to themselves: known to every worker, resumed and given up by any.
uploads = Table(
    "uploads",
    metadata,
    Column("id", Text, primary_key=True),
    Column("sha256", Text, nullable=False, index=True),
    Column("size", BigInteger, nullable=False),
    Column("multipart", Text),
    Column("touched_at", UtcTime, nullable=False, default=now),
    _digest("sha256"),
    CheckConstraint("size >= 0", name="size_counts"),
)

versions = Table(
    "versions",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("node_id", _Id, nullable=False),
    Column("base_id", _Id, nullable=False),  # its node's, so that what was trained on a base itself is one index
    Column("number", Integer, nullable=False),
    Column("digest", Text, nullable=False, index=True),
    Column("content", Text, nullable=False),
    Column("pin_id", ForeignKey("versions.id")),
    Column("pin_found", Text, nullable=False),
    Column("config", JSON, nullable=False),
    Column("summary", JSON, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("note", Text),
    Column("created_at", UtcTime, nullable=False, default=now),
    Column("withdrawn_at", UtcTime),
    Column("withdrawn_reason", Text, _both("withdrawn_reason", "withdrawn_at")),
    Column("quarantined_at", UtcTime),
    Column("quarantined_reason", Text, _both("quarantined_reason", "quarantined_at")),
    UniqueConstraint("node_id", "number"),
    UniqueConstraint("node_id", "digest"),
    UniqueConstraint("node_id", "id"),  # what an alias refers to
    Index(None, "node_id", "content"),
    Index(None, "pin_id", "id"),
    ForeignKeyConstraint(["node_id", "base_id"], [nodes.c.id, nodes.c.base_id]),
    _digest("digest"),
    _digest("content"),
    _one_of("pin_found", get_args(PinSource)),
    CheckConstraint("number >= 1", name="number_counts"),
    CheckConstraint("size >= 0", name="size_counts"),
    CheckConstraint("pin_id < id", name="pin_is_older"),  # so lineage has no cycle
)

_on_base = versions.c.pin_id.is_(None)

Index(None, versions.c.base_id, versions.c.id, sqlite_where=_on_base, postgresql_where=_on_base)

_live = versions.c.withdrawn_at.is_(None)

Index("ix_versions_live", versions.c.node_id, versions.c.number, sqlite_where=_live, postgresql_where=_live)

# What is left of a deleted version, so that its number is never reused and its name tells what became of it. One that
# was quarantined keeps its content from coming back.
tombstones = Table(
    "tombstones",
    metadata,
    Column("node_id", ForeignKey(nodes.c.id), nullable=False),
    Column("number", Integer, nullable=False),
    Column("digest", Text, nullable=False),
    Column("content", Text, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("quarantined_reason", Text),
    Column("reason", Text, nullable=False),
    Column("deleted_at", UtcTime, nullable=False, default=now),
    PrimaryKeyConstraint("node_id", "number"),
    Index(None, "node_id", "digest"),
    Index(None, "node_id", "content"),
    _digest("digest"),
    _digest("content"),
)

version_files = Table(
    "version_files",
    metadata,
    Column("version_id", ForeignKey(versions.c.id), nullable=False),
    Column("name", _Name, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("sha256", ForeignKey(blobs.c.sha256), nullable=False, index=True),  # bytes first
    PrimaryKeyConstraint("version_id", "name"),
    CheckConstraint("size >= 0", name="size_counts"),
)

aliases = Table(
    "aliases",
    metadata,
    Column("node_id", _Id, nullable=False),
    Column("name", _Name, nullable=False),
    Column("version_id", _Id, nullable=False, index=True),
    Column("updated_at", UtcTime, nullable=False, default=now, onupdate=now),
    PrimaryKeyConstraint("node_id", "name"),
    ForeignKeyConstraint(["node_id", "version_id"], [versions.c.node_id, versions.c.id]),  # a version of this node
)

events = Table(
    "events",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("node_id", ForeignKey(nodes.c.id), nullable=False),
    Column("kind", Text, nullable=False),
    Column("detail", JSON, nullable=False),
    Column("created_at", UtcTime, nullable=False, default=now),
)

# An event is seen from its node and from every node above it, so that a page of a subtree's events costs what it shows:
# nodes never move. (By the paths' range, the root's page came to 91 ms at 100,000 events on SQLite.)
event_views = Table(
    "event_views",
    metadata,
    Column("node_id", ForeignKey(nodes.c.id), nullable=False),
    Column("event_id", ForeignKey(events.c.id), nullable=False),
    PrimaryKeyConstraint("node_id", "event_id"),
)
