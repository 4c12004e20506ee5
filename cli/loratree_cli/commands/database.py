"""loratree db upgrade."""

import click

from loratree_cli.output import json_option, print_json, say
from loratree_cli.progress import working
from loratree_registry.errors import Invalid
from loratree_registry.settings import Settings


@click.group()
def db() -> None:
    """Manage the registry's database."""


@db.command("upgrade")
@json_option
def upgrade(as_json: bool) -> None:
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
    with working(
        "bringing the schema up to date", kept="each revision is whole or not there: the same command goes on"
    ):
        revision = upgrade_database(settings)
    if as_json:
        print_json({"revision": revision})
    else:
        say(f"the schema is at revision {revision}")
