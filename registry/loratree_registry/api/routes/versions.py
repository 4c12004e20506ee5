"""Routes of versions: publish, list, resolve, and show ancestors, dependents and holders of bytes."""

from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Query, Response

from loratree_registry.api import examples
from loratree_registry.api.openapi import (
    PAGE_LIMIT,
    After,
    NodePath,
    PageLimit,
    RefPath,
    ServedRegistry,
    answers,
    body,
)
from loratree_registry.api.strict_route import Route
from loratree_registry.core.documents import Document
from loratree_registry.core.records import Lineage, Page, Published, Resolution, Submission, Version
from loratree_registry.wire.bodies import NewVersion
from loratree_registry.wire.query import read


class SubmissionRoute(Route):
    """A route that takes an adapter's config unchanged: its limit is twice the limit of the config file."""

    max_body = 8 * 1024 * 1024
    max_values = 200_000  # adapters of 65,536 tensors may name each of them in a list and in two patterns


router = APIRouter(prefix="/v1", tags=["versions"], route_class=Route)
submissions = APIRouter(prefix="/v1", tags=["versions"], route_class=SubmissionRoute)

_WEIGHT = "PATH:NUMBER, the level weight of the chain's version at PATH; repeatable, once per path; 1 if not given"
_AGAIN = replace(examples.PUBLISHED, created=False)
_PUBLISHED = answers(_AGAIN, 403, 404, 409, 410, says="The node already had this version") | answers(
    examples.PUBLISHED, 403, 404, 409, 410, status=201, says="A new version"
)
_PUBLISHED[201]["model"] = Published


@submissions.post("/versions/{path:text}", responses=_PUBLISHED)
def publish_version(
    registry: ServedRegistry,
    path: NodePath,
    version: Annotated[NewVersion, body(examples.NEW_VERSION)],
    response: Response,
) -> Published:
    """Publish uploaded files as a version at `path`, all or nothing; the commit comes before the answer."""
    fields = {name: getattr(version, name) for name in Submission.__dataclass_fields__}
    published = registry.publish(path, Submission(**fields))
    response.status_code = 201 if published.created else 200
    return published


@router.get("/versions/{path:text}", responses=answers(examples.one_page(examples.VERSION, "2"), 404))
def list_versions(
    registry: ServedRegistry,
    path: NodePath,
    content: Annotated[str | None, Query(description="List only the versions with this content digest")] = None,
    after: After = None,
    limit: PageLimit = PAGE_LIMIT,
) -> Page[Version]:
    """List the versions at `path`, newest first."""
    return registry.versions(path, content=content, after=after, limit=limit)


@router.get("/version/{ref:text}", responses=answers(examples.VERSION, 404, 410))
def get_version(registry: ServedRegistry, ref: RefPath) -> Version:
    """Return the version that `ref` names."""
    return registry.version(ref)


@router.get("/documents/{ref:text}", responses=answers(examples.DOCUMENTS, 403, 404, 410))
def list_documents(registry: ServedRegistry, ref: RefPath) -> list[Document]:
    """List the documents of the version that `ref` names, by name: its model card and other small texts."""
    return registry.documents(ref)


@router.get("/resolve/{ref:text}", responses=answers(examples.RESOLUTION, 403, 404, 409, 410))
def resolve_chain(
    registry: ServedRegistry,
    ref: RefPath,
    follow: Annotated[
        str | None, Query(description="Take each ancestor at this alias if it is set, else at its pin")
    ] = None,
    weight: Annotated[list[str] | None, Query(description=_WEIGHT, examples=[[f"{examples.PARENT}:0.5"]])] = None,
    strict: Annotated[bool, Query(description="Refuse a chain that holds a withdrawn version")] = False,
) -> Resolution:
    """Resolve the chain of `ref`, root to leaf: by its pins, or with each ancestor at the alias `follow`."""
    return registry.resolve(ref, follow=follow, weights=read(weight), strict=strict)


@router.get("/lineage/{ref:text}", responses=answers(examples.LINEAGE, 404, 410))
def get_lineage(registry: ServedRegistry, ref: RefPath) -> Lineage:
    """Return the lineage of a version: each pin, one edge at a time, up to the base."""
    return registry.lineage(ref)


@router.get("/ancestry/{ref:text}", responses=answers([examples.PARENT_VERSION, examples.VERSION], 404))
def list_ancestry(registry: ServedRegistry, ref: RefPath) -> list[Version]:
    """List the full records of the pinned ancestors of a version, root to leaf, and of the version itself, last."""
    return registry.ancestry(ref)


@router.get("/dependents/{ref:text}", responses=answers(examples.one_page(examples.VERSION, "41"), 404))
def list_dependents(
    registry: ServedRegistry, ref: RefPath, after: After = None, limit: PageLimit = PAGE_LIMIT
) -> Page[Version]:
    """List the versions trained directly on the version that `ref` names."""
    return registry.dependents(ref, after=after, limit=limit)


@router.get("/holders", responses=answers(examples.one_page(examples.VERSION, "41")))
def list_holders(
    registry: ServedRegistry,
    sha256: Annotated[str, Query(description="The digest of the bytes", examples=[examples.STORED.sha256])],
    quarantined: Annotated[bool, Query(description="List only the versions that are quarantined")] = False,
    after: After = None,
    limit: PageLimit = PAGE_LIMIT,
) -> Page[Version]:
    """List the versions of every tree that hold the bytes with a digest, in order of publishing."""
    return registry.holders(sha256, quarantined=quarantined, after=after, limit=limit)
