"""loratree publish."""

import re
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loratree_cli import early_end
from loratree_cli.options import a_path
from loratree_cli.output import (
    bytes_text,
    complain,
    counted,
    echo,
    json_option,
    pin_text,
    print_json,
    say,
    say_refused,
)
from loratree_cli.progress import working
from loratree_cli.screens.verdicts import newer_head
from loratree_registry.connect import connected
from loratree_registry.core.paths import LEVELS, Level, base_of
from loratree_registry.errors import listed
from loratree_registry.settings import Settings

if TYPE_CHECKING:
    from loratree_registry.workspace.publish import Prepared
    from loratree_registry.workspace.publish_many import Outcome, Report


@click.command()
@click.argument("directory", type=a_path, required=False)
@click.argument("path", required=False)
@click.option("--parent", metavar="REF|base", help="What it was trained on, if no lockfile says so.")
@click.option(
    "--trained-on",
    type=a_path,
    metavar="DIR|loratree.json",
    help="The composition it was trained on, or its lockfile, from another machine.",
)
@click.option("--force-parent", is_flag=True, help="Take --parent against what the adapter says; shown for ever.")
@click.option("--level", type=click.Choice(LEVELS[1:]), help="By default, the level below the parent's.")
@click.option("--note", help="One line about this version.")
@click.option("--manifest", type=a_path, metavar="FILE", help="Publish all adapters in FILE.")
@click.option(
    "--from-dir",
    type=a_path,
    metavar="DIR",
    help="Print a manifest of the adapters in DIR, with their folders' names below PATH.",
)
@click.option("--jobs", type=click.IntRange(1, 64), default=4, show_default=True, help="With --manifest: threads.")
@click.option("--new-path", is_flag=True, help="Make a node although its name is nearly that of another.")
@click.option("--no-assume", is_flag=True, help="Refuse an adapter if nothing says what it was trained on.")
@click.option("--dry-run", is_flag=True, help="Check the adapter, or every line, and publish nothing.")
@json_option
def publish(
    directory: Path | None,
    path: str | None,
    parent: str | None,
    trained_on: Path | None,
    force_parent: bool,
    level: Level | None,
    note: str | None,
    manifest: Path | None,
    from_dir: Path | None,
    jobs: int,
    new_path: bool,
    no_assume: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Publish the PEFT adapter in DIRECTORY as the next version at PATH, or all adapters that a manifest lists.

    The version is pinned to the version or base that it was trained on: what the lockfile beside its
    base_model_name_or_path says, else --parent, else what its config names, else the nearest ancestor's head, which is
    then assumed for ever. If that is not clear, publish asks for --parent. A node keeps its name and level for ever, so
    it also asks for --level if most nodes beside a new one have another level, and for --new-path if a new node on the
    way has nearly the name of another.

    A manifest has one line per adapter, JSON or (FILE.csv) comma-separated values: directory and path, and optionally
    parent, level and note. Parents are published before children. An adapter that is already published is reported, and
    a refused line does not stop the others: correct it and run the same command again.

    \b
    loratree publish ./out/cardiology tiny/medicine/cardiology
    loratree publish ./out/alice tiny/medicine/cardiology/diagnosis/alice --parent tiny/medicine@2
    loratree publish --from-dir ./adapters tiny/medicine --parent base > adapters.jsonl
    loratree publish --manifest adapters.jsonl --dry-run
    """
    if from_dir is not None:
        others = (path, manifest, trained_on, force_parent or None, new_path or None, dry_run or None)
        if directory is None or others != (None,) * 6:
            raise click.UsageError("--from-dir DIR takes one PATH, and perhaps --parent, --level and --note")
        _print_manifest(from_dir, str(directory), level, {"parent": parent, "note": note})
        return
    if manifest is None:
        if directory is None or path is None:
            is_file = directory is not None and directory.is_file()
            raise click.UsageError(f"give DIRECTORY and PATH, or --manifest {directory if is_file else 'FILE'}")
        options = {
            "parent": parent,
            "trained_on": trained_on,
            "force_parent": force_parent,
            "level": level,
            "new_path": new_path,
            "assume": not no_assume,
        }
        _publish_one(directory, path, note, options, dry_run=dry_run, as_json=as_json)
    elif force_parent or new_path or (directory, path, parent, trained_on, level, note) != (None,) * 6:
        raise click.UsageError("with --manifest, its lines say the directory, path, parent, level and note")
    else:
        _publish_many(manifest, jobs, dry_run, not no_assume, as_json)


def _print_manifest(directory: Path, under: str, level: Level | None, fields: dict[str, str | None]) -> None:
    """Print a line for each adapter in a folder, for --manifest; nothing is published."""
    from loratree_registry.workspace.find_adapters import find_adapters
    from loratree_registry.workspace.manifest_lines import to_line
    from loratree_registry.workspace.planned import plan_levels

    with connected() as opened:
        opened.base(base_of(under))  # a misspelled base would spoil every line
        found = find_adapters(directory, under)
        levels = plan_levels(opened, [adapter.path for adapter in found.adapters], level)
    given = {name: text for name, text in fields.items() if text is not None}
    lines = [
        to_line({"directory": adapter.directory, "path": adapter.path, "level": levels[adapter.path]} | given)
        for adapter in found.adapters
    ]
    for line in lines:
        click.echo(line)
    for reason in found.left_out:
        say(f"left out: {reason}")
    left_out = f", {len(found.left_out)} left out" if found.left_out else ""
    adapters = counted(len(found.adapters), "adapter")
    say(
        f"{adapters}{left_out}, none published: look at the lines and at their levels, which never change, then "
        "loratree publish --manifest FILE"
    )


def _publish_many(manifest: Path, jobs: int, dry_run: bool, assume: bool, as_json: bool) -> None:
    from loratree_registry.workspace.manifest_lines import read_rows
    from loratree_registry.workspace.publish_many import INTERRUPTED, publish_rows

    rows = read_rows(manifest)
    home = Settings.from_environment().home
    kept = "what was published stays: the same command goes on"
    with connected() as opened, working(f"reading {manifest}", kept=kept) as on_progress:
        report = publish_rows(opened, rows, home=home, jobs=jobs, dry_run=dry_run, assume=assume, progress=on_progress)
    for (says, details), refused in _group_refused(report).items():
        first = refused[0]
        lines = [str(outcome.line) for outcome in refused]
        where = f"line {first.line}: {first.path}"
        if len(refused) > 1:
            where = f"{counted(len(refused), 'line')} ({listed(lines)})"
        say_refused(f"{where}: {says}", details)
    for why, lines in _group_assumed(report).items():
        say(f"assumed for ever: {counted(len(lines), 'line')} ({listed(lines, limit=3)}): {why}")
    for warning, lines in _group_warnings(report).items():
        say(f"warning: {counted(len(lines), 'line')} ({listed(lines, limit=3)}): {warning}")
    if report.makes:
        made = [counted(count, level) for level, count in report.makes.items()]
        say(f"new nodes: {', '.join(made)}; to choose another level, write it in the line: levels never change")
    if report.stopped == INTERRUPTED:
        done = f"{report.published} published, {report.left} of {counted(len(rows), 'line')} to go"
        complain(f"loratree: interrupted: {done}: the same command goes on")
    elif report.stopped:
        left = f"{report.left} of {counted(len(rows), 'line')} to go"
        complain(f"stopped with {left} ({report.stopped}): the same command goes on")
    if as_json:
        print_json(report)
    else:
        done = f"{report.ready} to publish" if dry_run else f"{report.published} published"
        others = f", {report.other_base} although the config names another base" if report.other_base else ""
        assumed = f" ({report.assumed} of them with an assumed pin{others})" if report.assumed else ""
        echo(f"{done}, {report.already} already there{assumed}, {report.refused} refused")
    sys.exit(early_end.INTERRUPTED if report.stopped == INTERRUPTED else 1 if report.refused or report.left else 0)


def _group_refused(report: "Report") -> dict[tuple[str, tuple[str, ...]], list["Outcome"]]:
    """Return the lines that were refused, by the sentence that says why and its details.

    A sentence may name the line's own path: if several differ in that alone, it says PATH.
    """
    refused = [outcome for outcome in report.outcomes if outcome.status == "refused"]
    counts = Counter(_without_path(outcome) for outcome in refused)
    grouped: dict[tuple[str, tuple[str, ...]], list[Outcome]] = {}
    for outcome in refused:
        says = _without_path(outcome) if counts[_without_path(outcome)] > 1 else str(outcome.says)
        grouped.setdefault((says, outcome.details), []).append(outcome)
    return grouped


def _without_path(outcome: "Outcome") -> str:
    """Return why a line was refused, with PATH in place of its path."""
    return re.sub(rf"(?<![\w./-]){re.escape(outcome.path)}(?![\w/-]|\.\w)", "PATH", str(outcome.says))


def _group_assumed(report: "Report") -> dict[str, list[str]]:
    """Return the lines whose pin was assumed now, by the sentence that says why."""
    grouped: dict[str, list[str]] = {}
    for outcome in report.outcomes:
        if outcome.found == "assumed" and outcome.why is not None:
            grouped.setdefault(outcome.why, []).append(str(outcome.line))
    return grouped


def _group_warnings(report: "Report") -> dict[str, list[str]]:
    """Return the lines that are warned of, by the warning."""
    grouped: dict[str, list[str]] = {}
    for outcome in report.outcomes:
        for warning in outcome.warnings:
            grouped.setdefault(warning, []).append(str(outcome.line))
    return grouped


def _publish_one(
    directory: Path, path: str, note: str | None, options: dict[str, Any], *, dry_run: bool, as_json: bool
) -> None:
    """Publish one folder, or only check it; `options` are those of `prepare`."""
    from loratree_registry.workspace.publish import prepare, publish_directory

    if not directory.exists() and Path(path).exists():
        raise click.UsageError(f"the folder comes first: loratree publish {path} {directory}")
    options["home"] = Settings.from_environment().home
    kept = "nothing is published by a dry run"
    if not dry_run:
        kept = (
            "a version is published whole or not at all; the parts that arrived stay for a day: the same command sends "
            "the rest"
        )
    with connected() as opened, working(f"publishing {directory}", kept=kept) as on_progress:
        if dry_run:
            _print_checked(path, prepare(opened, directory, path, **options, progress=on_progress), as_json)
            return
        submitted = publish_directory(opened, directory, path, note=note, **options, progress=on_progress)
        node = None if submitted.published.created or as_json else opened.node(path)
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
        say(f"{version.path}@{version.number}: published, {bytes_text(version.size)}{_made_text(submitted.made)}")
    else:
        stored = "its stored bytes were damaged and are replaced" if submitted.uploaded_bytes else "nothing stored"
        newer = node is not None and newer_head(version.number, node.head)
        head = f", and the head is @{newer}" if newer else ""
        pinned = f"it is pinned to {pin_text(version.pin, version.base)}"
        say(f"{version.path}@{version.number}: already published, {stored}; {pinned}{head}")
    echo(version.digest)


def _print_checked(path: str, prepared: "Prepared", as_json: bool) -> None:
    """Print what publishing would do, after a dry run."""
    known, pin = prepared.known, prepared.pin
    if as_json:
        ref = None if known is None else f"{known.path}@{known.number}"
        print_json({"path": path, "already": ref, "found": pin.found, "why": pin.why, "makes": prepared.made})
        return
    for warning in pin.warnings if known is None else ():
        say(f"warning: {warning}")
    if known is not None:
        echo(f"{known.path}@{known.number}: already published")
    else:
        say(pin.why)
        size = bytes_text(prepared.adapter.file.size)
        echo(f"{path}: to publish, {size}{_made_text(prepared.made)}")


def _made_text(made: dict[str, Level]) -> str:
    """Name the nodes that publishing makes."""
    new = [f"{path} ({level})" for path, level in made.items()]
    return f"; new: {', '.join(new)}" if new else ""
