"""Places in the tree, and what lies below them."""

from typing import Annotated

from fastapi import APIRouter

from loratree_registry.api import examples
from loratree_registry.api.openapi import PAGE_LIMIT, After, Catalog, NodePath, PageLimit, answers, body
from loratree_registry.api.strict_route import Route
from loratree_registry.core.records import Count, Event, Node, Page
from loratree_registry.wire.bodies import NewNode

router = APIRouter(prefix="/v1", tags=["nodes"], route_class=Route)


@router.post("/nodes", responses=answers(examples.NODE, 404, 409))
def create_node(registry: Catalog, node: Annotated[NewNode, body(examples.NEW_NODE)]) -> Node:
    """Creates a grouping and its missing ancestors; an existing node of that level is answered as it is."""
    return registry.create_node(node.path, level=node.level)


@router.get("/nodes/{path:text}", responses=answers(examples.NODE, 404))
def get_node(registry: Catalog, path: NodePath) -> Node:
    """One node."""
    return registry.node(path)


@router.get("/children/{path:text}", responses=answers(examples.one_page(examples.NODE, examples.NODE.path), 404))
def list_children(registry: Catalog, path: NodePath, after: After = None, limit: PageLimit = PAGE_LIMIT) -> Page[Node]:
    """The nodes directly below `path`, by path."""
    return registry.children(path, after=after, limit=limit)


@router.get("/descendants/{path:text}", responses=answers(examples.one_page(examples.NODE, examples.NODE.path), 404))
def list_descendants(
    registry: Catalog, path: NodePath, after: After = None, limit: PageLimit = PAGE_LIMIT
) -> Page[Node]:
    """Every node below `path`, in byte order of their paths."""
    return registry.descendants(path, after=after, limit=limit)


@router.get("/count/{path:text}", responses=answers(examples.COUNT, 404))
def count(registry: Catalog, path: NodePath) -> Count:
    """How many nodes lie below `path`: exactly to 20,000, then that there are more."""
    return registry.count(path)


@router.get("/events/{path:text}", responses=answers(examples.one_page(examples.EVENT, "17"), 404))
def list_events(registry: Catalog, path: NodePath, after: After = None, limit: PageLimit = PAGE_LIMIT) -> Page[Event]:
    """What happened at `path` and below it, newest first."""
    return registry.events(path, after=after, limit=limit)
