"""Housekeeping: leases of blobs, stored base weights, uploads, withdrawn and quarantined versions, tombstones."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
NAME = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Adds columns and tables; no table is copied, whatever its size."""
    mark_versions()
    lease_blobs()
    create_base_files()
    create_uploads()
    create_tombstones()


def mark_versions() -> None:
    """When and why a version was withdrawn or quarantined, and an index of those that were not withdrawn."""
    for mark in ("withdrawn", "quarantined"):
        both = check("versions", f"{mark}_reason_has_its_time", f"({mark}_reason IS NULL) = ({mark}_at IS NULL)")
        op.add_column("versions", sa.Column(f"{mark}_at", TIME))
        op.add_column("versions", sa.Column(f"{mark}_reason", sa.Text, both))
    live = sa.text("withdrawn_at IS NULL")
    op.create_index(
        op.f("ix_versions_live"), "versions", ["node_id", "number"], sqlite_where=live, postgresql_where=live
    )


def lease_blobs() -> None:
    """A blob's state, and when something last had to do with it."""
    known = check("blobs", "state_is_known", "state IN ('expected', 'stored', 'condemned')")
    rename("blobs", "stored_at", "touched_at")
    op.add_column("blobs", sa.Column("state", sa.Text, known, nullable=False, server_default="stored"))
    op.add_column("blobs", sa.Column("lease", sa.Text, nullable=False, server_default=""))
    condemned = sa.text("state = 'condemned'")
    op.create_index(op.f("ix_blobs_condemned"), "blobs", ["sha256"], sqlite_where=condemned, postgresql_where=condemned)


def create_base_files() -> None:
    """The files of a base's checkpoint, where its weights are stored."""
    op.create_table(
        "base_files",
        sa.Column("base_id", ID, nullable=False),
        sa.Column("name", NAME, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("sha256", sa.Text, nullable=False),
        key("base_files", "base_id", "name"),
        refers("base_files", "base_id", "bases.id"),
        refers("base_files", "sha256", "blobs.sha256"),
        check("base_files", "size_counts", "size >= 0"),
    )
    index("base_files", "sha256")


def create_uploads() -> None:
    """Bytes on their way to a store that clients send to themselves."""
    op.create_table(
        "uploads",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("multipart", sa.Text),
        sa.Column("touched_at", TIME, nullable=False),
        key("uploads", "id"),
        is_sha256("uploads", "sha256"),
        check("uploads", "size_counts", "size >= 0"),
    )
    index("uploads", "sha256")


def create_tombstones() -> None:
    """What is left of deleted versions."""
    op.create_table(
        "tombstones",
        sa.Column("node_id", ID, nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("content", sa.Text, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("quarantined_reason", sa.Text),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("deleted_at", TIME, nullable=False),
        key("tombstones", "node_id", "number"),
        refers("tombstones", "node_id", "nodes.id"),
        is_sha256("tombstones", "digest"),
        is_sha256("tombstones", "content"),
    )
    index("tombstones", "node_id", "digest")
    index("tombstones", "node_id", "content")


def lost() -> list[str]:
    """What is there that schema 0001 cannot tell."""
    kept = {
        "quarantined versions": "versions WHERE quarantined_at IS NOT NULL",
        "withdrawn versions": "versions WHERE withdrawn_at IS NOT NULL",
        "deleted versions": "tombstones",
        "stored base weights": "base_files",
    }
    ask = "SELECT EXISTS (SELECT 1 FROM {})".format
    return [what for what, rows in kept.items() if op.get_bind().scalar(sa.text(ask(rows)))]


def rename(table: str, column: str, to: str) -> None:
    """Renames a column that is never null, and what PostgreSQL has called that since its release 18."""
    op.execute(f"ALTER TABLE {table} RENAME COLUMN {column} TO {to}")
    dialect = op.get_bind().dialect
    if dialect.name == "postgresql" and (dialect.server_version_info or (0,)) >= (18,):
        op.execute(f"ALTER TABLE {table} RENAME CONSTRAINT {table}_{column}_not_null TO {table}_{to}_not_null")


def check(table: str, name: str, condition: str) -> sa.CheckConstraint:
    """Names a check as the naming convention does."""
    return sa.CheckConstraint(condition, name=op.f(f"ck_{table}_{name}"))


def is_sha256(table: str, column: str) -> sa.CheckConstraint:
    """Checks `sha256:` and 64 lower-case hexadecimal digits."""
    return check(
        table,
        f"{column}_is_sha256",
        f"length({column}) = 71 AND substr({column}, 1, 7) = 'sha256:' "
        f"AND ltrim(substr({column}, 8), '0123456789abcdef') = ''",
    )


def key(table: str, *columns: str) -> sa.PrimaryKeyConstraint:
    """Names a primary key as the naming convention does."""
    return sa.PrimaryKeyConstraint(*columns, name=op.f(f"pk_{table}"))


def refers(table: str, column: str, to: str) -> sa.ForeignKeyConstraint:
    """Names a foreign key as the naming convention does."""
    return sa.ForeignKeyConstraint([column], [to], name=op.f(f"fk_{table}_{column}"))


def index(table: str, *columns: str) -> None:
    """Creates an index, named as the naming convention does."""
    op.create_index(op.f(f"ix_{table}_{'_'.join(columns)}"), table, list(columns))


def downgrade() -> None:
    """Drops what was added. Refused where that would make a promise false: see `lost`."""
    if found := lost():
        raise ValueError(f"schema 0001 has no room for {', '.join(found)}: keep this one, or export first")
    op.execute("DELETE FROM blobs WHERE state <> 'stored'")  # 0001 takes every row for bytes that are there
    for table in ("tombstones", "uploads", "base_files"):
        op.drop_table(table)
    op.drop_index(op.f("ix_blobs_condemned"), "blobs")
    op.drop_index(op.f("ix_versions_live"), "versions")
    op.drop_column("blobs", "lease")
    op.drop_column("blobs", "state")
    rename("blobs", "touched_at", "stored_at")
    for mark in ("withdrawn", "quarantined"):
        op.drop_column("versions", f"{mark}_reason")
        op.drop_column("versions", f"{mark}_at")
