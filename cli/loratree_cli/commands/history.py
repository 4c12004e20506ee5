"""loratree log and dependents: what happened, and what was trained on what."""

import heapq
from collections.abc import Iterator
from itertools import chain
from typing import Any, Final

import click

from loratree_cli.output import (
    First,
    bytes_text,
    every,
    json_option,
    limit_option,
    numbers,
    print_json_list,
    short,
    time_text,
)
from loratree_cli.screens.hints import say_no_base, say_no_dependents
from loratree_cli.screens.states import State
from loratree_cli.screens.tables import Column, print_table
from loratree_registry.connect import connected
from loratree_registry.core.records import Event, Version
from loratree_registry.core.registry import MAX_PAGE, Registry, list_bases

_SHOWN: Final = 20
_EVENTS: Final = (Column("when"), Column("path", kind="path"), Column("what", kind="words"))
_DEPENDENTS: Final = (
    Column("version", kind="path"),
    Column("level", 3),
    Column("rank", 5),
    Column("size", 4, "number"),
    Column("published", 2),
    Column("digest", 1),
    Column("state"),
)


@click.command()
@click.argument("path", required=False)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    help=f"Maximum event count. [default: {_SHOWN}; none with --json]",
)
@json_option
def log(path: str | None, limit: int | None, as_json: bool) -> None:
    """Show what happened at PATH and below it, newest first; without PATH, everywhere.

    \b
    loratree log tiny/medicine
    loratree log --limit 1000 --json
    """
    most = limit or (None if as_json else _SHOWN)
    with connected() as opened:
        events = First(_read_events(opened, path, min((most or MAX_PAGE) + 1, MAX_PAGE)), most)
        if as_json:
            print_json_list(events)
        elif (first := next(rows := map(_event_row, events), None)) is not None:
            print_table(_EVENTS, chain([first], rows))
        elif path is None:
            say_no_base()
    events.say_more()


@click.command()
@click.argument("ref")
@limit_option
@json_option
def dependents(ref: str, limit: int | None, as_json: bool) -> None:
    """List the versions that were trained directly on the version that REF names.

    \b
    loratree dependents tiny/medicine@1
    """
    with connected() as opened:
        versions = First(every(lambda after: opened.dependents(ref, after=after)), limit)
        if as_json:
            print_json_list(versions)
        elif (first := next(rows := map(_dependent_row, versions), None)) is not None:
            print_table(_DEPENDENTS, chain([first], rows))
        else:
            say_no_dependents(ref)
    versions.say_more()


def describe(event: Event) -> str:
    """Say what an event did, with all that it recorded: `version published: @2, pin tiny/medicine@1`."""
    detail = dict(event.detail)
    words: list[str] = []
    if "alias" in detail:
        was = detail.pop("previous", None)
        words.append(f"{detail.pop('alias')}" + (f" at @{detail.pop('version')}" if "version" in detail else ""))
        words += [f"was @{was}"] if was else []
    elif "version" in detail:
        words.append(f"@{detail.pop('version')}")
    words += [f"{key} {_value_text(value)}" for key, value in detail.items() if value is not None]
    return event.kind.replace("-", " ") + (f": {', '.join(words)}" if words else "")


def _event_row(event: Event) -> tuple[object, ...]:
    return time_text(event.created_at), event.path, describe(event)


def _dependent_row(version: Version) -> tuple[object, ...]:
    return (
        f"{version.path}@{version.number}",
        version.level,
        numbers(version.summary.ranks),
        bytes_text(version.size),
        time_text(version.created_at),
        short(version.digest),
        State(withdrawn=version.withdrawn, quarantined=version.quarantined, sound=""),
    )


def _value_text(value: Any) -> str:
    text = str(value)
    return short(text) if text.startswith("sha256:") else text


def _read_events(opened: Registry, path: str | None, page: int) -> Iterator[Event]:
    """Iterate over the events at a path, or over those of every base, newest first."""

    def read(at: str) -> Iterator[Event]:
        return every(lambda after: opened.events(at, after=after, limit=page))

    if path is not None:
        return read(path)
    return heapq.merge(*(read(base.name) for base in list_bases(opened)), key=lambda event: event.id, reverse=True)
