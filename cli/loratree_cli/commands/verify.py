"""loratree verify."""

import re
import sys
from typing import TYPE_CHECKING

import click

from loratree_cli.output import bytes_text, counted, echo, json_option, print_json, say
from loratree_cli.progress import working
from loratree_registry.settings import Settings

if TYPE_CHECKING:
    from loratree_registry.housekeeping.verifying import Sample

_SAMPLE = re.compile(r"(?P<count>[1-9]\d{0,8})|(?P<share>\d{1,3}(\.\d{1,6})?)%")


@click.command()
@click.argument("ref", required=False)
@click.option("--sample", metavar="N|N%", help="Read only this many of the stored files, picked at random.")
@click.option("--seed", type=int, default=0, show_default=True, help="Another seed picks another sample.")
@click.option("--adapters", is_flag=True, help="Check every version as publish does too; reads its file once more.")
@json_option
def verify(ref: str | None, sample: str | None, seed: int, adapters: bool, as_json: bool) -> None:
    """Read and hash every stored file, and list the damaged and missing ones with the versions that need them.

    With a path, it reads the files of the versions there and below; with PATH@SELECTOR, the files of one version and of
    its chain. It computes the digests of versions and bases again, and lists records that contradict each other. With
    --adapters, it checks every version in scope as publish does: every value is finite, and config and tensors are an
    adapter of the base. Runs where the database is; changes nothing. Exit status 1 if it finds a problem.

    \b
    loratree verify
    loratree verify tiny/medicine
    loratree verify tiny/medicine --adapters
    loratree verify --sample 5% --json
    """
    from loratree_registry.embedded.storage import open_storage
    from loratree_registry.housekeeping.verifying import verify as verify_stored

    chosen = None if sample is None else _parse_sample(sample, seed)
    kept = "nothing was changed, and nothing is known of the rest: run the same command again"
    with (
        open_storage(Settings.from_environment(), begun=True) as storage,
        working("verifying", kept=kept) as on_progress,
    ):
        report = verify_stored(storage, ref, sample=chosen, adapters=adapters, progress=on_progress)
    if as_json:
        print_json(report)
    else:
        for damage in report.damaged:
            echo(f"{damage.sha256} {damage.problem}: it touches {damage.touches}")
        for problem in report.problems:
            echo(problem)
        files, versions = counted(report.stored, "stored file"), counted(report.versions, "version")
        checked = f", {counted(report.versions, 'adapter')} checked" if adapters else ""
        what = f"{report.read} of {files}, {bytes_text(report.bytes)}, and {versions}{checked}"
        contradict = "contradicts" if len(report.problems) == 1 else "contradict"
        bad = f"{len(report.damaged)} damaged or missing, {counted(len(report.problems), 'record')} {contradict} others"
        say(f"{what}: {'all sound' if report.sound else bad}")
    sys.exit(0 if report.sound else 1)


def _parse_sample(text: str, seed: int) -> "Sample":
    from loratree_registry.housekeeping.verifying import Sample

    match = _SAMPLE.fullmatch(text)
    if match is None or (match["share"] and not 0 < float(match["share"]) <= 100):
        raise click.UsageError(
            f"--sample is {text!r}: expected a number of files, such as 200 (at most 999999999), or a share, such as 5%"
        )
    if match["count"]:
        return Sample(count=int(match["count"]), seed=seed)
    return Sample(share=float(match["share"]) / 100, seed=seed)
