"""The pin of a new version: the version or the base that the adapter was trained on (docs/tree.md, "Pins").

A wrong pin would record a wrong lineage for ever. So a verified lockfile decides, then --parent, then the adapter's
config; the head is assumed only if the config names nothing, and publish asks for --parent if the answer stays open.
"""

from dataclasses import dataclass
from pathlib import Path

from loratree_registry.core.chain import Step
from loratree_registry.core.paths import BASE, ancestors_of, base_of, is_ancestor, is_digest, parse_ref
from loratree_registry.core.records import ADAPTER_CONFIG, Base, PinSource
from loratree_registry.core.registry import Registry
from loratree_registry.errors import Conflict, Invalid, NotFound
from loratree_registry.tensor_files.checkpoint import open_checkpoint
from loratree_registry.tensor_files.comparison import has_names, holds_base
from loratree_registry.workspace.adapter_directory import AdapterDirectory
from loratree_registry.workspace.base_locations import base_directory, base_files
from loratree_registry.workspace.lockfile import LOCKFILE, Lockfile, check_artifact, read_lockfile


@dataclass(frozen=True, slots=True)
class FoundPin:
    """The pin of a new version, and how it was found.

    `parent` is a ref `PATH@NUMBER`, `base`, or None to let the registry take the nearest head. `digest` is the digest
    of the pinned version, or None for the base and for the nearest head. `why` is a sentence for people.
    """

    parent: str | None
    found: PinSource
    why: str
    digest: str | None = None


def find_pin(
    registry: Registry,
    adapter: AdapterDirectory,
    path: str,
    *,
    parent: str | None,
    home: Path,
    trained_on: Path | None = None,
    force: bool = False,
) -> FoundPin:
    """Find what the adapter that will be published at `path` was trained on.

    `trained_on` is the folder of the composition, or its lockfile alone if the adapter was trained on another machine;
    without it, the adapter's config names a folder.

    A verified lockfile beside base_model_name_or_path decides; else `parent` (a ref, or `base`); else the config; and
    only if the config names nothing, the nearest ancestor's head. An adapter that names the plain base is pinned to the
    base if no ancestor has a version. Raises Invalid, NotFound, or Conflict if the sources disagree or do not decide.

    With `force`, `parent` decides against a composition of this base that the adapter names.
    """
    base = registry.base(base_of(path))
    explicit = None if parent is None else _pin_from_option(registry, path, parent)
    if force and explicit is None:
        raise Invalid("--force-parent overrules what the adapter says, so it needs --parent: a version above, or base")
    try:
        return _find_agreed(registry, base, adapter, path, explicit, home, trained_on)
    except _Disagreement as error:
        if not force or explicit is None:
            raise
        return FoundPin(
            explicit.parent, "forced", f"pinned to {explicit.parent} by force: {error.says}", explicit.digest
        )


class _Disagreement(Conflict):
    """What the adapter says against --parent, which --force-parent overrules."""

    def __init__(self, explicit: FoundPin, says: str) -> None:
        super().__init__(
            f"--parent says {explicit.parent}, but {says}: leave --parent out, or overrule it by --force-parent, which "
            "the version shows for ever"
        )
        self.says = says


def _find_agreed(
    registry: Registry,
    base: Base,
    adapter: AdapterDirectory,
    path: str,
    explicit: FoundPin | None,
    home: Path,
    trained_on: Path | None,
) -> FoundPin:
    """Return the pin on which the adapter and --parent agree."""
    if trained_on is not None:
        return _require_agreement(_pin_from_named(registry, base, trained_on, path, home), explicit)
    composed = _pin_from_composition(registry, base, adapter, path, explicit)
    if composed is not None:
        return _require_agreement(composed, explicit)
    if explicit is not None:
        _check_pulled(adapter, explicit)
        return explicit
    return _pin_from_config(registry, base, adapter, path, home)


def _pin_from_named(registry: Registry, base: Base, trained_on: Path, path: str, home: Path) -> FoundPin:
    """Return the pin of a composition's folder, of its lockfile alone, or of a folder of the base."""
    if trained_on.is_file():
        lockfile = read_lockfile(trained_on.parent) if trained_on.name == LOCKFILE else None
        if lockfile is None:
            raise Invalid(f"{trained_on} is no {LOCKFILE}: give the lockfile of the composition, or its folder")
        return _pin_from_lockfile(registry, base, lockfile, trained_on.parent, path, has_weights=False)
    if not trained_on.is_dir():
        raise NotFound(
            f"{trained_on} does not exist: give the folder that the adapter was trained on, or its {LOCKFILE}"
        )
    if (lockfile := read_lockfile(trained_on)) is not None:
        return _pin_from_lockfile(registry, base, lockfile, trained_on, path)
    if not _holds(registry, base, trained_on, home):
        raise Invalid(f"{trained_on} has no {LOCKFILE}, and {_explain_mismatch(registry, base, trained_on, home)}")
    return FoundPin(BASE, "explicit", f"pinned to the base {base.name}, which {trained_on} holds")


def _check_pulled(adapter: AdapterDirectory, explicit: FoundPin) -> None:
    """Raise Conflict if the config names the version that the adapter was trained on, and --parent another one."""
    name = adapter.base_name
    if name is not None and _find_folder(adapter) is None and _is_pulled_ref(name):
        digest = parse_ref(name).selector
        if explicit.digest != digest:
            raise _Disagreement(explicit, f"the adapter's config names {name}, which it was trained on")


def _pin_from_option(registry: Registry, path: str, parent: str) -> FoundPin:
    """Return the pin that --parent names. Raises Invalid, NotFound."""
    if parent in (BASE, base_of(path)):
        return FoundPin(BASE, "explicit", f"pinned to the base {base_of(path)}, as --parent says")
    ref = parse_ref(parent)
    if not is_ancestor(ref.path, path):
        raise Invalid(f"--parent {parent} is not above {path}: give a version of one of its ancestors, or base")
    version = registry.version(parent)
    name = f"{version.path}@{version.number}"
    return FoundPin(name, "explicit", f"pinned to {name}, as --parent says", version.digest)


def _pin_from_composition(
    registry: Registry, base: Base, adapter: AdapterDirectory, path: str, explicit: FoundPin | None
) -> FoundPin | None:
    """Return the pin of the lockfile beside base_model_name_or_path, or None if there is none.

    If the folder is not as it was composed, its lockfile says nothing against --parent, and the result is None too. A
    lockfile of another base is always refused.
    """
    folder = _find_folder(adapter)
    if folder is None:
        return None
    try:
        lockfile = read_lockfile(folder)
        if lockfile is None:
            return None
        _check_composed(lockfile, base, folder)
    except _OtherBase:
        raise
    except (Invalid, NotFound, Conflict) as error:
        if explicit is not None:
            return None
        raise type(error)(f"{error}; or say with --parent what the adapter was trained on") from error
    try:
        return _pin_from_chain(registry, lockfile, folder, path)
    except (Invalid, NotFound, Conflict) as error:
        if explicit is not None and explicit.digest != _leaf_digest(lockfile):
            raise _Disagreement(explicit, str(error)) from error
        if explicit is not None:
            return None
        if isinstance(error, Invalid):  # the chain is here, and is no parent of this path, or of any
            raise
        raise type(error)(f"{error}; or say with --parent what the adapter was trained on") from error


class OpenPin(Conflict):
    """A pin that cannot be decided: a guess would record a wrong lineage, so a person must give --parent."""


class _OtherBase(Conflict):
    """A lockfile of another base: --parent cannot overrule this error."""


def _check_base(lockfile: Lockfile, base: Base, file: Path) -> None:
    if lockfile.chain.base_digest != base.digest:
        raise _OtherBase(
            f"the adapter was trained on a composition of another base: {file} names {lockfile.chain.base} "
            f"({lockfile.chain.base_digest}), {base.name} is {base.digest}: publish it in that base's tree"
        )


def _leaf_digest(lockfile: Lockfile) -> str | None:
    return lockfile.chain.steps[-1].digest if lockfile.chain.steps else None


def _pin_from_lockfile(
    registry: Registry, base: Base, lockfile: Lockfile, folder: Path, path: str, *, has_weights: bool = True
) -> FoundPin:
    _check_composed(lockfile, base, folder, has_weights=has_weights)
    return _pin_from_chain(registry, lockfile, folder, path, has_weights=has_weights)


def _check_composed(lockfile: Lockfile, base: Base, folder: Path, *, has_weights: bool = True) -> None:
    """Check that a lockfile is of a model over this base, and that its folder is as it was composed."""
    file = folder / LOCKFILE
    _check_base(lockfile, base, file)
    if lockfile.artifact.mode != "merge":
        raise Invalid(f"{file} is of a flattened adapter, which is no model to train on: compose with --mode merge")
    if has_weights:
        check_artifact(lockfile, folder)


def _pin_from_chain(
    registry: Registry, lockfile: Lockfile, folder: Path, path: str, *, has_weights: bool = True
) -> FoundPin:
    """Return the pin to the leaf of a lockfile's chain, which must be what this registry resolves it to."""
    file, steps = folder / LOCKFILE, lockfile.chain.steps
    if not steps:
        return FoundPin(BASE, "lockfile", f"pinned to the base {base_of(path)}, from the lockfile {file}")
    leaf = steps[-1]
    if not is_ancestor(leaf.path, path):
        raise Invalid(f"{file} is a composition of {leaf.path}, which is not above {path}: publish below {leaf.path}")
    for step in steps:
        _check_step(registry, step, file)
    if registry.resolve(_ref_of(leaf)).to_chain() != lockfile.chain:
        raise Invalid(
            f"{file} is not what {_ref_of(leaf)} resolves to by its pins: it was composed with --follow or level "
            "weights, which no pin can name, so train on a composition without them"
        )
    why = f"pinned to {_ref_of(leaf)}, from the lockfile {file}"
    found: PinSource = "lockfile" if has_weights else "explicit"  # without its weights, a lockfile is a person's word
    return FoundPin(_ref_of(leaf), found, why, leaf.digest)


def _check_step(registry: Registry, step: Step, file: Path) -> None:
    try:
        digest = registry.version(_ref_of(step)).digest
    except NotFound as error:
        raise NotFound(f"{file} names {_ref_of(step)}, which this registry does not hold: {error}") from error
    if digest != step.digest:
        raise Conflict(
            f"{file} names {_ref_of(step)} with the digest {step.digest}, here it is {digest}: it comes from another "
            "registry, so compose the ancestor from this one"
        )


def _require_agreement(composed: FoundPin, explicit: FoundPin | None) -> FoundPin:
    if explicit is not None and explicit.parent != composed.parent:
        raise _Disagreement(explicit, f"the adapter is {composed.why}")
    return composed


def _pin_from_config(registry: Registry, base: Base, adapter: AdapterDirectory, path: str, home: Path) -> FoundPin:
    """Return the pin that the adapter's config decides, without a lockfile and --parent. Raises OpenPin."""
    candidates = _list_versioned_ancestors(registry, path)
    name, folder = adapter.base_name, _find_folder(adapter)
    if name is None:
        return _assume_pin(candidates, base, f"{adapter.path} does not say what it was trained on")
    shown = name if name.isprintable() and len(name) <= 300 else ascii(name[:300])
    if folder is None and _is_pulled_ref(name):
        return _pin_from_pulled(registry, name, path, candidates)
    if _is_base(registry, base, name, folder, home):
        if candidates:
            raise OpenPin(_ask(f"the adapter names the plain base {base.name} ({shown})", path, candidates))
        return FoundPin(BASE, "explicit", f"pinned to the base {base.name}, which the adapter's config names")
    if folder is not None and any(folder.glob("*.safetensors")):
        what = f"{shown}, which the adapter was trained on, {_explain_mismatch(registry, base, folder, home)}"
        raise OpenPin(_ask(what, path, candidates))
    if candidates:
        raise OpenPin(_ask(f"the adapter was trained on {shown}, which is not known here", path, candidates))
    return _assume_pin([], base, f"{shown}, which the adapter was trained on, is not known here")


def _explain_mismatch(registry: Registry, base: Base, folder: Path, home: Path) -> str:
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


def _is_pulled_ref(name: str) -> bool:
    """Return whether `name` is PATH@sha256:…, the form in which `loratree pull` writes a pin."""
    try:
        return is_digest(parse_ref(name).selector)
    except Invalid:
        return False


def _pin_from_pulled(registry: Registry, name: str, path: str, candidates: list[str]) -> FoundPin:
    if not is_ancestor(parse_ref(name).path, path):
        above = parse_ref(name).path
        raise OpenPin(f"the adapter was trained on {name}, which is not above {path}: publish it below {above}")
    try:
        version = registry.version(name)
    except NotFound as error:
        raise OpenPin(_ask(f"the adapter was trained on {name}, which is not here", path, candidates)) from error
    ref = f"{version.path}@{version.number}"
    return FoundPin(ref, "explicit", f"pinned to {ref}, which the adapter's config names", version.digest)


def _assume_pin(candidates: list[str], base: Base, reason: str) -> FoundPin:
    what = f"the nearest ancestor's head, {candidates[-1]}" if candidates else f"the base {base.name}"
    return FoundPin(None, "assumed", f"{reason}: assumed to be {what}")


def _is_base(registry: Registry, base: Base, name: str, folder: Path | None, home: Path) -> bool:
    """Return whether the adapter was trained on the base: compare a folder's tensors, or else compare the name."""
    return name in (base.name, base.source) if folder is None else _holds(registry, base, folder, home)


def _holds(registry: Registry, base: Base, folder: Path, home: Path) -> bool:
    """Return whether a folder holds the base: its tensors, or the very files that the base was added from.

    A folder that held the base may hold other weights now, so its bytes are hashed whenever a new adapter that names
    the folder is published (about a second per gigabyte).
    """
    if holds_base(folder, registry.base_manifest(base.name)):
        return True
    files = base_files(home, base.digest)
    if not files or (folder / ADAPTER_CONFIG).exists():
        return False
    try:
        checkpoint = open_checkpoint(folder)
        return {shard.path.name for shard in checkpoint.shards} == files.keys() and checkpoint.hash_files() == files
    except (Invalid, NotFound):
        return False


def _ask(what: str, path: str, candidates: list[str]) -> str:
    choices = " or ".join(f"--parent {candidate}" for candidate in [*reversed(candidates), BASE])
    return f"{what}, so what {path} builds on is open: say {choices}"


def _list_versioned_ancestors(registry: Registry, path: str) -> list[str]:
    """List PATH@HEAD of each ancestor that has a version, root to leaf."""
    refs = []
    for ancestor in ancestors_of(path)[1:]:
        try:
            node = registry.node(ancestor)
        except NotFound:
            break
        if node.head is not None:
            refs.append(f"{node.path}@{node.head}")
    return refs


def _find_folder(adapter: AdapterDirectory) -> Path | None:
    """Return the folder on this machine that base_model_name_or_path names, or None if it names no folder."""
    if adapter.base_name is None:
        return None
    try:
        folder = Path(adapter.base_name)
        # A relative path counts from where the training ran: here, or beside the adapter.
        places = [folder] if folder.is_absolute() else [folder, adapter.path / folder, adapter.path.parent / folder]
        return next((place for place in places if place.is_dir()), None)
    except (OSError, ValueError):  # a name too long, or with a null byte
        return None


def _ref_of(step: Step) -> str:
    return f"{step.path}@{step.version}"
