"""Routes that delete versions, and list the tombstones of deleted ones."""

from typing import Annotated

from fastapi import APIRouter, Query

from loratree_registry.api import examples
from loratree_registry.api.openapi import PAGE_LIMIT, After, NodePath, PageLimit, RefPath, ServedRegistry, answers, body
from loratree_registry.api.strict_route import Route
from loratree_registry.core.records import Page, Retained, Tombstone
from loratree_registry.wire.bodies import Keep

router = APIRouter(prefix="/v1", tags=["tombstones"], route_class=Route)

_Why = Annotated[str, Query(description="Why the version is deleted, in one line", examples=[examples.REASON.reason])]


@router.delete("/version/{ref:text}", responses=answers(examples.TOMBSTONE, 404, 409, 410))
def delete_version(registry: ServedRegistry, ref: RefPath, reason: _Why) -> Tombstone:
    """Delete a version, named by its number or digest, and leave a tombstone.

    Refused while another version is pinned to it or an alias names it.
    """
    return registry.delete(ref, reason=reason)


@router.get("/tombstones/{path:text}", responses=answers(examples.one_page(examples.TOMBSTONE, "1"), 404))
def list_tombstones(
    registry: ServedRegistry, path: NodePath, after: After = None, limit: PageLimit = PAGE_LIMIT
) -> Page[Tombstone]:
    """List the tombstones of the versions deleted at `path`, newest first."""
    return registry.tombstones(path, after=after, limit=limit)


@router.get("/retentions/{path:text}", responses=answers(examples.one_page(examples.RETAINED, examples.PATH), 404))
def list_crowded_nodes(
    registry: ServedRegistry,
    path: NodePath,
    keep: Annotated[int, Query(description="The number of newest versions that retention would keep", examples=[5])],
    after: After = None,
    limit: PageLimit = PAGE_LIMIT,
) -> Page[Retained]:
    """List the nodes at `path` and below with more than `keep` versions, and what a retention would delete there."""
    return registry.crowded(path, keep=keep, after=after, limit=limit)


@router.post("/retentions/{path:text}", responses=answers(examples.RETAINED, 404))
def retain_versions(registry: ServedRegistry, path: NodePath, keep: Annotated[Keep, body(examples.KEEP)]) -> Retained:
    """Delete all versions at `path` except the newest `keep`, the head, and those that an alias or a pin names."""
    return registry.retain(path, keep=keep.keep, dry_run=keep.dry_run)
