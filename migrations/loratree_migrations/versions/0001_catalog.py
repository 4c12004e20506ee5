"""The catalog: bases, nodes, versions with their pins and files, aliases, events."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
NAME = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
TIME = sa.DateTime(timezone=True)
LEVELS = "'base', 'domain', 'subdomain', 'task', 'user'"


def is_sha256(table: str, column: str) -> sa.CheckConstraint:
    """Require `sha256:` and 64 lower-case hexadecimal digits."""
    return check(
        table,
        f"{column}_is_sha256",
        f"length({column}) = 71 AND substr({column}, 1, 7) = 'sha256:' "
        f"AND ltrim(substr({column}, 8), '0123456789abcdef') = ''",
    )


def check(table: str, name: str, condition: str) -> sa.CheckConstraint:
    """Make a check, named by the naming convention."""
    return sa.CheckConstraint(condition, name=op.f(f"ck_{table}_{name}"))


def key(table: str, *columns: str) -> sa.PrimaryKeyConstraint:
    """Make a primary key, named by the naming convention."""
    return sa.PrimaryKeyConstraint(*columns, name=op.f(f"pk_{table}"))


def unique(table: str, *columns: str) -> sa.UniqueConstraint:
    """Make a unique constraint, named by the naming convention."""
    return sa.UniqueConstraint(*columns, name=op.f(f"uq_{table}_{'_'.join(columns)}"))


def refers(table: str, columns: list[str], to: list[str]) -> sa.ForeignKeyConstraint:
    """Make a foreign key, named by the naming convention."""
    return sa.ForeignKeyConstraint(columns, to, name=op.f(f"fk_{table}_{'_'.join(columns)}"))


def index(table: str, *columns: str, where: str | None = None) -> None:
    """Create an index of all rows, or of the rows that match `where`, named by the naming convention."""
    rows = None if where is None else sa.text(where)
    name = op.f(f"ix_{table}_{'_'.join(columns)}")
    op.create_index(name, table, list(columns), sqlite_where=rows, postgresql_where=rows)


def upgrade() -> None:
    """Create every table."""
    create_bases()
    create_nodes()
    create_blobs()
    create_versions()
    create_version_files()
    create_aliases()
    create_events()


def create_bases() -> None:
    """Create the table of base models."""
    op.create_table(
        "bases",
        sa.Column("id", ID, nullable=False),
        sa.Column("name", NAME, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("architecture", sa.Text),
        sa.Column("vocabulary_size", sa.BigInteger),
        sa.Column("parameters", sa.BigInteger, nullable=False),
        sa.Column("source", sa.Text),
        sa.Column("manifest", sa.JSON, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        key("bases", "id"),
        unique("bases", "name"),
        is_sha256("bases", "digest"),
    )


def create_nodes() -> None:
    """Create the table of places in the tree."""
    op.create_table(
        "nodes",
        sa.Column("id", ID, nullable=False),
        sa.Column("base_id", ID, nullable=False),
        sa.Column("parent_id", ID),
        sa.Column("path", NAME, nullable=False),
        sa.Column("level", sa.Text, nullable=False),
        sa.Column("last_number", sa.Integer, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        key("nodes", "id"),
        unique("nodes", "path"),
        unique("nodes", "id", "base_id"),
        refers("nodes", ["base_id"], ["bases.id"]),
        refers("nodes", ["parent_id"], ["nodes.id"]),
        check("nodes", "level_is_known", f"level IN ({LEVELS})"),
        check("nodes", "base_is_root", "(parent_id IS NULL) = (level = 'base')"),
        check("nodes", "last_number_counts", "last_number >= 0"),
    )
    index("nodes", "parent_id", "path")


def create_blobs() -> None:
    """Create the table of stored and verified bytes."""
    op.create_table(
        "blobs",
        sa.Column("sha256", sa.Text, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("stored_at", TIME, nullable=False),
        key("blobs", "sha256"),
        is_sha256("blobs", "sha256"),
        check("blobs", "size_counts", "size >= 0"),
    )


def create_versions() -> None:
    """Create the table of published adapters, each with the version that it was trained on."""
    op.create_table(
        "versions",
        sa.Column("id", ID, nullable=False),
        sa.Column("node_id", ID, nullable=False),
        sa.Column("base_id", ID, nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("content", sa.Text, nullable=False),
        sa.Column("pin_id", ID),
        sa.Column("pin_found", sa.Text, nullable=False),
        sa.Column("config", sa.JSON, nullable=False),
        sa.Column("summary", sa.JSON, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("note", sa.Text),
        sa.Column("created_at", TIME, nullable=False),
        key("versions", "id"),
        unique("versions", "node_id", "number"),
        unique("versions", "node_id", "digest"),
        unique("versions", "node_id", "id"),
        refers("versions", ["node_id", "base_id"], ["nodes.id", "nodes.base_id"]),
        refers("versions", ["pin_id"], ["versions.id"]),
        is_sha256("versions", "digest"),
        is_sha256("versions", "content"),
        check("versions", "pin_found_is_known", "pin_found IN ('lockfile', 'explicit', 'assumed')"),
        check("versions", "number_counts", "number >= 1"),
        check("versions", "size_counts", "size >= 0"),
        check("versions", "pin_is_older", "pin_id < id"),
    )
    index("versions", "digest")
    index("versions", "pin_id", "id")
    index("versions", "node_id", "content")
    index("versions", "base_id", "id", where="pin_id IS NULL")


def create_version_files() -> None:
    """Create the table of the files of versions; a file's bytes must be stored before its version is inserted."""
    op.create_table(
        "version_files",
        sa.Column("version_id", ID, nullable=False),
        sa.Column("name", NAME, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("sha256", sa.Text, nullable=False),
        key("version_files", "version_id", "name"),
        refers("version_files", ["version_id"], ["versions.id"]),
        refers("version_files", ["sha256"], ["blobs.sha256"]),
        check("version_files", "size_counts", "size >= 0"),
    )
    index("version_files", "sha256")


def create_aliases() -> None:
    """Create the table of movable names; each names a version at its own node."""
    op.create_table(
        "aliases",
        sa.Column("node_id", ID, nullable=False),
        sa.Column("name", NAME, nullable=False),
        sa.Column("version_id", ID, nullable=False),
        sa.Column("updated_at", TIME, nullable=False),
        key("aliases", "node_id", "name"),
        refers("aliases", ["node_id", "version_id"], ["versions.node_id", "versions.id"]),
    )
    index("aliases", "version_id")


def create_events() -> None:
    """Create the tables of events, and of the nodes that show an event: its own node and every node above."""
    op.create_table(
        "events",
        sa.Column("id", ID, nullable=False),
        sa.Column("node_id", ID, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("detail", sa.JSON, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        key("events", "id"),
        refers("events", ["node_id"], ["nodes.id"]),
    )
    op.create_table(
        "event_views",
        sa.Column("node_id", ID, nullable=False),
        sa.Column("event_id", ID, nullable=False),
        key("event_views", "node_id", "event_id"),
        refers("event_views", ["node_id"], ["nodes.id"]),
        refers("event_views", ["event_id"], ["events.id"]),
    )


def downgrade() -> None:
    """Drop every table."""
    for table in (
        "event_views",
        "events",
        "aliases",
        "version_files",
        "versions",
        "blobs",
        "nodes",
        "bases",
    ):
        op.drop_table(table)
