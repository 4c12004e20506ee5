"""loratree verify."""

import re
import sys
from typing import TYPE_CHECKING

import click

from loratree_cli.output import bytes_text, counted, json_option, print_json, progress, say
from loratree_registry.settings import Settings

if TYPE_CHECKING:
    from loratree_registry.housekeeping.verifying import Sample

_SAMPLE = re.compile(r"(?P<count>[1-9]\d{0,8})|(?P<share>\d{1,3}(\.\d{1,6})?)%")


@click.command()
@click.argument("ref", required=False)
@click.option("--sample", metavar="N|N%", help="Read so many of the stored files only, picked at random.")
@click.option("--seed", type=int, default=0, show_default=True, help="Another seed picks another sample.")
@json_option
def verify(ref: str | None, sample: str | None, seed: int, as_json: bool) -> None:
    """Read and hash every stored file, and name each that is damaged or missing with the versions that it touches.

    With a path, the files of the versions there and below; with PATH@SELECTOR, those of one version and of what it was
    trained on. Digests of versions and bases are made anew, and records that contradict each other are named.
    Runs where the database is; changes nothing. Exit status 1 where anything is found.

    \b
    loratree verify
    loratree verify tiny/medicine
    loratree verify --sample 5% --json
    """
    from loratree_registry.embedded.storage import open_storage
    from loratree_registry.housekeeping.verifying import verify as verify_stored

    chosen = None if sample is None else _sample(sample, seed)
    with open_storage(Settings.from_environment()) as storage, progress() as told:
        found = verify_stored(storage, ref, sample=chosen, progress=told)
    if as_json:
        print_json(found)
    else:
        for damage in found.damaged:
            click.echo(f"{damage.sha256} {damage.problem}: it touches {damage.touches}")
        for problem in found.problems:
            click.echo(problem)
        files, versions = counted(found.stored, "stored file"), counted(found.versions, "version")
        what = f"{found.read} of {files}, {bytes_text(found.bytes)}, and {versions}"
        bad = f"{len(found.damaged)} damaged or missing, {len(found.problems)} records contradict others"
        say(f"{what}: {'all sound' if found.sound else bad}")
    sys.exit(0 if found.sound else 1)


def _sample(text: str, seed: int) -> "Sample":
    from loratree_registry.housekeeping.verifying import Sample

    match = _SAMPLE.fullmatch(text)
    if match is None or (match["share"] and not 0 < float(match["share"]) <= 100):
        raise click.UsageError(
            f"--sample is {text!r}: expected a number of files, such as 200 (at most 999999999), or a share, such as 5%"
        )
    if match["count"]:
        return Sample(count=int(match["count"]), seed=seed)
    return Sample(share=float(match["share"]) / 100, seed=seed)
