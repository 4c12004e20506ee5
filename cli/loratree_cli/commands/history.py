"""loratree log and dependents: what happened, and what was trained on what."""

import heapq
from collections.abc import Iterator
from itertools import islice
from typing import Any, Final

import click

from loratree_cli.output import (
    bytes_text,
    every,
    json_option,
    limit_option,
    marks_text,
    numbers,
    print_json,
    print_table,
    short,
    time_text,
)
from loratree_registry.connect import connected
from loratree_registry.core.records import Event
from loratree_registry.core.registry import MAX_PAGE, Registry, list_bases

_SHOWN: Final = 20


@click.command()
@click.argument("path", required=False)
@click.option("--limit", type=click.IntRange(min=1), default=_SHOWN, show_default=True, help="Maximum event count.")
@json_option
def log(path: str | None, limit: int, as_json: bool) -> None:
    """Show what happened at PATH and below it, newest first; without PATH, everywhere.

    \b
    loratree log tiny/medicine
    loratree log --limit 1000 --json
    """
    with connected() as opened:
        events = list(islice(_read_events(opened, path, min(limit, MAX_PAGE)), limit))
    if as_json:
        print_json(events)
        return
    print_table(
        ("when", "path", "what"), ((time_text(event.created_at), event.path, describe(event)) for event in events)
    )


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
        versions = list(every(lambda after: opened.dependents(ref, after=after), limit))
    if as_json:
        print_json(versions)
        return
    print_table(
        ("version", "level", "rank", "size", "published", "digest", "marks"),
        (
            (
                f"{version.path}@{version.number}",
                version.level,
                numbers(version.summary.ranks),
                bytes_text(version.size),
                time_text(version.created_at),
                short(version.digest),
                ", ".join(marks_text(version.withdrawn, version.quarantined)),
            )
            for version in versions
        ),
    )


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
