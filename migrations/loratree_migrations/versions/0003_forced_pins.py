"""Forced pins: a person overruled what the adapter says that it was trained on."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the column. A pin that was found before was not forced."""
    op.add_column("versions", sa.Column("pin_forced", sa.Boolean, nullable=False, server_default=sa.false()))


def downgrade() -> None:
    """Remove the column. Raises ValueError if a pin was forced, which schema 0002 has no room for."""
    if op.get_bind().scalar(sa.text("SELECT EXISTS (SELECT 1 FROM versions WHERE pin_forced)")):
        raise ValueError("schema 0002 has no room for forced pins: keep this one, or export first")
    op.drop_column("versions", "pin_forced")
