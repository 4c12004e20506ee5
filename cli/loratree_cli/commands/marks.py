"""loratree withdraw and quarantine: marks on versions."""

import click

from loratree_cli.options import check_given
from loratree_cli.output import json_option, print_json, say
from loratree_registry.connect import connected
from loratree_registry.core.records import Mark, Version
from loratree_registry.core.registry import MAX_PAGE, Registry
from loratree_registry.errors import Unavailable, listed

_reason = click.option("--reason", metavar="TEXT", help="Why, in one line.")
_undo = click.option("--undo", is_flag=True, help="Remove the mark.")


@click.command()
@click.argument("ref")
@_reason
@_undo
@json_option
def withdraw(ref: str, reason: str | None, undo: bool, as_json: bool) -> None:
    """Withdraw the version that REF names by its number or digest, so that it is no longer a head.

    Versions trained on it still resolve, marked with the reason; with --strict they do not. If an alias names the
    version, move the alias first.

    \b
    loratree withdraw tiny/medicine@2 --reason "diverges on long prompts"
    loratree withdraw tiny/medicine@2 --undo
    """
    _check("withdraw", ref, reason, undo)
    with connected() as opened:
        before = None if as_json else opened.version(ref).withdrawn
        version = opened.reinstate(ref) if reason is None else opened.withdraw(ref, reason=reason)
    _print(version, "withdrawn", version.withdrawn, before, as_json)


@click.command()
@click.argument("ref")
@_reason
@_undo
@json_option
def quarantine(ref: str, reason: str | None, undo: bool, as_json: bool) -> None:
    """Stop every chain through the version that REF names by its number or digest, such as one that leaks data.

    No chain resolves, composes or downloads through it, and the same bytes cannot be published again, at any path.
    `show` and `lineage` still show it. Versions of other paths that hold the same bytes are named: they stay as they
    are.

    \b
    loratree quarantine tiny/medicine@2 --reason "trained on names of patients"
    loratree quarantine tiny/medicine@2 --undo
    """
    _check("quarantine", ref, reason, undo)
    with connected() as opened:
        before = None if as_json else opened.version(ref).quarantined
        version = opened.lift_quarantine(ref) if reason is None else opened.quarantine(ref, reason=reason)
        _print(version, "quarantined", version.quarantined, before, as_json)
        if reason is not None:
            _warn_of_others(opened, version)


def _warn_of_others(opened: Registry, version: Version) -> None:
    """Name the versions that hold the same bytes as one that is quarantined, and are not, of the first MAX_PAGE.

    They are asked for after the mark is there, as none can be published from then on. If nobody answers now, the
    command did what it was to do nevertheless.
    """
    try:
        pages = [opened.holders(file.sha256, limit=MAX_PAGE) for file in version.files]
    except Unavailable as error:
        say(f"warning: which other versions hold the same bytes is not known: {error}, then run the same command again")
        return
    others = [f"{held.path}@{held.number}" for page in pages for held in page.items if held.quarantined is None]
    if others:
        hold = "version holds" if len(others) == 1 else "versions hold"
        say(f"warning: {len(others)} {hold} the same bytes and can still be used: {listed(others, limit=5)}")


def _check(command: str, ref: str, reason: str | None, undo: bool) -> None:
    """Raise UsageError, which names all that is missing at once."""
    is_unclear = undo == (reason is not None)
    check_given(command, ref, "--reason TEXT, or --undo alone" if is_unclear else None)


def _print(version: Version, what: str, mark: Mark | None, before: Mark | None, as_json: bool) -> None:
    """Print a version and what became of the mark that was there `before`, which only people are told."""
    if as_json:
        print_json(version)
    else:
        say(f"{version.path}@{version.number} {_became(what, mark, before)}")


def _became(what: str, mark: Mark | None, before: Mark | None) -> str:
    if mark is None:
        return f"is no longer {what}" if before else f"was not {what}, so nothing changed"
    if before is None:
        return f"is {what}: {mark.reason}"
    if before.reason == mark.reason:
        return f"was {what} before, so nothing changed: {mark.reason}"
    return f"was {what} before ({before.reason}), and the reason is now: {mark.reason}"
