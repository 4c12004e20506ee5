"""The pin of a new version: the version or the base that the adapter was trained on (docs/tree.md, "Pins").

A wrong pin would record a wrong lineage for ever. So a verified lockfile decides, then what a person says, then the
adapter's config; the head is assumed only if the config names nothing, and publish asks if the answer stays open.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from loratree_registry.core.paths import BASE, ancestors_of, base_of, is_ancestor, is_digest, parent_of, parse_ref
from loratree_registry.core.progress import Progress, silent
from loratree_registry.core.records import ADAPTER_CONFIG, ADAPTER_WEIGHTS, Base
from loratree_registry.core.registry import Registry
from loratree_registry.errors import Conflict, Invalid, NotFound
from loratree_registry.workspace.adapter_directory import AdapterDirectory
from loratree_registry.workspace.compositions import Claim, FoundPin, claim_of, pin_from_lockfile
from loratree_registry.workspace.lockfile import LOCKFILE, read_lockfile
from loratree_registry.workspace.trained_base import (
    base_digest_of,
    explain_mismatch,
    explain_other_name,
    find_folder,
    find_other_base,
    holds,
    is_base,
)

_FIND = f"say --trained-on with that folder or its {LOCKFILE}, where it is now, or"
FORCE = "overrule it with --parent and --force-parent, which the version shows for ever"


class OpenPin(Conflict):
    """A pin that cannot be decided: a guess would record a wrong lineage, so a person must give --parent."""


class _Disagreement(Conflict):
    """What the adapter says against a person's word, which --force-parent overrules."""

    def __init__(self, word: "_Word", says: str, *, remedy: str | None = None) -> None:
        remedy = remedy or f"leave {word.option} out"
        force = FORCE if word.option != "--parent" else FORCE.replace("with --parent and", "by")
        super().__init__(f"{word.option} says {word.pin.parent}, but {says}: {remedy}, or {force}")
        self.says = says


@dataclass(frozen=True, slots=True)
class _Word:
    """What a person says that the adapter was trained on, and the option that says it."""

    option: str
    pin: FoundPin


@dataclass(frozen=True, slots=True)
class _Case:
    """An adapter that will be published at `path`, in the tree of `base`."""

    registry: Registry
    base: Base
    adapter: AdapterDirectory
    path: str
    home: Path
    folder: Path | None  # what the adapter's config names, if it is on this machine
    progress: Progress


def find_pin(
    registry: Registry,
    adapter: AdapterDirectory,
    path: str,
    *,
    parent: str | None,
    home: Path,
    trained_on: Path | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> FoundPin:
    """Find what the adapter that will be published at `path` was trained on.

    A verified lockfile in the folder that the adapter's config names decides; else what a person says: `parent` (a ref,
    or `base`) or `trained_on` (a composition's folder, its lockfile alone if it is on another machine, or the base's
    folder); else the config; and only if the config names nothing, the nearest ancestor's head. An adapter that names
    the plain base is pinned to the base if no ancestor has a version. With `force`, `parent` decides against what the
    adapter says, unless that is a composition of another base.

    Raises Invalid, NotFound, or Conflict if the sources disagree or do not decide.
    """
    folder = find_folder(adapter, trained_on)
    case = _Case(registry, registry.base(base_of(path)), adapter, path, home, folder, progress)
    explicit = None if parent is None else _pin_from_option(registry, path, parent)
    if force and explicit is None:
        raise Invalid("--force-parent overrules what the adapter says, so it needs --parent: a version above, or base")
    try:
        return _find_agreed(case, explicit, trained_on)
    except _Disagreement as error:
        if not force or explicit is None:
            raise
        why = f"pinned to {explicit.parent} by force: {error.says}"
        return FoundPin(explicit.parent, "forced", why, explicit.digest)


def _find_agreed(case: _Case, explicit: FoundPin | None, trained_on: Path | None) -> FoundPin:
    """Return the pin on which the adapter and the person agree."""
    word = None if explicit is None else _Word("--parent", explicit)
    if trained_on is not None:
        named = _pin_from_named(case, trained_on)
        if word is not None and word.pin.digest != named.digest:
            raise _Disagreement(word, f"--trained-on says {named.parent}")
        word = _Word("--trained-on", named)
    claim, name = _claim_of_folder(case), case.adapter.base_name
    if claim is not None and claim.pin is not None:
        if word is not None and word.pin.digest != claim.pin.digest:
            raise _Disagreement(word, f"the adapter is {claim.pin.why}")
        return claim.pin
    if claim is not None:
        return _settle(claim, word)
    if word is None:
        return _pin_from_config(case)
    if name is None:
        return word.pin
    if is_base(case.registry, case.base, name, case.folder, case.home, case.progress):
        return _doubted(word, name)
    _check_named(case, name, word)
    return word.pin


def _doubted(word: _Word, name: str) -> FoundPin:
    """Return a person's word on an adapter whose config names the plain base, as live training leaves it too."""
    pin = word.pin
    if pin.parent == BASE or word.option != "--parent":
        return pin
    live = f"{pin.parent} is right only if it was trained on a live model with that merged into it"
    return replace(pin, doubt=f"the adapter's config names the plain base ({_shown(name)}): {live}")


def _claim_of_folder(case: _Case) -> Claim | None:
    """Return what the lockfile beside base_model_name_or_path says, or None if there is none."""
    folder = case.folder
    if folder is None:
        return None
    is_own = folder.resolve() == case.adapter.path.resolve()  # trained on a composition, and saved into its folder
    beside = frozenset({ADAPTER_CONFIG, ADAPTER_WEIGHTS} if is_own else ())
    return claim_of(case.registry, case.base, folder, case.path, beside=beside, progress=case.progress)


def _settle(claim: Claim, word: _Word | None) -> FoundPin:
    """Return a person's word on a composition that cannot be verified, if the lockfile does not contradict it."""
    assert claim.error is not None
    kind, says = type(claim.error), str(claim.error)
    if word is not None:
        if claim.leaf is not None and word.pin.digest != claim.digest:
            raise _Disagreement(word, f"the adapter was trained on a composition of {claim.leaf}, and {says}")
        return word.pin
    if claim.leaf is None:
        raise kind(f"{says}; or say with --parent what the adapter was trained on") from claim.error
    if claim.is_changed:
        raise kind(f"{says}; or, if it was as composed during the training, say --parent {claim.leaf}") from claim.error
    raise kind(f"{says}; or {FORCE}") from claim.error


def _pin_from_named(case: _Case, trained_on: Path) -> FoundPin:
    """Return the pin of a composition's folder, of its lockfile alone, or of a folder of the base."""
    if trained_on.is_file():
        is_lockfile = trained_on.name == LOCKFILE
        pin = (
            pin_from_lockfile(case.registry, case.base, trained_on, case.path, has_weights=False)
            if is_lockfile
            else None
        )
        if pin is None:
            raise Invalid(
                f"{trained_on} is not named {LOCKFILE}: give the lockfile of the composition under its own name, or "
                "the composition's folder"
            )
        return pin
    if not trained_on.is_dir():
        raise NotFound(
            f"{trained_on} does not exist: give the folder that the adapter was trained on, or its {LOCKFILE}"
        )
    file, progress = trained_on / LOCKFILE, case.progress
    pin = pin_from_lockfile(case.registry, case.base, file, case.path, has_weights=True, progress=progress)
    if pin is not None:
        return pin
    if not holds(case.registry, case.base, trained_on, case.home, progress):
        why = explain_mismatch(case.registry, case.base, trained_on, case.home)
        raise Invalid(
            f"{trained_on} has no {LOCKFILE}, and {why}: give the composition that the adapter was trained on, or the "
            "base's own folder"
        )
    return FoundPin(BASE, "explicit", f"pinned to the base {case.base.name}, which {trained_on} holds")


def _check_named(case: _Case, name: str, word: _Word) -> None:
    """Raise a disagreement if the config names another version or another base than the person says."""
    folder = case.folder
    if folder is None and _is_pulled_ref(name):
        if word.pin.digest != parse_ref(name).selector:
            raise _Disagreement(word, f"the adapter's config names {name}, which it was trained on")
    elif (other := find_other_base(case.registry, case.base, name, folder, case.home, case.progress)) is not None:
        says = f"the adapter was trained on {_shown(name)}, which is the base {other.name}"
        raise _Disagreement(word, says, remedy=f"publish it in the tree of {other.name}")
    elif folder is None and base_digest_of(name) not in (None, case.base.digest):
        says = f"the adapter was trained on {name}, and the base {case.base.name} is {case.base.digest}"
        raise _Disagreement(word, says, remedy="publish it in that base's tree")


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


def _pin_from_config(case: _Case) -> FoundPin:
    """Return the pin that the adapter's config decides, without a lockfile and a person's word. Raises OpenPin."""
    registry, base, path = case.registry, case.base, case.path
    candidates = _list_versioned_ancestors(registry, path)
    name, folder = case.adapter.base_name, case.folder
    if name is None and candidates and (ref := _flattened_ref(case.adapter)) is not None:
        raise OpenPin(
            f"{case.adapter.path} is the whole chain of {ref} in one adapter, as its {LOCKFILE} says, so it stands on "
            "the base and on nothing above it: say --parent base"
        )
    if name is None:
        return _assume_pin(candidates, base, f"{case.adapter.path} does not say what it was trained on")
    shown = _shown(name)
    if folder is None and _is_pulled_ref(name):
        return _pin_from_pulled(registry, name, path)
    if is_base(registry, base, name, folder, case.home, case.progress):
        if candidates:
            what = f"the adapter names the plain base {base.name} ({shown})"
            raise OpenPin(_ask(what, path, candidates, "if that is all it was trained on, say --parent base, or else"))
        return FoundPin(BASE, "explicit", f"pinned to the base {base.name}, which the adapter's config names")
    if (other := find_other_base(registry, base, name, folder, case.home, case.progress)) is not None:
        raise OpenPin(
            f"the adapter was trained on {shown}, which is the base {other.name}: publish it in its tree, below "
            f"{other.name}"
        )
    if folder is None and base_digest_of(name) is not None:
        raise OpenPin(
            f"the adapter was trained on {shown}, which is no base here ({base.name} is {base.digest}): publish it in "
            "that base's tree"
        )
    if folder is not None and any(folder.glob("*.safetensors")):
        what = f"{shown}, which the adapter was trained on, {explain_mismatch(registry, base, folder, case.home)}"
        raise OpenPin(_ask(what, path, candidates, _FIND))
    if candidates:
        raise OpenPin(_ask(f"the adapter was trained on {shown}, which is not known here", path, candidates, _FIND))
    return _assume_base(base, name, folder)


def _assume_base(base: Base, name: str, folder: Path | None) -> FoundPin:
    """Assume the base for a name that nobody knows here. Raises OpenPin if the base is another model of the hub."""
    other = explain_other_name(base, name) if folder is None else None
    if other is not None and base.source is not None:
        raise OpenPin(f"{other}: publish it in a tree of {name}, or say --parent base if both are the same weights")
    assumed = _assume_pin([], base, f"{_shown(name)}, which the adapter was trained on, is not known here")
    return replace(assumed, other_base=other)


def _is_pulled_ref(name: str) -> bool:
    """Return whether `name` is PATH@sha256:…, the form in which `loratree pull` writes a version that was pinned."""
    try:
        ref = parse_ref(name)
    except Invalid:
        return False
    return is_digest(ref.selector) and parent_of(ref.path) is not None


def _pin_from_pulled(registry: Registry, name: str, path: str) -> FoundPin:
    if not is_ancestor(parse_ref(name).path, path):
        above = parse_ref(name).path
        raise OpenPin(f"the adapter was trained on {name}, which is not above {path}: publish it below {above}")
    try:
        version = registry.version(name)
    except NotFound as error:
        raise OpenPin(
            f"the adapter was trained on {name}, which is not here: import it from the registry that has it, or {FORCE}"
        ) from error
    ref = f"{version.path}@{version.number}"
    return FoundPin(ref, "explicit", f"pinned to {ref}, which the adapter's config names", version.digest)


def _flattened_ref(adapter: AdapterDirectory) -> str | None:
    """Return the ref whose chain was flattened into this very adapter, or None if it is another adapter."""
    try:
        lockfile = read_lockfile(adapter.path)
    except Invalid:
        return None
    if lockfile is None or lockfile.artifact.mode != "flatten" or adapter.file not in lockfile.artifact.files:
        return None
    return lockfile.ref


def _assume_pin(candidates: list[str], base: Base, reason: str) -> FoundPin:
    what = f"the nearest ancestor's head, {candidates[-1]}" if candidates else f"the base {base.name}"
    return FoundPin(None, "assumed", f"{reason}: assumed to be {what}")


def _ask(what: str, path: str, candidates: list[str], remedy: str) -> str:
    """Return the sentence that asks for a pin; it names the heads as what they are, and never as the answer."""
    if not candidates:
        return f"{what}, so what {path} builds on is open: {remedy} --parent base, if it was trained on the plain base"
    newest = f"the head is {candidates[-1]} now, which may be newer"
    if len(candidates) > 1:
        newest = f"the heads are {', '.join(candidates)} now, which may be newer"
    return f"{what}, so what {path} builds on is open: {remedy} --parent with the version it was trained on ({newest})"


def _shown(name: str) -> str:
    return name if name.isprintable() and len(name) <= 300 else ascii(name[:300])


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
