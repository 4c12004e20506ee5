"""The tables of the catalog, with its invariants as constraints.

Paths and names compare by bytes on every database (collation "C" on PostgreSQL, SQLite's BINARY), so that the half-open
range `p/` to `p0` holds exactly the descendants of `p`.
"""

from datetime import UTC, datetime

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ColumnElement,
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
    event,
    false,
)

from loratree_registry.core.paths import LEVELS
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
    """A moment in UTC, to the microsecond; SQLite stores it without the zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Turn any aware time into UTC."""
        utc = None if value is None else value.astimezone(UTC)
        return utc.replace(tzinfo=None) if utc and dialect.name == "sqlite" else utc

    def process_result_value(self, value: datetime | None, _dialect: Dialect) -> datetime | None:
        """Return the time in UTC: SQLite leaves the zone out, and PostgreSQL answers in the zone of the session."""
        if value is None:
            return None
        return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)


_Id = BigInteger().with_variant(Integer, "sqlite")  # SQLite makes keys only for the type INTEGER

_Name = Text().with_variant(Text(collation="C"), "postgresql")


def _check_digest(column: str) -> CheckConstraint:
    """Require `sha256:` and 64 lower-case hexadecimal digits, by functions that both databases have."""
    return CheckConstraint(
        f"length({column}) = 71 AND substr({column}, 1, 7) = 'sha256:' "
        f"AND ltrim(substr({column}, 8), '0123456789abcdef') = ''",
        name=f"{column}_is_sha256",
    )


def _check_one_of(column: str, values: tuple[str, ...]) -> CheckConstraint:
    return CheckConstraint(f"{column} IN ({', '.join(map(repr, values))})", name=f"{column}_is_known")


def _check_both(column: str, other: str) -> CheckConstraint:
    """Require a value in both columns or in neither."""
    return CheckConstraint(f"({column} IS NULL) = ({other} IS NULL)", name=f"{column}_has_its_time")


def _keep_to_rows(index: Index, condition: ColumnElement[bool]) -> None:
    """Make the index a partial one, when the tables are created.

    An `Index` with `postgresql_where=` imports PostgreSQL's dialect at once, a tenth of what `ls` takes on SQLite.
    """

    @event.listens_for(metadata, "before_create")
    def add_condition(*_create: object, **_options: object) -> None:
        for dialect in ("sqlite", "postgresql"):
            index.dialect_options[dialect]["where"] = condition


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
    _check_digest("digest"),
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
    UniqueConstraint("id", "base_id"),  # the target of a version's foreign key
    Index(None, "parent_id", "path"),
    _check_one_of("level", LEVELS),
    CheckConstraint("(parent_id IS NULL) = (level = 'base')", name="base_is_root"),
    CheckConstraint("last_number >= 0", name="last_number_counts"),
)

# A blob is `expected` during its upload, `stored` once its bytes are verified, and `condemned` while it is collected.
# `touched_at` is when an upload, a version or a deletion last used the blob: its grace period starts there.
blobs = Table(
    "blobs",
    metadata,
    Column("sha256", Text, primary_key=True),
    Column("size", BigInteger, nullable=False),
    Column("touched_at", UtcTime, nullable=False, default=now),
    Column("state", Text, _check_one_of("state", BLOB_STATES), nullable=False, server_default="stored"),
    Column("lease", Text, nullable=False, server_default=""),  # an upload of a condemned blob gets a new one
    _check_digest("sha256"),
    CheckConstraint("size >= 0", name="size_counts"),
)

_condemned = blobs.c.state == "condemned"

_keep_to_rows(Index("ix_blobs_condemned", blobs.c.sha256), _condemned)

# The files of a base's checkpoint, if its weights are stored.
base_files = Table(
    "base_files",
    metadata,
    Column("base_id", ForeignKey(bases.c.id), nullable=False),
    Column("name", _Name, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("sha256", ForeignKey(blobs.c.sha256), nullable=False, index=True),  # the blob must be recorded first
    PrimaryKeyConstraint("base_id", "name"),
    CheckConstraint("size >= 0", name="size_counts"),
)

# Uploads that clients send directly to the store. They are recorded here so that any worker can resume or end them.
uploads = Table(
    "uploads",
    metadata,
    Column("id", Text, primary_key=True),
    Column("sha256", Text, nullable=False, index=True),
    Column("size", BigInteger, nullable=False),
    Column("multipart", Text),
    Column("touched_at", UtcTime, nullable=False, default=now),
    _check_digest("sha256"),
    CheckConstraint("size >= 0", name="size_counts"),
)

versions = Table(
    "versions",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("node_id", _Id, nullable=False),
    Column("base_id", _Id, nullable=False),  # the node's, repeated so that one index lists a base's dependents
    Column("number", Integer, nullable=False),
    Column("digest", Text, nullable=False, index=True),
    Column("content", Text, nullable=False),
    Column("pin_id", ForeignKey("versions.id")),
    Column("pin_found", Text, nullable=False),  # without `forced`, which is an explicit pin with this mark:
    Column("pin_forced", Boolean, nullable=False, server_default=false()),
    Column("config", JSON, nullable=False),
    Column("summary", JSON, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("note", Text),
    Column("created_at", UtcTime, nullable=False, default=now),
    Column("withdrawn_at", UtcTime),
    Column("withdrawn_reason", Text, _check_both("withdrawn_reason", "withdrawn_at")),
    Column("quarantined_at", UtcTime),
    Column("quarantined_reason", Text, _check_both("quarantined_reason", "quarantined_at")),
    Column("documents", JSON(none_as_null=True)),  # texts by name; last, so that the other columns are read without it
    UniqueConstraint("node_id", "number"),
    UniqueConstraint("node_id", "digest"),
    UniqueConstraint("node_id", "id"),  # the target of an alias's foreign key
    Index(None, "node_id", "content"),
    Index(None, "pin_id", "id"),
    ForeignKeyConstraint(["node_id", "base_id"], [nodes.c.id, nodes.c.base_id]),
    _check_digest("digest"),
    _check_digest("content"),
    _check_one_of("pin_found", ("lockfile", "explicit", "assumed")),
    CheckConstraint("number >= 1", name="number_counts"),
    CheckConstraint("size >= 0", name="size_counts"),
    CheckConstraint("pin_id < id", name="pin_is_older"),  # so lineage has no cycle
)

_on_base = versions.c.pin_id.is_(None)

_keep_to_rows(Index(None, versions.c.base_id, versions.c.id), _on_base)

_live = versions.c.withdrawn_at.is_(None)

_keep_to_rows(Index("ix_versions_live", versions.c.node_id, versions.c.number), _live)

_quarantined = versions.c.quarantined_at.is_not(None)

_keep_to_rows(Index("ix_versions_quarantined", versions.c.id), _quarantined)

# A tombstone stays for each deleted version, so that its number is never reused and its ref reports the deletion. The
# tombstone of a quarantined version keeps the same content from being published again.
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
    _check_digest("digest"),
    _check_digest("content"),
)

version_files = Table(
    "version_files",
    metadata,
    Column("version_id", ForeignKey(versions.c.id), nullable=False),
    Column("name", _Name, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("sha256", ForeignKey(blobs.c.sha256), nullable=False, index=True),  # the blob must be recorded first
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
    ForeignKeyConstraint(["node_id", "version_id"], [versions.c.node_id, versions.c.id]),  # a version of the same node
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

# An event has a row here for its node and for every node above it, so that a page of a subtree's events reads only its
# own rows. Nodes never move. (A query by path range took 91 ms for the root's page, at 100,000 events on SQLite.)
event_views = Table(
    "event_views",
    metadata,
    Column("node_id", ForeignKey(nodes.c.id), nullable=False),
    Column("event_id", ForeignKey(events.c.id), nullable=False),
    PrimaryKeyConstraint("node_id", "event_id"),
)
