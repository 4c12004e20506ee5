"""loratree publish."""

from pathlib import Path

import click

from loratree_cli.output import bytes_text, json_option, pin_text, print_json, say, working
from loratree_cli.registry import registry
from loratree_registry.paths import LEVELS, Level
from loratree_registry.settings import Settings


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.argument("path")
@click.option("--parent", metavar="REF|base", help="What it was trained on, where no lockfile tells.")
@click.option("--level", type=click.Choice(LEVELS[1:]), help="By default the next level down.")
@click.option("--note", help="A line about this version.")
@json_option
def publish(
    directory: Path, path: str, parent: str | None, level: Level | None, note: str | None, as_json: bool
) -> None:
    """Publish the PEFT adapter in DIRECTORY as the next version at PATH.

    The version is pinned to what it was trained on: the lockfile beside its base_model_name_or_path tells, else
    --parent, else, where nothing says it, the nearest ancestor's head.

    \b
    loratree publish ./out/cardiology tiny/medicine/cardiology
    loratree publish ./out/alice tiny/medicine/cardiology/diagnosis/alice --parent tiny/medicine@2
    """
    from loratree_registry.submitting import publish_directory

    with registry() as opened, working(f"publishing {directory}"):
        submitted = publish_directory(
            opened,
            directory,
            path,
            parent=parent,
            level=level,
            note=note,
            home=Settings.from_environment().home,
        )
    version, created = submitted.published.version, submitted.published.created
    for warning in submitted.published.warnings:
        say(f"warning: {warning}")
    if submitted.not_published:
        say(f"not published: {', '.join(submitted.not_published)}")
    if as_json:
        print_json(submitted.published)
        return
    if created:
        say(submitted.pin.why)
        say(f"{version.path}@{version.number}: published, {bytes_text(version.size)}")
    else:
        say(f"{version.path}@{version.number}: already published, nothing stored; it is pinned to {pin_text(version)}")
    click.echo(version.digest)
