"""Which base an adapter was trained on: the name or the folder that its config gives, against the bases here."""

import re
from pathlib import Path
from typing import Final

from loratree_registry.core.paths import parent_of, parse_ref
from loratree_registry.core.progress import Progress, silent
from loratree_registry.core.records import ADAPTER_CONFIG, Base
from loratree_registry.core.registry import Registry, list_bases
from loratree_registry.errors import Conflict, Invalid, NotFound, listed
from loratree_registry.tensor_files.checkpoint import open_checkpoint
from loratree_registry.tensor_files.comparison import has_names, holds_base
from loratree_registry.workspace.adapter_directory import AdapterDirectory
from loratree_registry.workspace.base_locations import base_directory, base_files
from loratree_registry.workspace.lockfile import LOCKFILE

_HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


def find_folder(adapter: AdapterDirectory, trained_on: Path | None) -> Path | None:
    """Return the folder on this machine that base_model_name_or_path names, or None if it names no folder here.

    A relative one counts from where the training ran: here, or beside the adapter. If several are there, `trained_on`
    says which. Raises Conflict if it does not.
    """
    if adapter.base_name is None:
        return None
    try:
        named = Path(adapter.base_name)
        places = [named] if named.is_absolute() else [named, adapter.path / named, adapter.path.parent / named]
        found = list({place.resolve(): place for place in reversed(places) if place.is_dir()}.values())[::-1]
        chosen = None if trained_on is None else trained_on.resolve()
    except (OSError, ValueError):  # a name too long, or with a null byte
        return None
    if len(found) > 1 and chosen is not None:
        found = [place for place in found if chosen in (place.resolve(), place.resolve() / LOCKFILE)] or found
    if len(found) > 1:
        raise Conflict(
            f"the adapter names the folder {adapter.base_name}, which is both here and beside the adapter "
            f"({listed([str(place.resolve()) for place in found])}): say with --trained-on which it was trained on"
        )
    return next(iter(found), None)


def is_base(
    registry: Registry, base: Base, name: str, folder: Path | None, home: Path, progress: Progress = silent
) -> bool:
    """Return whether the adapter was trained on the base: compare a folder's tensors, or else compare the name."""
    return _is_named(base, name) if folder is None else holds(registry, base, folder, home, progress)


def find_other_base(
    registry: Registry, base: Base, name: str, folder: Path | None, home: Path, progress: Progress = silent
) -> Base | None:
    """Return another base of the registry that the adapter was trained on, if it is not `base`; None if none is."""
    others = (other for other in list_bases(registry) if other.name != base.name)
    return next((other for other in others if is_base(registry, other, name, folder, home, progress)), None)


def _is_named(base: Base, name: str) -> bool:
    """Return whether `name` is the base's, its source, or NAME@sha256:…, as `loratree pull` writes it."""
    if name in (base.name, base.source):
        return True
    return (digest := base_digest_of(name)) is not None and digest == base.digest


def explain_other_name(base: Base, name: str) -> str | None:
    """Say what `name` is, and what the base is, if `name` has the form of a hub's id and the base has another source.

    A path of another machine may have that form too, such as `out/merged`. None for any other name.
    """
    if not _HUB_ID.fullmatch(name):
        return None
    names = f"the adapter's config names {name} as its base, and {base.name} "
    if base.source is None:
        return (
            f"{names}has no source: if that is the same model, `loratree base set {base.name} --source {name}` says so"
        )
    return f"{names}was added from {base.source}"


def base_digest_of(name: str) -> str | None:
    """Return the digest in NAME@sha256:…, the form in which `loratree pull` writes a base, or None in another form."""
    try:
        ref = parse_ref(name)
    except Invalid:
        return None
    return ref.selector if parent_of(ref.path) is None and isinstance(ref.selector, str) else None


def holds(registry: Registry, base: Base, folder: Path, home: Path, progress: Progress = silent) -> bool:
    """Return whether a folder holds the base: its tensors, or the very files that the base was added from.

    A folder that held the base may hold other weights now, so its bytes are hashed whenever a new adapter that names
    the folder is published (about a second per gigabyte).
    """
    if holds_base(folder, registry.base_manifest(base.name), progress):
        return True
    files = base_files(home, base.digest) or registry.base_manifest(base.name).weight_files
    if not files or (folder / ADAPTER_CONFIG).exists():
        return False
    try:
        checkpoint = open_checkpoint(folder).telling(progress, f"hashing {folder}")
        return {shard.path.name for shard in checkpoint.shards} == files.keys() and checkpoint.hash_files() == files
    except (Invalid, NotFound):
        return False


def explain_mismatch(registry: Registry, base: Base, folder: Path, home: Path) -> str:
    """Explain why a folder of weights is not accepted as the base."""
    remembered = base_directory(home, base.digest)
    if remembered is None or remembered.resolve() != folder.resolve():
        return f"holds other weights than {base.name}"
    if has_names(folder, registry.base_manifest(base.name)):
        return f"holds other weights than {base.name}, although it was added from there"
    return (
        f"is where {base.name} was added from, but it does not store all of the model's tensors under their names, so "
        "they are not compared"
    )
