"""The adapters in a folder of folders, as the lines of a manifest for `publish_rows`."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from loratree_registry.core.paths import parse_path
from loratree_registry.core.records import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from loratree_registry.errors import Invalid, NotFound, listed
from loratree_registry.workspace.other_folders import RESAVE

_DEPTH: Final = 8  # folders below the given one
_CHECKPOINT: Final = re.compile(r"checkpoint-(\d{1,18})")
_NOT_IN_NAMES: Final = re.compile(r"[^a-z0-9._-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundAdapter:
    """A folder that holds an adapter, and the path of the tree to publish it at."""

    directory: str
    path: str


def find_adapters(directory: Path, under: str) -> list[FoundAdapter]:
    """Return every adapter in `directory` with a path below `under`, sorted by path: the folders' names, in lower case.

    Of a Trainer's run, it is the adapter beside the checkpoints, or else the last checkpoint's; its name is the run's.
    Links are not followed. Raises NotFound if there is no such folder, Invalid if it holds no adapter, or two that
    would have one path.
    """
    parse_path(under)
    if not directory.is_dir():
        raise NotFound(f"{directory} is not a folder: give one that holds folders of adapters")
    root, found = directory.resolve(), dict[str, list[str]]()
    for adapter, run in _find(root, 0):
        names = [_to_segment(name) for name in run.relative_to(root).parts]
        found.setdefault(parse_path("/".join([under, *names])), []).append(str(adapter))
    if not found:
        raise Invalid(f"no folder in {directory} holds {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}: {RESAVE}")
    if doubled := [paths for paths in found.values() if len(paths) > 1]:
        raise Invalid(f"{listed(doubled[0], limit=3)} would have one path: rename the folders but one")
    return [FoundAdapter(directory=paths[0], path=path) for path, paths in sorted(found.items())]


def _find(folder: Path, depth: int) -> Iterator[tuple[Path, Path]]:
    """Yield each folder of an adapter, and the folder that gives its name."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise Invalid(f"{folder} cannot be read: {error.strerror}") from error
    names = {entry.name for entry in entries}
    is_adapter = {ADAPTER_CONFIG, ADAPTER_WEIGHTS} <= names
    if is_adapter and depth:
        yield folder, folder
    folders = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)] if depth < _DEPTH else []
    checkpoints = [name for name in folders if _CHECKPOINT.fullmatch(name)]
    if not is_adapter and checkpoints and (last := _find_last(folder, checkpoints)) is not None:
        yield last, folder
    for name in folders:
        if name not in checkpoints and not name.startswith("."):
            yield from _find(folder / name, depth + 1)


def _find_last(folder: Path, checkpoints: list[str]) -> Path | None:
    """Return the checkpoint with the most steps that holds an adapter."""
    by_steps = sorted(checkpoints, key=lambda name: int(name.rpartition("-")[2]), reverse=True)
    whole = (name for name in by_steps if (folder / name / ADAPTER_WEIGHTS).is_file())
    return next((folder / name for name in whole), None)


def _to_segment(name: str) -> str:
    if not name.isprintable():
        raise Invalid(f"the folder {name!a} has a name that no line of text can hold: rename it")
    return _NOT_IN_NAMES.sub("-", name.lower()).strip("-._") or "adapter"
