"""loratree db upgrade."""

import click

from loratree_cli.output import say
from loratree_registry.errors import Invalid
from loratree_registry.settings import Settings


@click.group()
def db() -> None:
    """Manage the registry's database."""


@db.command("upgrade")
def upgrade() -> None:
    """Bring the schema of LORATREE_DATABASE up to this release; safe to run again, and by several at the same time.

    The embedded SQLite database is upgraded automatically.
    """
    from loratree_registry.embedded.storage import upgrade as upgrade_database

    settings = Settings.from_environment()
    if settings.url is not None:
        raise Invalid(
            "LORATREE_URL names a registry that is served, and this command cannot reach its database: "
            "unset it, and run the command with the server's LORATREE_DATABASE"
        )
    say(f"the schema is at revision {upgrade_database(settings)}")
