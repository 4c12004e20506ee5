"""Routes of nodes: the places in the tree, their descendants and their events."""

from typing import Annotated

from fastapi import APIRouter

from loratree_registry.api import examples
from loratree_registry.api.openapi import PAGE_LIMIT, After, NodePath, PageLimit, ServedRegistry, answers, body
from loratree_registry.api.strict_route import Route
from loratree_registry.core.records import Count, Event, Node, Page
from loratree_registry.wire.bodies import NewNode

router = APIRouter(prefix="/v1", tags=["nodes"], route_class=Route)


@router.post("/nodes", responses=answers(examples.NODE, 404, 409))
def create_node(registry: ServedRegistry, node: Annotated[NewNode, body(examples.NEW_NODE)]) -> Node:
    """Create a grouping and its missing ancestors; if a node of this level exists, return it unchanged."""
    return registry.create_node(node.path, level=node.level)


@router.get("/nodes/{path:text}", responses=answers(examples.NODE, 404))
def get_node(registry: ServedRegistry, path: NodePath) -> Node:
    """Return one node."""
    return registry.node(path)


@router.delete("/nodes/{path:text}", status_code=204, responses=answers(None, 404, 409, status=204))
def remove_node(registry: ServedRegistry, path: NodePath) -> None:
    """Remove a node without children, versions and tombstones; a base is removed by its own route."""
    registry.remove_node(path)


@router.get("/children/{path:text}", responses=answers(examples.one_page(examples.NODE, examples.NODE.path), 404))
def list_children(
    registry: ServedRegistry, path: NodePath, after: After = None, limit: PageLimit = PAGE_LIMIT
) -> Page[Node]:
    """List the nodes directly below `path`, by path."""
    return registry.children(path, after=after, limit=limit)


@router.get("/descendants/{path:text}", responses=answers(examples.one_page(examples.NODE, examples.NODE.path), 404))
def list_descendants(
    registry: ServedRegistry, path: NodePath, after: After = None, limit: PageLimit = PAGE_LIMIT
) -> Page[Node]:
    """List every node below `path`, in byte order of the paths."""
    return registry.descendants(path, after=after, limit=limit)


@router.get("/count/{path:text}", responses=answers(examples.COUNT, 404))
def count_nodes(registry: ServedRegistry, path: NodePath) -> Count:
    """Count the nodes below `path`: exactly up to 20,000; above, `more` is true."""
    return registry.count(path)


@router.get("/events/{path:text}", responses=answers(examples.one_page(examples.EVENT, "17"), 404))
def list_events(
    registry: ServedRegistry, path: NodePath, after: After = None, limit: PageLimit = PAGE_LIMIT
) -> Page[Event]:
    """List the events at `path` and below it, newest first."""
    return registry.events(path, after=after, limit=limit)
