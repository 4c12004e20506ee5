"""The search for the base of a live model among the bases of a registry."""

import warnings
from collections.abc import Iterator
from pathlib import Path

from torch import nn

from loratree_composer.base.files import BaseFiles, base_files
from loratree_composer.base.layer_kind import TRANSPOSED
from loratree_composer.base.quantised import LiveTensors, describe_quantised, read_live
from loratree_composer.base.stored_tensor import digest_of, type_of
from loratree_registry.core.manifest import BaseManifest
from loratree_registry.core.records import Base
from loratree_registry.core.registry import Registry, list_bases
from loratree_registry.core.text import counted
from loratree_registry.errors import Invalid, listed
from loratree_registry.tensor_files.checkpoint import Checkpoint, open_checkpoint
from loratree_registry.workspace import base_locations

Candidate = tuple[Base, BaseManifest]


def identify(model: nn.Module, registry: Registry, *, name: str | None, verify: bool, home: Path) -> Candidate:
    """Find the base of `model` and its manifest: the base called `name`, or else the base with the model's tensors.

    With `verify` every tensor's bytes are compared. If a tensor's dtype is not the base's, the tensor is compared with
    the base's checkpoint, which `home` records, cast to the tensor's dtype. A base with the model's own dtypes takes
    precedence over a base that must be cast. Without `verify`, and of quantised weights, only names and shapes are
    compared, and a warning says so. Raises Invalid, listing the tensors that differ, or the bases that the model fits
    equally well.
    """
    candidates = _list_candidates(registry, name)
    live = read_live(model)
    fitting = [candidate for candidate in candidates if not any(_find_misfits(live, candidate[1]))]
    alike = _verify(live, fitting, home) if verify else fitting
    if len(alike) == 1:
        _warn_of_unchecked(model, live, alike[0], verify=verify)
        return alike[0]
    raise Invalid(_explain_refusal(live, candidates, fitting, alike, home))


def _warn_of_unchecked(model: nn.Module, live: LiveTensors, candidate: Candidate, *, verify: bool) -> None:
    base, manifest = candidate
    if not verify:
        warnings.warn(
            f"verify=False: the names and shapes of {len(manifest.parameters)} tensors are those of the base "
            f"{base.name}, and their values were not compared, so a fine-tuned copy would pass too",
            stacklevel=4,
        )
    if quantised := list(live.quantised):
        maker = describe_quantised(model.get_submodule(quantised[0]))
        are, their = ("is", "its") if len(quantised) == 1 else ("are", "their")
        warnings.warn(
            f"{counted(len(quantised), 'layer')} {are} quantised ({quantised[0]} is a {maker}): {their} weights were "
            f"not compared with those of the base {base.name}, and a chain is stacked beside the quantised function",
            stacklevel=4,
        )


def _verify(live: LiveTensors, fitting: list[Candidate], home: Path) -> list[Candidate]:
    """Return the bases with the model's values, if need be after a cast. Raises Invalid if a checkpoint is missing."""
    exact = [candidate for candidate in fitting if _has_dtypes(live, candidate[1])]
    alike = [candidate for candidate in exact if not any(_find_differences(live, candidate, home))]
    doubts: list[Invalid] = []
    for candidate in () if alike else (candidate for candidate in fitting if candidate not in exact):
        try:
            if not any(_find_differences(live, candidate, home)):
                alike.append(candidate)
        except Invalid as doubt:
            doubts.append(doubt)
    if doubts and not alike:
        raise Invalid(listed([str(doubt) for doubt in doubts], limit=3))
    return alike


def _has_dtypes(live: LiveTensors, manifest: BaseManifest) -> bool:
    expected = manifest.by_name()
    return all(type_of(tensor).dtype == expected[name].dtype for name, tensor in live.plain.items())


def _list_candidates(registry: Registry, name: str | None) -> list[Candidate]:
    if name is not None:
        return [(registry.base(name), registry.base_manifest(name))]
    return [(base, registry.base_manifest(base.name)) for base in list_bases(registry)]


def _find_misfits(live: LiveTensors, manifest: BaseManifest) -> Iterator[str]:
    """Yield a problem for each name or shape that differs between the model and the base."""
    expected = manifest.by_name()
    shapes = {name: tuple(tensor.shape) for name, tensor in live.plain.items()}
    shapes |= dict(_list_quantised(live, manifest))
    for name in sorted(shapes.keys() | expected.keys()):
        if name not in shapes:
            yield f"{name} is missing"
        elif name not in expected:
            yield f"{name} is unexpected"
        elif shapes[name] != expected[name].shape:
            yield f"{name} is {list(shapes[name])}, expected {list(expected[name].shape)}"
        elif name in live.plain and live.plain[name].is_meta:
            yield f"{name} holds no values (it is on the meta device)"


def _list_quantised(live: LiveTensors, manifest: BaseManifest) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the name of each quantised weight, and the shape that the base would store it in."""
    kinds = {parameter.name: parameter.kind.partition("(")[0] for parameter in manifest.parameters}
    for name, size in live.sizes().items():
        yield name, size[::-1] if TRANSPOSED.get(kinds.get(name, "")) else size


def _find_differences(live: LiveTensors, candidate: Candidate, home: Path) -> Iterator[str]:
    """Yield a problem for each tensor with other values than the base's."""
    base, manifest = candidate
    plain, expected = live.plain, manifest.by_name()
    files: BaseFiles | None = None
    for parameter in (parameter for parameter in manifest.parameters if parameter.name in plain):
        tensor, source = plain[parameter.name], expected[parameter.tied_to or parameter.name]
        if source is not parameter and tensor is plain.get(source.name):
            continue
        if type_of(tensor).dtype == source.dtype:
            is_same = digest_of(tensor) == source.sha256
        else:
            files = files or base_files(manifest, _open_checkpoint(base, home, type_of(tensor).dtype, source.dtype))
            is_same = digest_of(files.read(source.name).to(tensor.dtype)) == digest_of(tensor)
        if not is_same:
            yield f"{parameter.name} has other values"


def _open_checkpoint(base: Base, home: Path, actual: str, expected: str) -> Checkpoint:
    directory = base_locations.base_directory(home, base.digest)
    if directory is None:
        raise Invalid(
            f"the model is held in {actual} and the base {base.name} in {expected}, and its checkpoint is not known on "
            f"this machine to compare with: run loratree base add {base.name} DIR, load the model in {expected}, or "
            "pass verify=False"
        )
    return open_checkpoint(directory)


def _explain_refusal(
    live: LiveTensors, candidates: list[Candidate], fitting: list[Candidate], alike: list[Candidate], home: Path
) -> str:
    if len(candidates) == 1:
        base, manifest = candidates[0]
        problems = list(_find_misfits(live, manifest)) or list(_find_differences(live, candidates[0], home))
        return f"the model is not the base {base.name}: {listed(problems, limit=5)}; load that base's own checkpoint"
    if len(alike) > 1:
        names = listed([base.name for base, _ in alike])
        return f"the model could be any of several bases ({names}): say which it is with base=NAME"
    if len(fitting) == 1:
        return _explain_refusal(live, fitting, fitting, alike, home)
    names = listed([base.name for base, _ in candidates]) or "it has none yet"
    return (
        f"the model is none of the registry's bases ({names}): pass base=NAME to see what differs, or record it with "
        "loratree base add"
    )
