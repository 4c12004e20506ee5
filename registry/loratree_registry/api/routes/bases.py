"""Routes of base models: their manifests and the files of their weights."""

from typing import Annotated

from fastapi import APIRouter

from loratree_registry.api import examples
from loratree_registry.api.openapi import PAGE_LIMIT, After, NodePath, PageLimit, RefPath, ServedRegistry, answers, body
from loratree_registry.api.strict_route import Route
from loratree_registry.core.digests import FileDigest
from loratree_registry.core.manifest import BaseManifest
from loratree_registry.core.records import Base, Page
from loratree_registry.wire.bodies import Files, NewBase, Source


class ManifestRoute(Route):
    """A route that takes a base's manifest: 36,864 tensors take about 10 MiB."""

    max_body = 32 * 1024 * 1024
    max_values = 1_000_000  # 36,864 tensors have about 400,000


class DamageRoute(Route):
    """A route that reads whole files, for minutes: it takes no thread from the plain reads."""

    is_quick = False


router = APIRouter(prefix="/v1", tags=["bases"], route_class=Route)
damage = APIRouter(prefix="/v1", tags=["bases"], route_class=DamageRoute)
manifests = APIRouter(prefix="/v1", tags=["bases"], route_class=ManifestRoute)


@router.get("/bases", responses=answers(examples.one_page(examples.BASE, examples.BASE.name)))
def list_bases(registry: ServedRegistry, after: After = None, limit: PageLimit = PAGE_LIMIT) -> Page[Base]:
    """List the bases, by name."""
    return registry.bases(after=after, limit=limit)


@manifests.post("/bases", responses=answers(examples.BASE, 409))
def add_base(registry: ServedRegistry, base: Annotated[NewBase, body(examples.NEW_BASE)]) -> Base:
    """Record a base and the root of its tree; if the name has this digest already, return that base."""
    return registry.add_base(base.name, base.manifest, source=base.source)


@router.get("/bases/{path:text}", responses=answers(examples.BASE, 404))
def get_base(registry: ServedRegistry, path: NodePath) -> Base:
    """Return one base, by name."""
    return registry.base(path)


@router.delete("/bases/{path:text}", status_code=204, responses=answers(None, 404, 409, status=204))
def remove_base(registry: ServedRegistry, path: NodePath) -> None:
    """Remove a base whose tree has no versions, with its tree and its stored weights."""
    registry.remove_base(path)


@router.put("/sources/{path:text}", responses=answers(examples.BASE, 404))
def set_source(registry: ServedRegistry, path: NodePath, source: Annotated[Source, body(examples.SOURCE)]) -> Base:
    """Set where a base came from, in words; null removes it."""
    return registry.set_source(path, source.source)


@router.get("/manifests/{path:text}", responses=answers(examples.MANIFEST, 404))
def get_manifest(registry: ServedRegistry, path: NodePath) -> BaseManifest:
    """Return the manifest of a base: every tensor, by name."""
    return registry.base_manifest(path)


@router.post("/missing/{path:text}", responses=answers(examples.BASE_FILES[1:], 404))
def list_missing_files(
    registry: ServedRegistry, path: NodePath, files: Annotated[Files, body(examples.NEW_BASE_FILES)]
) -> list[FileDigest]:
    """List the files of a base that still have to be uploaded."""
    return registry.missing_files(path, files.files)


@router.put("/base-files/{path:text}", responses=answers(examples.BASE, 404, 409))
def store_base_files(
    registry: ServedRegistry, path: NodePath, files: Annotated[Files, body(examples.NEW_BASE_FILES)]
) -> Base:
    """Make uploaded files the weights of a base, after a check that every tensor is the base's own."""
    return registry.store_base(path, files.files)


@router.get("/base-files/{path:text}", responses=answers(examples.BASE_FILES, 404))
def list_base_files(registry: ServedRegistry, path: NodePath) -> list[FileDigest]:
    """List the files of a base's weights, by name; the list is empty if they are not stored."""
    return registry.base_files(path)


@damage.get("/damaged/{ref:text}", responses=answers(examples.BASE_FILES[:1], 404, 410))
def list_damaged_files(registry: ServedRegistry, ref: RefPath) -> list[FileDigest]:
    """List the stored files of a version, or of a base's weights, that are missing or damaged."""
    return registry.damaged_files(ref)
