"""loratree db upgrade."""

import click

from loratree_cli.output import say
from loratree_registry.errors import Invalid
from loratree_registry.settings import Settings


@click.group()
def db() -> None:
    """The registry's database."""


@db.command("upgrade")
def upgrade() -> None:
    """Bring the schema of LORATREE_DATABASE up to this release; safe to run again and by several at once.

    The embedded SQLite database does this by itself.
    """
    from loratree_registry.embedded.storage import upgrade as upgrade_database

    settings = Settings.from_environment()
    if settings.url is not None:
        raise Invalid(
            "LORATREE_URL names a registry that is served, whose database this command cannot reach: "
            "unset it, and run this where LORATREE_DATABASE is that server's"
        )
    say(f"the schema is at revision {upgrade_database(settings)}")
