"""The database's migrations, run by alembic."""
