"""loratree export, loratree import."""

from contextlib import suppress
from pathlib import Path
from typing import Final

import click

from loratree_cli.options import a_path
from loratree_cli.output import bytes_text, counted, json_option, print_json, say
from loratree_cli.progress import at_out, working
from loratree_registry.core.records import Base
from loratree_registry.errors import Invalid, listed
from loratree_registry.settings import Settings

_TOLD: Final = 5  # bases without a folder


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

    bases: list[Base] = []
    kept = at_out(out, "run the same command again")
    with (
        open_storage(Settings.from_environment(), begun=True) as storage,
        working("exporting", kept=kept) as on_progress,
    ):
        exported = export(storage, path, out, progress=on_progress, on_bases=bases.extend)
    if as_json:
        print_json(exported)
        return
    nodes, versions, files = (
        counted(exported.counts[what], noun)
        for what, noun in (("nodes", "node"), ("versions", "version"), ("blobs", "stored file"))
    )
    say(f"{path or 'everything'} is in {out}: {nodes}, {versions}, {files} of {bytes_text(exported.bytes)}")
    _say_weights(bases)


def _say_weights(bases: list[Base]) -> None:
    """Say in a line whether the weights of an export's bases are in it."""
    within, without = ([base.name for base in bases if base.stored is stored] for stored in (True, False))
    clauses = [f"the weights of {listed(within, limit=3)} are in it"] if within else []
    if without:
        one = without[0] if len(without) == 1 else "NAME"
        clauses.append(
            f"the weights of {listed(without, limit=3)} are not in it, as they are not stored: `loratree base push "
            f"{one} DIR` stores them for the next export"
        )
    if clauses:
        say(", but ".join(clauses))


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

    settings, bases = Settings.from_environment(), list[Base]()
    kept = "the records are here whole or not at all, and the files that were stored stay for a day: run it again"
    with open_storage(settings) as storage, working("importing", kept=kept) as on_progress:
        imported = import_export(storage, export, progress=on_progress, on_bases=bases.extend)
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
    _say_folders(settings.home, bases)


def _say_folders(home: Path, bases: list[Base]) -> None:
    """Say of each base without a folder on this machine, to the fifth, how it gets one: composing needs it."""
    unknown = [base for base in bases if _folder(home, base) is None]
    for base in unknown[:_TOLD]:
        if base.stored:
            say(
                f"the weights of {base.name} came along: `loratree base pull {base.name} --out DIR` writes them to a "
                "folder for composing"
            )
        else:
            say(
                f"the weights of {base.name} are not here: `loratree base add {base.name} DIR` names a folder that has "
                "them, for composing"
            )
    if (more := len(unknown) - _TOLD) > 0:
        say(f"{counted(more, 'more base')} without a folder on this machine: `loratree base ls` says which are stored")


def _folder(home: Path, base: Base) -> Path | None:
    from loratree_registry.workspace.base_locations import base_directory

    with suppress(Invalid):  # a record that cannot be read is replaced by the commands that are told
        return base_directory(home, base.digest)
    return None
