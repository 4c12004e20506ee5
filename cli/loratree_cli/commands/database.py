"""loratree db upgrade."""

import click

from loratree_cli.output import say
from loratree_registry.settings import Settings


@click.group()
def db() -> None:
    """The registry's database."""


@db.command("upgrade")
def upgrade() -> None:
    """Bring the schema of LORATREE_DATABASE up to this release; safe to run again and by several at once.

    The embedded SQLite database does this by itself.
    """
    from loratree_registry.database import upgrade as upgrade_database

    say(f"the schema is at revision {upgrade_database(Settings.from_environment())}")
