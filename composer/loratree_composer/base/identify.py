"""Which of a registry's bases a live model is."""

from collections.abc import Iterator
from pathlib import Path

from torch import nn

from loratree_composer.base.files import BaseFiles
from loratree_composer.base.sharing import tensors
from loratree_composer.base.stored_tensor import digest_of, type_of
from loratree_registry.core.manifest import BaseManifest
from loratree_registry.core.records import Base
from loratree_registry.core.registry import Registry
from loratree_registry.errors import Invalid, listed
from loratree_registry.tensor_files.checkpoint import Checkpoint, open_checkpoint
from loratree_registry.workspace import base_locations

Candidate = tuple[Base, BaseManifest]


def identify(model: nn.Module, registry: Registry, *, name: str | None, verify: bool, home: Path) -> Candidate:
    """The base that `model` is, and its manifest: the one called `name`, else the one whose tensors it has.

    With `verify` every tensor's bytes are compared; a tensor in another dtype than the base's is compared with the
    base's checkpoint, which `home` knows, cast to that dtype. A base that has the model's own dtypes goes before one
    that had to be cast. Without `verify`, names and shapes alone are compared. Raises Invalid, listing the tensors that
    differ, or the bases among which the model does not tell.
    """
    candidates = _candidates(registry, name)
    fitting = [candidate for candidate in candidates if not any(_misfits(model, candidate[1]))]
    alike = _verified(model, fitting, home) if verify else fitting
    if len(alike) == 1:
        return alike[0]
    raise Invalid(_refusal(model, candidates, fitting, alike, home))


def _verified(model: nn.Module, fitting: list[Candidate], home: Path) -> list[Candidate]:
    """The bases whose values the model has: in its own dtypes, else cast to them. Raises Invalid in doubt."""
    exact = [candidate for candidate in fitting if _has_dtypes(model, candidate[1])]
    alike = [candidate for candidate in exact if not any(_differences(model, candidate, home))]
    doubts: list[Invalid] = []
    for candidate in () if alike else (candidate for candidate in fitting if candidate not in exact):
        try:
            if not any(_differences(model, candidate, home)):
                alike.append(candidate)
        except Invalid as doubt:
            doubts.append(doubt)
    if doubts and not alike:
        raise Invalid(listed([str(doubt) for doubt in doubts], limit=3))
    return alike


def _has_dtypes(model: nn.Module, manifest: BaseManifest) -> bool:
    live = tensors(model)
    return all(type_of(live[parameter.name]).dtype == parameter.dtype for parameter in manifest.parameters)


def _candidates(registry: Registry, name: str | None) -> list[Candidate]:
    if name is not None:
        return [(registry.base(name), registry.base_manifest(name))]
    return [(base, registry.base_manifest(base.name)) for base in _bases(registry)]


def _bases(registry: Registry) -> Iterator[Base]:
    page = registry.bases()
    yield from page.items
    while page.next is not None:
        page = registry.bases(after=page.next)
        yield from page.items


def _misfits(model: nn.Module, manifest: BaseManifest) -> Iterator[str]:
    """What of the model's names and shapes is not the base's."""
    live, expected = tensors(model), manifest.by_name()
    for name in sorted(live.keys() | expected.keys()):
        if name not in live:
            yield f"{name} is missing"
        elif name not in expected:
            yield f"{name} is unexpected"
        elif tuple(live[name].shape) != expected[name].shape:
            yield f"{name} is {list(live[name].shape)}, expected {list(expected[name].shape)}"
        elif live[name].is_meta:
            yield f"{name} holds no values (it is on the meta device)"


def _differences(model: nn.Module, candidate: Candidate, home: Path) -> Iterator[str]:
    """What of the model's values is not the base's, tensor by tensor."""
    base, manifest = candidate
    live, expected = tensors(model), manifest.by_name()
    files: BaseFiles | None = None
    for parameter in manifest.parameters:
        tensor, source = live[parameter.name], expected[parameter.tied_to or parameter.name]
        if source is not parameter and tensor is live[source.name]:
            continue
        if type_of(tensor).dtype == source.dtype:
            same = digest_of(tensor) == source.sha256
        else:
            files = files or BaseFiles(manifest, _checkpoint(base, home, type_of(tensor).dtype, source.dtype))
            same = digest_of(files.read(source.name).to(tensor.dtype)) == digest_of(tensor)
        if not same:
            yield f"{parameter.name} has other values"


def _checkpoint(base: Base, home: Path, found: str, expected: str) -> Checkpoint:
    directory = base_locations.base_directory(home, base.digest)
    if directory is None:
        raise Invalid(
            f"the model is held in {found} and the base {base.name} in {expected}, and its checkpoint is not known on "
            f"this machine to compare with: run loratree base add {base.name} DIR, load the model in {expected}, or "
            "pass verify=False"
        )
    return open_checkpoint(directory)


def _refusal(
    model: nn.Module, candidates: list[Candidate], fitting: list[Candidate], alike: list[Candidate], home: Path
) -> str:
    if len(candidates) == 1:
        base, manifest = candidates[0]
        problems = list(_misfits(model, manifest)) or list(_differences(model, candidates[0], home))
        return f"the model is not the base {base.name}: {listed(problems, limit=5)}; load that base's own checkpoint"
    if len(alike) > 1:
        names = listed([base.name for base, _ in alike])
        return f"the model could be any of several bases ({names}): say which it is with base=NAME"
    if len(fitting) == 1:
        return _refusal(model, fitting, fitting, alike, home)
    names = listed([base.name for base, _ in candidates]) or "it has none yet"
    return (
        f"the model is none of the registry's bases ({names}): pass base=NAME to see what differs, or record it with "
        "loratree base add"
    )
