"""Quarantined versions: an index of them alone, so that a publish can ask whether its bytes are quarantined."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Create the index."""
    quarantined = sa.text("quarantined_at IS NOT NULL")
    op.create_index(
        op.f("ix_versions_quarantined"),
        "versions",
        ["id"],
        sqlite_where=quarantined,
        postgresql_where=quarantined,
    )


def downgrade() -> None:
    """Drop the index."""
    op.drop_index(op.f("ix_versions_quarantined"), "versions")
