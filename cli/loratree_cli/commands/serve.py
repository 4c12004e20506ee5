"""loratree serve."""

from typing import TYPE_CHECKING

import click

from loratree_registry.settings import Settings

if TYPE_CHECKING:
    from loratree_registry.api.log.lines import Form
    from loratree_registry.api.log.settings import Level


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="A loopback address: there is no access control.")
@click.option("--port", type=click.IntRange(0, 65535), default=8321, show_default=True, help="0 takes a free port.")
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Processes behind the port.")
@click.option(
    "--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True, help="The form of a line."
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="The least level that is written: a request is info, a health check debug, one that the server fails error.",
)
def serve(host: str, port: int, workers: int, log_format: "Form", log_level: "Level") -> None:
    """Serve the registry over HTTP on this machine.

    It prints its URL, and writes a line for each request to stderr, with the id that the answer has as X-Request-ID.

    \b
    loratree serve --port 8321
    loratree serve --workers 4 --log-format json
    LORATREE_URL=http://127.0.0.1:8321 loratree ls
    """
    from loratree_registry.api.log.settings import LogSettings
    from loratree_registry.api.serve import serve as serve_forever

    log = LogSettings(log_format, log_level)
    serve_forever(Settings.from_environment(), host, port, workers=workers, announce=click.echo, log=log)
