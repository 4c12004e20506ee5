"""The script that alembic runs: it migrates on the caller's connection, in the caller's transaction."""

from alembic import context

attributes = context.config.attributes
context.configure(
    connection=attributes["connection"],
    target_metadata=attributes["metadata"],
    render_as_batch=attributes["connection"].dialect.name == "sqlite",
)
with context.begin_transaction():
    context.run_migrations()
