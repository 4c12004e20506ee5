"""What an adapter was trained on: DESIGN.md, rule 2."""

from dataclasses import dataclass
from pathlib import Path

from loratree_registry.core.chain import Step
from loratree_registry.core.paths import BASE, ancestors_of, base_of, is_ancestor, is_digest, parse_ref
from loratree_registry.core.records import Base, PinSource
from loratree_registry.core.registry import Registry
from loratree_registry.errors import Conflict, Invalid, NotFound
from loratree_registry.tensor_files.comparison import has_names, holds_base
from loratree_registry.workspace.adapter_directory import AdapterDirectory
from loratree_registry.workspace.base_locations import base_directory
from loratree_registry.workspace.lockfile import LOCKFILE, Lockfile, check_artifact, read_lockfile


@dataclass(frozen=True, slots=True)
class FoundPin:
    """What to pin to: a ref `PATH@NUMBER`, `base`, or None for the head that the registry finds; and how it was found.

    `digest` is the pinned version's, None for the base and where `parent` is None. `why` is a sentence for people.
    """

    parent: str | None
    found: PinSource
    why: str
    digest: str | None = None


def find_pin(registry: Registry, adapter: AdapterDirectory, path: str, *, parent: str | None, home: Path) -> FoundPin:
    """Decides what the adapter that is to be published at `path` was trained on.

    A verified lockfile beside base_model_name_or_path decides; else `parent` (a ref, or `base`); else, only where the
    config names nothing, the nearest ancestor's head. An adapter that names the plain base is pinned to it while no
    ancestor has a version. Raises Invalid, NotFound or Conflict where these disagree or leave it open.
    """
    base = registry.base(base_of(path))
    said = None if parent is None else _said(registry, path, parent)
    composed = _composed(registry, base, adapter, path, said)
    if composed is not None:
        return _agreed(composed, said)
    return said or _unsaid(registry, base, adapter, path, home)


def _said(registry: Registry, path: str, parent: str) -> FoundPin:
    """The pin that --parent names."""
    if parent in (BASE, base_of(path)):
        return FoundPin(BASE, "explicit", f"pinned to the base {base_of(path)}, as --parent says")
    ref = parse_ref(parent)
    if not is_ancestor(ref.path, path):
        raise Invalid(f"--parent {parent} is not above {path}: give a version of one of its ancestors, or base")
    version = registry.version(parent)
    name = f"{version.path}@{version.number}"
    return FoundPin(name, "explicit", f"pinned to {name}, as --parent says", version.digest)


def _composed(
    registry: Registry, base: Base, adapter: AdapterDirectory, path: str, said: FoundPin | None
) -> FoundPin | None:
    """The pin of the lockfile beside base_model_name_or_path; None without one, or where --parent overrules it."""
    folder = _folder(adapter)
    if folder is None:
        return None
    try:
        lockfile = read_lockfile(folder)
        return None if lockfile is None else _verified(registry, base, lockfile, folder, path)
    except _OtherBase:
        raise
    except (Invalid, NotFound, Conflict) as error:
        if said is not None:
            return None
        raise type(error)(f"{error}; or say with --parent what the adapter was trained on") from error


class OpenPin(Conflict):
    """Nothing tells what the adapter was trained on, and guessing would record a wrong lineage."""


class _OtherBase(Conflict):
    """A lockfile of another base: no --parent makes that right."""


def _check_base(lockfile: Lockfile, base: Base, file: Path) -> None:
    if lockfile.chain.base_digest != base.digest:
        raise _OtherBase(
            f"the adapter was trained on a composition of another base: {file} names {lockfile.chain.base} "
            f"({lockfile.chain.base_digest}), {base.name} is {base.digest}: publish it in that base's tree"
        )


def _verified(registry: Registry, base: Base, lockfile: Lockfile, folder: Path, path: str) -> FoundPin:
    file = folder / LOCKFILE
    _check_base(lockfile, base, file)
    if lockfile.artifact.mode != "merge":
        raise Invalid(f"{file} is of a flattened adapter, which is no model to train on: compose with --mode merge")
    check_artifact(lockfile, folder)
    steps = lockfile.chain.steps
    if not steps:
        return FoundPin(BASE, "lockfile", f"pinned to the base {base_of(path)}, from the lockfile {file}")
    leaf = steps[-1]
    if not is_ancestor(leaf.path, path):
        raise Invalid(f"{file} is a composition of {leaf.path}, which is not above {path}: publish below {leaf.path}")
    for step in steps:
        _check_step(registry, step, file)
    if registry.resolve(_name(leaf)).to_chain() != lockfile.chain:
        raise Invalid(
            f"{file} is not what {_name(leaf)} resolves to by its pins: it was composed with --follow or level "
            "weights, which no pin can name, so train on a composition without them"
        )
    why = f"pinned to {_name(leaf)}, from the lockfile {file}"
    return FoundPin(_name(leaf), "lockfile", why, leaf.digest)


def _check_step(registry: Registry, step: Step, file: Path) -> None:
    try:
        found = registry.version(_name(step)).digest
    except NotFound as error:
        raise NotFound(f"{file} names {_name(step)}, which this registry does not hold: {error}") from error
    if found != step.digest:
        raise Conflict(
            f"{file} names {_name(step)} with the digest {step.digest}, here it is {found}: it comes from another "
            "registry, so compose the ancestor from this one"
        )


def _agreed(composed: FoundPin, said: FoundPin | None) -> FoundPin:
    if said is not None and said.parent != composed.parent:
        raise Conflict(f"--parent says {said.parent}, but the adapter is {composed.why}: leave --parent out")
    return composed


def _unsaid(registry: Registry, base: Base, adapter: AdapterDirectory, path: str, home: Path) -> FoundPin:
    """The pin where neither a lockfile nor --parent tells it."""
    candidates = _versioned_ancestors(registry, path)
    name, folder = adapter.base_name, _folder(adapter)
    if name is None:
        return _assumed(candidates, base, f"{adapter.path} does not say what it was trained on")
    shown = name if name.isprintable() and len(name) <= 300 else ascii(name[:300])
    if folder is None and _names_version(name):
        return _pulled(registry, name, path, candidates)
    if _is_base(registry, base, name, folder):
        if candidates:
            raise OpenPin(_ask(f"the adapter names the plain base {base.name} ({shown})", path, candidates))
        return FoundPin(BASE, "explicit", f"pinned to the base {base.name}, which the adapter's config names")
    if folder is not None and any(folder.glob("*.safetensors")):
        what = f"{shown}, which the adapter was trained on, {_other(registry, base, folder, home)}"
        raise OpenPin(_ask(what, path, candidates))
    if candidates:
        raise OpenPin(_ask(f"the adapter was trained on {shown}, which is not known here", path, candidates))
    return _assumed([], base, f"{shown}, which the adapter was trained on, is not known here")


def _other(registry: Registry, base: Base, folder: Path, home: Path) -> str:
    """Why a folder of weights is not taken for the base."""
    remembered = base_directory(home, base.digest)
    if remembered is None or remembered.resolve() != folder.resolve():
        return f"holds other weights than {base.name}"
    if has_names(folder, registry.base_manifest(base.name)):
        return f"holds other weights than {base.name}, although it was added from there"
    return (
        f"is where {base.name} was added from, but it does not store all of the model's tensors under their names, so "
        "they are not compared"
    )


def _names_version(name: str) -> bool:
    """Tells whether `name` is PATH@sha256:…, which `loratree pull` writes for what a version was trained on."""
    try:
        return is_digest(parse_ref(name).selector)
    except Invalid:
        return False


def _pulled(registry: Registry, name: str, path: str, candidates: list[str]) -> FoundPin:
    if not is_ancestor(parse_ref(name).path, path):
        raise OpenPin(_ask(f"the adapter was trained on {name}, which is not above {path}", path, candidates))
    try:
        version = registry.version(name)
    except NotFound as error:
        raise OpenPin(_ask(f"the adapter was trained on {name}, which is not here", path, candidates)) from error
    ref = f"{version.path}@{version.number}"
    return FoundPin(ref, "explicit", f"pinned to {ref}, which the adapter's config names", version.digest)


def _assumed(candidates: list[str], base: Base, reason: str) -> FoundPin:
    what = f"the nearest ancestor's head, {candidates[-1]}" if candidates else f"the base {base.name}"
    return FoundPin(None, "assumed", f"{reason}: assumed to be {what}")


def _is_base(registry: Registry, base: Base, name: str, folder: Path | None) -> bool:
    """Tells whether the adapter was trained on the base: a folder is compared with it, only another name is believed.

    A folder that was once the base may hold other weights by now, so its bytes are hashed each time that an adapter
    which names it is published for the first time (about a second a gigabyte).
    """
    if folder is None:
        return name in (base.name, base.source)
    return holds_base(folder, registry.base_manifest(base.name))


def _ask(what: str, path: str, candidates: list[str]) -> str:
    choices = " or ".join(f"--parent {candidate}" for candidate in [*reversed(candidates), BASE])
    return f"{what}, so what {path} builds on is open: say {choices}"


def _versioned_ancestors(registry: Registry, path: str) -> list[str]:
    """PATH@HEAD of each ancestor that has a version, root to leaf."""
    found = []
    for ancestor in ancestors_of(path)[1:]:
        try:
            node = registry.node(ancestor)
        except NotFound:
            break
        if node.head is not None:
            found.append(f"{node.path}@{node.head}")
    return found


def _folder(adapter: AdapterDirectory) -> Path | None:
    """The folder that base_model_name_or_path names on this machine."""
    if adapter.base_name is None:
        return None
    try:
        folder = Path(adapter.base_name)
        return folder if folder.is_dir() else None
    except (OSError, ValueError):  # a name too long, or with a null byte
        return None


def _name(step: Step) -> str:
    return f"{step.path}@{step.version}"
