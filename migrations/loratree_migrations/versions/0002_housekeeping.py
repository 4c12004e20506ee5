"""Housekeeping: leases of blobs, stored base weights, uploads, withdrawn and quarantined versions, tombstones."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
NAME = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Add columns and tables. No existing table is copied, however large it is."""
    mark_versions()
    lease_blobs()
    create_base_files()
    create_uploads()
    create_tombstones()


def mark_versions() -> None:
    """Add when and why a version was withdrawn or quarantined, and an index of the versions that are not withdrawn."""
    for mark in ("withdrawn", "quarantined"):
        both = check("versions", f"{mark}_reason_has_its_time", f"({mark}_reason IS NULL) = ({mark}_at IS NULL)")
        op.add_column("versions", sa.Column(f"{mark}_at", TIME))
        op.add_column("versions", sa.Column(f"{mark}_reason", sa.Text, both))
    live = sa.text("withdrawn_at IS NULL")
    op.create_index(
        op.f("ix_versions_live"), "versions", ["node_id", "number"], sqlite_where=live, postgresql_where=live
    )


def lease_blobs() -> None:
    """Add a blob's state and lease, and rename `stored_at` to `touched_at`, the time of its last use."""
    known = check("blobs", "state_is_known", "state IN ('expected', 'stored', 'condemned')")
    rename("blobs", "stored_at", "touched_at")
    op.add_column("blobs", sa.Column("state", sa.Text, known, nullable=False, server_default="stored"))
    op.add_column("blobs", sa.Column("lease", sa.Text, nullable=False, server_default=""))
    condemned = sa.text("state = 'condemned'")
    op.create_index(op.f("ix_blobs_condemned"), "blobs", ["sha256"], sqlite_where=condemned, postgresql_where=condemned)


def create_base_files() -> None:
    """Create the table of the files of bases' checkpoints, for bases with stored weights."""
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
    """Create the table of uploads that clients send directly to the store."""
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
    """Create the table of tombstones, one for each deleted version."""
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
    """Return the kinds of rows in this database that schema 0001 cannot hold."""
    kept = {
        "quarantined versions": "versions WHERE quarantined_at IS NOT NULL",
        "withdrawn versions": "versions WHERE withdrawn_at IS NOT NULL",
        "deleted versions": "tombstones",
        "stored base weights": "base_files",
    }
    ask = "SELECT EXISTS (SELECT 1 FROM {})".format
    return [what for what, rows in kept.items() if op.get_bind().scalar(sa.text(ask(rows)))]


def rename(table: str, column: str, to: str) -> None:
    """Rename a column that is never null, and the constraint that PostgreSQL names after it since release 18."""
    op.execute(f"ALTER TABLE {table} RENAME COLUMN {column} TO {to}")
    dialect = op.get_bind().dialect
    if dialect.name == "postgresql" and (dialect.server_version_info or (0,)) >= (18,):
        op.execute(f"ALTER TABLE {table} RENAME CONSTRAINT {table}_{column}_not_null TO {table}_{to}_not_null")


def check(table: str, name: str, condition: str) -> sa.CheckConstraint:
    """Make a check, named by the naming convention."""
    return sa.CheckConstraint(condition, name=op.f(f"ck_{table}_{name}"))


def is_sha256(table: str, column: str) -> sa.CheckConstraint:
    """Require `sha256:` and 64 lower-case hexadecimal digits."""
    return check(
        table,
        f"{column}_is_sha256",
        f"length({column}) = 71 AND substr({column}, 1, 7) = 'sha256:' "
        f"AND ltrim(substr({column}, 8), '0123456789abcdef') = ''",
    )


def key(table: str, *columns: str) -> sa.PrimaryKeyConstraint:
    """Make a primary key, named by the naming convention."""
    return sa.PrimaryKeyConstraint(*columns, name=op.f(f"pk_{table}"))


def refers(table: str, column: str, to: str) -> sa.ForeignKeyConstraint:
    """Make a foreign key, named by the naming convention."""
    return sa.ForeignKeyConstraint([column], [to], name=op.f(f"fk_{table}_{column}"))


def index(table: str, *columns: str) -> None:
    """Create an index, named by the naming convention."""
    op.create_index(op.f(f"ix_{table}_{'_'.join(columns)}"), table, list(columns))


def downgrade() -> None:
    """Drop the added columns and tables. Raises ValueError if data would be lost: see `lost`."""
    if found := lost():
        raise ValueError(f"schema 0001 has no room for {', '.join(found)}: keep this one, or export first")
    op.execute("DELETE FROM blobs WHERE state <> 'stored'")  # in 0001 every row means stored bytes
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
