"""Base models, and what each is made of."""

from typing import Annotated

from fastapi import APIRouter

from loratree_registry.api import examples
from loratree_registry.api.openapi import PAGE_LIMIT, After, Catalog, NodePath, PageLimit, RefPath, answers, body
from loratree_registry.api.strict_route import Route
from loratree_registry.core.digests import FileDigest
from loratree_registry.core.manifest import BaseManifest
from loratree_registry.core.records import Base, Page
from loratree_registry.wire.bodies import Files, NewBase


class ManifestRoute(Route):
    """A route that takes a base's manifest: one with 36,864 tensors has about 10 MiB."""

    max_body = 32 * 1024 * 1024


router = APIRouter(prefix="/v1", tags=["bases"], route_class=Route)
manifests = APIRouter(route_class=ManifestRoute)


@router.get("/bases", responses=answers(examples.one_page(examples.BASE, examples.BASE.name)))
def list_bases(registry: Catalog, after: After = None, limit: PageLimit = PAGE_LIMIT) -> Page[Base]:
    """The bases, by name."""
    return registry.bases(after=after, limit=limit)


@manifests.post("/bases", responses=answers(examples.BASE, 409))
def add_base(registry: Catalog, base: Annotated[NewBase, body(examples.NEW_BASE)]) -> Base:
    """Records a base and the root of its tree; the same name and digest again is the same base."""
    return registry.add_base(base.name, base.manifest, source=base.source)


@router.get("/bases/{path:text}", responses=answers(examples.BASE, 404))
def get_base(registry: Catalog, path: NodePath) -> Base:
    """One base, by name."""
    return registry.base(path)


@router.get("/manifests/{path:text}", responses=answers(examples.MANIFEST, 404))
def get_manifest(registry: Catalog, path: NodePath) -> BaseManifest:
    """Every tensor of a base, by the base's name."""
    return registry.base_manifest(path)


@router.post("/missing/{path:text}", responses=answers(examples.BASE_FILES[1:], 404))
def list_missing(
    registry: Catalog, path: NodePath, files: Annotated[Files, body(examples.NEW_BASE_FILES)]
) -> list[FileDigest]:
    """Those of a base's files that have to be uploaded yet."""
    return registry.missing_files(path, files.files)


@router.put("/base-files/{path:text}", responses=answers(examples.BASE, 404, 409))
def store_base(registry: Catalog, path: NodePath, files: Annotated[Files, body(examples.NEW_BASE_FILES)]) -> Base:
    """Makes uploaded files the weights of a base, once each of their tensors is found to be the base's."""
    return registry.store_base(path, files.files)


@router.get("/base-files/{path:text}", responses=answers(examples.BASE_FILES, 404))
def list_base_files(registry: Catalog, path: NodePath) -> list[FileDigest]:
    """The files of a base's weights, by name; none where they are not stored."""
    return registry.base_files(path)


@router.get("/damaged/{ref:text}", responses=answers(examples.BASE_FILES[:1], 404, 410))
def list_damaged(registry: Catalog, ref: RefPath) -> list[FileDigest]:
    """Those files of a version, or of a base's weights, that are missing or damaged where they are stored."""
    return registry.damaged_files(ref)


router.include_router(manifests)
