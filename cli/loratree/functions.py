"""The functions of `import loratree`: each opens the registry of the environment if none is given."""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from loratree_registry.connect import connected
from loratree_registry.core.chain import Limit, Mode
from loratree_registry.core.paths import Level
from loratree_registry.core.progress import Progress, silent
from loratree_registry.core.records import Resolution, Version
from loratree_registry.core.registry import Registry
from loratree_registry.errors import Invalid
from loratree_registry.settings import Settings

if TYPE_CHECKING:
    from loratree_registry.workspace.lockfile import Lockfile
    from loratree_registry.workspace.publish import PublishResult

Folder = str | PathLike[str]


def publish(
    directory: Folder,
    path: str,
    *,
    parent: str | None = None,
    trained_on: Folder | None = None,
    force_parent: bool = False,
    level: Level | None = None,
    note: str | None = None,
    assume: bool = True,
    new_path: bool = False,
    registry: Registry | None = None,
    progress: Progress = silent,
) -> "PublishResult":
    """Publish the PEFT adapter in `directory` as the next version at `path`, all of it or nothing.

    The version is pinned to what the adapter was trained on: the lockfile beside its base_model_name_or_path says so,
    or `trained_on` (a composed folder or its lockfile), else `parent` (a ref, or "base"), else what the config names,
    else the nearest ancestor's head, unless `assume` is false. `force_parent` takes `parent` against what the adapter
    says; `new_path` makes a node although its name is nearly that of another. An error that names an option of the
    command line, such as --parent, means the argument of that name. Publishing the same adapter again returns the
    version that exists. `progress(what, done, total, unit)` is called while it works. Raises LoratreeError.
    """
    from loratree_registry.workspace.publish import publish_directory

    if not Path(directory).exists() and Path(path).is_dir():
        raise Invalid(f"the folder comes first: loratree.publish({str(path)!r}, {str(directory)!r})")
    with connected(registry) as opened:
        return publish_directory(
            opened,
            Path(directory),
            path,
            parent=parent,
            trained_on=None if trained_on is None else Path(trained_on),
            force_parent=force_parent,
            level=level,
            note=note,
            assume=assume,
            new_path=new_path,
            home=_home(),
            progress=progress,
        )


def resolve(
    ref: str,
    *,
    follow: str | None = None,
    weights: Mapping[str, float] | None = None,
    strict: bool = False,
    registry: Registry | None = None,
) -> Resolution:
    """Return the chain of versions that `ref` composes, root to leaf. See Registry.resolve. Raises LoratreeError."""
    with connected(registry) as opened:
        return opened.resolve(ref, follow=follow, weights=weights, strict=strict)


def pull(
    ref: str,
    out: Folder,
    *,
    strict: bool = False,
    registry: Registry | None = None,
    progress: Progress = silent,
) -> Version:
    """Download the version that `ref` names into the folder `out` as a PEFT directory, without its ancestors.

    It is there to be published elsewhere or trained on: alone it computes something else than the composition. To run a
    path, `compose` it. `progress` is called as `publish` calls it. Raises LoratreeError.
    """
    from loratree_registry.workspace.fetch import pull as pull_version

    with connected(registry) as opened:
        return pull_version(opened, _home(), ref, Path(out), strict=strict, progress=progress)


def compose(
    ref: str,
    mode: Mode,
    out: Folder,
    *,
    base_directory: Folder | None = None,
    follow: str | None = None,
    weights: Mapping[str, float] | None = None,
    limit: Limit | None = None,
    strict: bool = False,
    registry: Registry | None = None,
    progress: Progress = silent,
) -> "Lockfile":
    """Write the composition of `ref` into the folder `out` and return its lockfile.

    `mode` is "merge", a checkpoint with every delta added, or "flatten", one PEFT adapter. `limit` cuts a flattened
    chain to a rank or an energy. `base_directory` is the base's checkpoint, by default where `base add` found it.
    `progress` is called as `publish` calls it. Raises LoratreeError, and warns of what is to be used with care.
    """
    from loratree_composer.compose_files import compose as compose_files
    from loratree_registry.workspace.remarks import warn

    with connected(registry) as opened:
        return compose_files(
            opened,
            ref,
            mode,
            Path(out),
            home=_home(),
            base_directory=None if base_directory is None else Path(base_directory),
            follow=follow,
            weights=weights,
            limit=limit,
            strict=strict,
            progress=progress,
            on_remarks=warn,
        )


def _home() -> Path:
    return Settings.from_environment().home
