"""What the lockfile of a composition says about an adapter that was trained on it."""

from dataclasses import dataclass
from pathlib import Path

from loratree_registry.core.chain import Step
from loratree_registry.core.paths import BASE, base_of, is_ancestor
from loratree_registry.core.progress import Progress, silent
from loratree_registry.core.records import Base, PinSource
from loratree_registry.core.registry import Registry
from loratree_registry.errors import Conflict, Invalid, LoratreeError, NotFound
from loratree_registry.workspace.lockfile import LOCKFILE, Lockfile, check_artifact, read_lockfile


@dataclass(frozen=True, slots=True)
class FoundPin:
    """The pin of a new version, and how it was found.

    `parent` is a ref `PATH@NUMBER`, `base`, or None to let the registry take the nearest head. `digest` is the digest
    of the pinned version, or None for the base and for the nearest head. `why` is a sentence for people. `other_base`
    is a sentence too, if the pin is the base by assumption and the adapter's config names another model, and `doubt`
    one if a person names a version and the config the plain base.
    """

    parent: str | None
    found: PinSource
    why: str
    digest: str | None = None
    other_base: str | None = None
    doubt: str | None = None

    @property
    def warnings(self) -> list[str]:
        """What is to be checked of the pin."""
        return [sentence for sentence in (self.other_base, self.doubt) if sentence is not None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a composition's folder says: the pin, or why there is none.

    If the lockfile can be read, `leaf` names the version that was composed, or the base, by its `digest` (None: the
    base). It does even if the folder was changed since, or this registry does not hold the chain.
    """

    pin: FoundPin | None = None
    error: LoratreeError | None = None
    leaf: str | None = None
    digest: str | None = None
    is_changed: bool = False


class OtherBase(Conflict):
    """A lockfile of another base, which no option overrules."""


def claim_of(
    registry: Registry,
    base: Base,
    folder: Path,
    path: str,
    *,
    beside: frozenset[str],
    progress: Progress = silent,
) -> Claim | None:
    """Return what the lockfile in `folder` says about an adapter at `path`, or None if there is no lockfile.

    `beside` are the files of the adapter itself, if it was saved into the folder. Raises OtherBase.
    """
    try:
        lockfile = read_lockfile(folder)
    except (Invalid, NotFound) as error:
        return Claim(error=error)
    if lockfile is None:
        return None
    _check_base(lockfile, base, folder / LOCKFILE)
    steps = lockfile.chain.steps
    leaf, digest = (_find_ref(registry, steps[-1]), steps[-1].digest) if steps else (BASE, None)
    try:
        _check_composed(lockfile, folder, beside=beside, progress=progress)
    except (Invalid, NotFound, Conflict) as error:
        return Claim(error=error, leaf=leaf, digest=digest, is_changed=isinstance(error, Invalid))
    try:
        return Claim(pin=_pin_from_chain(registry, lockfile, folder, path), leaf=leaf, digest=digest)
    except (Invalid, NotFound, Conflict) as error:
        return Claim(error=error, leaf=leaf, digest=digest)


def pin_from_lockfile(
    registry: Registry, base: Base, file: Path, path: str, *, has_weights: bool, progress: Progress = silent
) -> FoundPin | None:
    """Return the pin of a lockfile that a person names, or None if it is not there.

    Without `has_weights`, the composition is on another machine. Raises Invalid, NotFound, Conflict.
    """
    lockfile = read_lockfile(file.parent)
    if lockfile is None:
        return None
    _check_base(lockfile, base, file)
    _check_composed(lockfile, file.parent, has_weights=has_weights, progress=progress)
    return _pin_from_chain(registry, lockfile, file.parent, path, has_weights=has_weights)


def _check_base(lockfile: Lockfile, base: Base, file: Path) -> None:
    if lockfile.chain.base_digest != base.digest:
        raise OtherBase(
            f"the adapter was trained on a composition of another base: {file} names {lockfile.chain.base} "
            f"({lockfile.chain.base_digest}), {base.name} is {base.digest}: publish it in that base's tree"
        )


def _check_composed(
    lockfile: Lockfile,
    folder: Path,
    *,
    has_weights: bool = True,
    beside: frozenset[str] = frozenset(),
    progress: Progress = silent,
) -> None:
    """Check that a lockfile is of a model, and that its folder is as it was composed."""
    if lockfile.artifact.mode != "merge":
        raise Invalid(
            f"{folder / LOCKFILE} is of a flattened adapter, which is no model to train on: compose with --mode merge"
        )
    if has_weights:
        check_artifact(lockfile, folder, beside=beside, progress=progress)


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
            f"{file} names {_ref_of(step)} with the digest {step.digest}, here it is {digest}: it was composed from "
            "another registry, or changed since, so compose the ancestor from this one"
        )


def _find_ref(registry: Registry, step: Step) -> str:
    """Return the ref of a step's version, by its digest: no digest covers the number in a lockfile."""
    try:
        version = registry.version(f"{step.path}@{step.digest}")
    except NotFound:
        return f"{step.path}@{step.digest}"
    return f"{version.path}@{version.number}"


def _ref_of(step: Step) -> str:
    return f"{step.path}@{step.version}"
