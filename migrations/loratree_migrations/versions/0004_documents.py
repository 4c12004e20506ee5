"""Documents: a version keeps the small texts that were published with it, such as its model card."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the column. What was published before has no documents."""
    op.add_column("versions", sa.Column("documents", sa.JSON(none_as_null=True)))


def downgrade() -> None:
    """Remove the column. Raises ValueError if a version has documents, which schema 0003 has no room for."""
    if op.get_bind().scalar(sa.text("SELECT EXISTS (SELECT 1 FROM versions WHERE documents IS NOT NULL)")):
        raise ValueError("schema 0003 has no room for documents: keep this one, or export first")
    op.drop_column("versions", "documents")
