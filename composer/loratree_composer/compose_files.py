"""The files of `loratree compose`: a merged checkpoint or a flattened adapter, with its lockfile."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import get_args

from safetensors import SafetensorError
from safetensors.torch import save_file

from loratree_composer.adapters.adapter import Adapter, is_untied, programs_of
from loratree_composer.adapters.reader import AdapterReader
from loratree_composer.base.stored_tensor import CODES
from loratree_composer.checkpoints.merged_checkpoint import write_merged
from loratree_composer.flatten.compression import Compression
from loratree_composer.flatten.flatten import flattened
from loratree_registry.core.chain import Chain, Limit, Mode, form
from loratree_registry.core.digests import FileDigest, digest_stream
from loratree_registry.core.manifest import BaseManifest
from loratree_registry.core.progress import BYTES, Counter, Progress, silent
from loratree_registry.core.records import ADAPTER_CONFIG, ADAPTER_WEIGHTS, Base
from loratree_registry.core.registry import Registry
from loratree_registry.disk.whole_folder import whole_folder
from loratree_registry.errors import Conflict, Invalid, LoratreeError, NotFound, Unavailable, listed
from loratree_registry.tensor_files.checkpoint import open_checkpoint
from loratree_registry.workspace import base_locations
from loratree_registry.workspace.differences import check_same
from loratree_registry.workspace.lockfile import LOCKFILE, Artifact, Lockfile, check_artifact, read_lockfile
from loratree_registry.workspace.remarks import find_remarks, warn


def compose(
    registry: Registry,
    ref: str,
    mode: Mode,
    out: Path,
    *,
    home: Path,
    base_directory: Path | None = None,
    follow: str | None = None,
    weights: Mapping[str, float] | None = None,
    limit: Limit | None = None,
    strict: bool = False,
    progress: Progress = silent,
    on_remarks: Callable[[list[str]], object] = warn,
) -> Lockfile:
    """Write the composition of `ref` into the folder `out` and return its lockfile, which is written last.

    `merge` writes the base's checkpoint with every delta summed in, shard by shard; `flatten` writes one PEFT adapter
    that needs no base weights. An empty chain merges to a copy of the base. `follow`, `weights` and `strict` mean the
    same as in Registry.resolve. With a `limit`, each module of a flattened chain is truncated, and compression.json
    records what was kept of each module. `base_directory` is the base's checkpoint; the default is the folder that
    `home` remembers. `on_remarks` gets a sentence for each thing that the chain does not say by itself, such as a
    withdrawn version; the default is a CompositionWarning for each.

    The same composition gives the same bytes. If `out` holds it intact, even because another process finished first,
    its lockfile is returned. After a failure or an interruption, `out` is whole or does not exist.
    Raises Conflict if `out` holds anything else, NotFound, Invalid, Corrupt, Unavailable.
    """
    if mode not in get_args(Mode):
        raise Invalid(f"a chain is composed by the mode 'merge' or 'flatten', got {mode!r}")
    if limit is not None and mode != "flatten":
        raise Invalid(f"only a flattened chain can be compressed, got {form(mode, limit)}: compose it with flatten")
    resolution = registry.resolve(ref, follow=follow, weights=weights, strict=strict)
    on_remarks(find_remarks(registry, resolution, follow=follow))
    chain = resolution.to_chain()
    existing = _read_composed(out, chain, mode, limit, progress)
    if existing is not None:
        return existing
    manifest = registry.base_manifest(chain.base)
    checkpoint = open_checkpoint(base_directory or _find_checkpoint(registry, home, chain)) if mode == "merge" else None
    reader = AdapterReader(registry, manifest, home)
    # Merging reads one tensor's factors at a time: a chain may be larger than memory. Flattening needs all factors.
    read = reader.open_chain if checkpoint is not None else reader.load_chain
    adapters = read(resolution, progress=progress)
    try:
        with whole_folder(out) as stage:
            if checkpoint is not None:
                untied = is_untied(adapters, manifest.tied_names())
                write_merged(checkpoint, manifest, programs_of(adapters), stage, untied=untied, progress=progress)
                dtype = _join_dtypes(manifest)
            else:
                dtype = _write_flattened(adapters, manifest, registry.base(chain.base), limit, stage, progress)
            lockfile = Lockfile(resolution.ref, chain, Artifact(mode, dtype, _hash_files(stage, progress), limit))
            lockfile.write(stage)
    except Conflict:
        if (existing := _read_composed(out, chain, mode, limit, progress)) is None:
            raise
        return existing
    return lockfile


def _find_checkpoint(registry: Registry, home: Path, chain: Chain) -> Path:
    directory = base_locations.base_directory(home, chain.base_digest)
    if directory is None:
        stored = registry.base(chain.base).stored
        fetched = f", or fetch it with `loratree base pull {chain.base} --out DIR`" if stored else ""
        raise NotFound(
            f"the checkpoint of the base {chain.base} is not known on this machine: give its folder with --base, or "
            f"run loratree base add {chain.base} DIR{fetched}"
        )
    return directory


def _read_composed(out: Path, chain: Chain, mode: Mode, limit: Limit | None, progress: Progress) -> Lockfile | None:
    """Return the lockfile if `out` holds this composition, or None if `out` is free. Raises Conflict."""
    remedy = "choose another folder"
    try:
        names = {path.name for path in out.iterdir()}
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Conflict(f"{out} is not a folder that can be read ({error.strerror}): {remedy}") from error
    if not names:
        return None
    if LOCKFILE not in names:
        raise Conflict(f"{out} holds other files ({listed(sorted(names), limit=5)}): {remedy}")
    try:
        lockfile = read_lockfile(out)
        assert lockfile is not None
        check_same(lockfile, chain, mode, limit)
        check_artifact(lockfile, out, progress=progress)
    except LoratreeError as error:
        raise Conflict(f"{out} does not hold what is asked for: {error}; {remedy}") from error
    foreign = sorted(names - {file.name.partition("/")[0] for file in lockfile.artifact.files} - {LOCKFILE})
    if foreign:
        raise Conflict(f"{out} holds files beside this composition ({listed(foreign, limit=5)}): {remedy}")
    return lockfile


def _write_flattened(
    adapters: list[tuple[Adapter, float]],
    manifest: BaseManifest,
    base: Base,
    limit: Limit | None,
    stage: Path,
    progress: Progress,
) -> str:
    flat = flattened(adapters, manifest, base_model=base.source, limit=limit, progress=progress)
    if limit is not None:
        Compression(limit, flat.kept).write(stage)
    (stage / ADAPTER_CONFIG).write_text(json.dumps(flat.config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    progress("writing the adapter", 0, 0, BYTES)
    try:
        # Only one metadata key: safetensors writes several keys in random order.
        save_file(flat.tensors, stage / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    except SafetensorError as error:
        raise Unavailable(f"{stage} cannot be written: {error}") from error
    return "+".join(sorted({CODES[tensor.dtype] for tensor in flat.tensors.values()}))


def _join_dtypes(manifest: BaseManifest) -> str:
    return "+".join(sorted({parameter.dtype for parameter in manifest.parameters if "F" in parameter.dtype}))


def _hash_files(stage: Path, progress: Progress) -> tuple[FileDigest, ...]:
    files, paths = [], sorted(path for path in stage.rglob("*") if path.is_file())
    size = sum(path.stat().st_size for path in paths)
    counter = Counter(progress, "hashing what was written", size, then="waiting for the disk")
    for path in paths:
        with path.open("rb") as stream:
            sha256, size = digest_stream(stream, counter.add)
        files.append(FileDigest(path.relative_to(stage).as_posix(), size, sha256))
    return tuple(files)
