"""The adapters in a folder of folders, as the lines of a manifest for `publish_rows`."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from loratree_registry.core.paths import parent_of, parse_path
from loratree_registry.core.records import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from loratree_registry.errors import Invalid, NotFound, listed
from loratree_registry.workspace.other_folders import (
    RESAVE,
    explain_no_config,
    explain_no_weights,
    is_of_another_tool,
)

_DEPTH: Final = 8  # folders below the given one
_CHECKPOINT: Final = re.compile(r"checkpoint-(\d{1,18})")
_NOT_IN_NAMES: Final = re.compile(r"[^a-z0-9._-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundAdapter:
    """A folder that holds an adapter, and the path of the tree to publish it at."""

    directory: str
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundAdapters:
    """The adapters in a folder, sorted by path; and a sentence about each that looks like one and is left out."""

    adapters: list[FoundAdapter]
    left_out: list[str]


@dataclass(slots=True)
class _Search:
    """What was found so far: each adapter's folder with the folder that gives its name, and what is left out.

    `is_adapter` says whether the folder that is searched is an adapter itself.
    """

    adapters: list[tuple[Path, Path]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    is_adapter: bool = False


def find_adapters(directory: Path, under: str) -> FoundAdapters:
    """Find every adapter in `directory`, with a path below `under`: the folders' names, in lower case.

    Of a Trainer's run, it is the adapter beside the checkpoints, or else the last checkpoint's; its name is the run's,
    and `under` itself if `directory` is the run. Links are not followed. Raises NotFound if there is no such folder,
    Invalid if it is an adapter itself, if it holds none, or two that would have one path, or a run for a base alone.
    """
    parse_path(under)
    if not directory.is_dir():
        raise NotFound(f"{directory} is not a folder: give one that holds folders of adapters")
    root, search, found = directory.resolve(), _Search(), dict[str, list[str]]()
    _find(root, 0, search)
    for adapter, run in search.adapters:
        names = [_to_segment(name) for name in run.relative_to(root).parts]
        found.setdefault(parse_path("/".join([under, *names])), []).append(str(adapter))
    if not found and search.is_adapter:
        raise Invalid(f"{directory} is itself an adapter: loratree publish {directory} PATH")
    if not found:
        why = f" ({listed(search.left_out, limit=1)})" if search.left_out else ""
        raise Invalid(
            f"no folder in {directory} holds {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}{why}: {RESAVE}",
            details=search.left_out,
        )
    if under in found and parent_of(under) is None:
        raise Invalid(
            f"{directory} is the run of a Trainer, so its adapter takes the path itself, and {under} is a base alone, "
            f"which has no versions: write {under}/DOMAIN"
        )
    if doubled := [paths for paths in found.values() if len(paths) > 1]:
        raise Invalid(f"{listed(doubled[0], limit=3)} would have one path: rename the folders but one")
    adapters = [FoundAdapter(directory=paths[0], path=path) for path, paths in sorted(found.items())]
    return FoundAdapters(adapters=adapters, left_out=search.left_out)


def _find(folder: Path, depth: int, search: _Search) -> None:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise Invalid(f"{folder} cannot be read: {error.strerror}") from error
    names = [entry.name for entry in entries]
    is_adapter = {ADAPTER_CONFIG, ADAPTER_WEIGHTS} <= set(names)
    folders = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)] if depth < _DEPTH else []
    checkpoints = [name for name in folders if _CHECKPOINT.fullmatch(name)]
    if is_adapter and depth:
        search.adapters.append((folder, folder))
    elif checkpoints and not is_adapter:
        _find_last(folder, checkpoints, search)
    elif is_adapter:
        search.is_adapter = True
        search.left_out.append(f"{folder} is itself an adapter: loratree publish {folder} PATH")
    elif (reason := _explain(folder, names)) is not None:
        search.left_out.append(reason)
    search.left_out += [
        f"{folder / entry.name} is a link, and links are not followed"
        for entry in entries
        if entry.is_symlink() and entry.is_dir()
    ]
    for name in folders:
        if name not in checkpoints and not name.startswith("."):
            _find(folder / name, depth + 1, search)


def _find_last(folder: Path, checkpoints: list[str], search: _Search) -> None:
    """Take the checkpoint with the most steps that holds an adapter; later ones are left out."""
    for name in sorted(checkpoints, key=lambda name: int(name.rpartition("-")[2]), reverse=True):
        names = sorted(path.name for path in (folder / name).iterdir())
        if {ADAPTER_CONFIG, ADAPTER_WEIGHTS} <= set(names):
            search.adapters.append((folder / name, folder))
            return
        search.left_out.append(_explain(folder / name, names) or explain_no_config(folder / name, names))


def _explain(folder: Path, names: list[str]) -> str | None:
    """Return why a folder that holds a part of an adapter, or an adapter of another tool, is none; else None."""
    if ADAPTER_CONFIG in names:
        return None if ADAPTER_WEIGHTS in names else explain_no_weights(folder, names)
    looks_like_one = any(name.startswith("adapter_model.") for name in names) or is_of_another_tool(folder, names)
    return explain_no_config(folder, names) if looks_like_one else None


def _to_segment(name: str) -> str:
    if not name.isprintable():
        raise Invalid(f"the folder {name!a} has a name that no line of text can hold: rename it")
    return _NOT_IN_NAMES.sub("-", name.lower()).strip("-._") or "adapter"
