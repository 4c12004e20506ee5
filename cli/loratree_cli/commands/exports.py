"""loratree export, loratree import."""

from pathlib import Path

import click

from loratree_cli.options import a_path
from loratree_cli.output import bytes_text, counted, json_option, print_json, say
from loratree_cli.progress import at_out, working
from loratree_registry.settings import Settings


@click.command("export")
@click.argument("path", required=False)
@click.option(
    "--out",
    type=a_path,
    required=True,
    help="A new folder, or a new file FILE.tar.",
)
@json_option
def export_(path: str | None, out: Path, as_json: bool) -> None:
    """Write everything, or PATH and below with every version they were trained on, to a folder or a tar file.

    An export holds bytes, numbers, pins, aliases, marks, tombstones, notes, times, history and the base's manifest, and
    its weights if they are stored. Runs where the database is. docs/housekeeping.md describes the format.

    \b
    loratree export --out ./backup
    loratree export tiny/medicine --out medicine.tar
    """
    from loratree_registry.embedded.storage import open_storage
    from loratree_registry.housekeeping.exports.exporting import export

    kept = at_out(out, "run the same command again")
    with (
        open_storage(Settings.from_environment(), begun=True) as storage,
        working("exporting", kept=kept) as on_progress,
    ):
        exported = export(storage, path, out, progress=on_progress)
    if as_json:
        print_json(exported)
        return
    nodes, versions, files = (
        counted(exported.counts[what], noun)
        for what, noun in (("nodes", "node"), ("versions", "version"), ("blobs", "stored file"))
    )
    say(f"{path or 'everything'} is in {out}: {nodes}, {versions}, {files} of {bytes_text(exported.bytes)}")


@click.command("import")
@click.argument("export", type=a_path)
@json_option
def import_(export: Path, as_json: bool) -> None:
    """Add EXPORT, a folder or a tar file that `loratree export` wrote, to this registry.

    Every digest is verified before anything becomes visible. A record that is here already with the same digests stays
    as it is. Contradictions are listed, and then nothing is imported. After an interruption, run the command again.

    \b
    LORATREE_HOME=/new/home loratree import ./backup
    loratree import medicine.tar
    """
    from loratree_registry.embedded.storage import open_storage
    from loratree_registry.housekeeping.exports.importing import import_ as import_export

    kept = "the records are here whole or not at all, and the files that were stored stay for a day: run it again"
    with open_storage(Settings.from_environment()) as storage, working("importing", kept=kept) as on_progress:
        imported = import_export(storage, export, progress=on_progress)
    if as_json:
        print_json(imported)
        return
    for difference in imported.differences:
        say(f"kept: {difference}")
    for warning in imported.warnings:
        say(f"warning: {warning}")
    added = counted(imported.added.get("versions", 0), "version")
    say(
        f"{imported.path or 'everything'} of {export} is here: {added} added, "
        f"{imported.kept.get('versions', 0)} here before, {bytes_text(imported.bytes)} stored"
    )
