"""Versions: publishing, listing, and where they come from and lead to."""

from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Query, Response

from loratree_registry.api import examples
from loratree_registry.api.openapi import PAGE_LIMIT, After, Catalog, NodePath, PageLimit, RefPath, answers, body
from loratree_registry.api.strict_route import Route
from loratree_registry.core.records import Lineage, Page, Published, Resolution, Submission, Version
from loratree_registry.wire.bodies import NewVersion
from loratree_registry.wire.query import read


class SubmissionRoute(Route):
    """A route that takes an adapter's config as it is in its file: twice what is read of one."""

    max_body = 8 * 1024 * 1024


router = APIRouter(prefix="/v1", tags=["versions"], route_class=Route)
submissions = APIRouter(route_class=SubmissionRoute)

_WEIGHT = (
    "PATH:NUMBER, the level weight of the chain's version at PATH; repeatable, once for each path, 1 for the others"
)
_AGAIN = replace(examples.PUBLISHED, created=False)
_PUBLISHED = answers(_AGAIN, 403, 404, 409, 410, says="The node held this version already") | answers(
    examples.PUBLISHED, 403, 404, 409, 410, status=201, says="A new version"
)
_PUBLISHED[201]["model"] = Published


@submissions.post("/versions/{path:text}", responses=_PUBLISHED)
def publish(
    registry: Catalog,
    path: NodePath,
    version: Annotated[NewVersion, body(examples.NEW_VERSION)],
    response: Response,
) -> Published:
    """Makes uploaded files a version at `path`, whole or not at all; it is committed before this answers."""
    fields = {name: getattr(version, name) for name in Submission.__dataclass_fields__}
    published = registry.publish(path, Submission(**fields))
    response.status_code = 201 if published.created else 200
    return published


@router.get("/versions/{path:text}", responses=answers(examples.one_page(examples.VERSION, "2"), 404))
def list_versions(
    registry: Catalog,
    path: NodePath,
    content: Annotated[str | None, Query(description="Only those with this content digest")] = None,
    after: After = None,
    limit: PageLimit = PAGE_LIMIT,
) -> Page[Version]:
    """The versions at `path`, newest first."""
    return registry.versions(path, content=content, after=after, limit=limit)


@router.get("/version/{ref:text}", responses=answers(examples.VERSION, 404, 410))
def get_version(registry: Catalog, ref: RefPath) -> Version:
    """The one version that `ref` names."""
    return registry.version(ref)


@router.get("/resolve/{ref:text}", responses=answers(examples.RESOLUTION, 403, 404, 409, 410))
def resolve(
    registry: Catalog,
    ref: RefPath,
    follow: Annotated[str | None, Query(description="Take each ancestor at this alias, where it is set")] = None,
    weight: Annotated[list[str] | None, Query(description=_WEIGHT, examples=[[f"{examples.PARENT}:0.5"]])] = None,
    strict: Annotated[bool, Query(description="Refuse a chain that holds a withdrawn version")] = False,
) -> Resolution:
    """The chain of `ref`, root to leaf: by its pins, or with each ancestor at the alias `follow`."""
    return registry.resolve(ref, follow=follow, weights=read(weight), strict=strict)


@router.get("/lineage/{ref:text}", responses=answers(examples.LINEAGE, 404, 410))
def lineage(registry: Catalog, ref: RefPath) -> Lineage:
    """What a version was trained on, edge by edge, up to its base."""
    return registry.lineage(ref)


@router.get("/ancestry/{ref:text}", responses=answers([examples.PARENT_VERSION, examples.VERSION], 404))
def list_ancestry(registry: Catalog, ref: RefPath) -> list[Version]:
    """The version that `ref` names, last, and what it was trained on before it, root to leaf, whole."""
    return registry.ancestry(ref)


@router.get("/dependents/{ref:text}", responses=answers(examples.one_page(examples.VERSION, "41"), 404))
def list_dependents(
    registry: Catalog, ref: RefPath, after: After = None, limit: PageLimit = PAGE_LIMIT
) -> Page[Version]:
    """The versions that were trained directly on the one that `ref` names."""
    return registry.dependents(ref, after=after, limit=limit)


router.include_router(submissions)
