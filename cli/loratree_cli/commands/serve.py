"""loratree serve."""

import click

from loratree_registry.settings import Settings


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="A loopback address: there is no access control.")
@click.option("--port", type=click.IntRange(0, 65535), default=8321, show_default=True, help="0 takes a free port.")
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Processes behind the port.")
def serve(host: str, port: int, workers: int) -> None:
    """Serve the registry over HTTP on this machine.

    \b
    loratree serve --port 8321
    loratree serve --workers 4
    LORATREE_URL=http://127.0.0.1:8321 loratree ls
    """
    from loratree_registry.api.serve import serve as serve_forever

    serve_forever(Settings.from_environment(), host, port, workers=workers, announce=click.echo)
