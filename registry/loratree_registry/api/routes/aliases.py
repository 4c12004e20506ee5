"""Routes of aliases, the movable names of versions."""

from typing import Annotated

from fastapi import APIRouter, Path, Query

from loratree_registry.api import examples
from loratree_registry.api.openapi import NodePath, ServedRegistry, answers, body
from loratree_registry.api.strict_route import Route
from loratree_registry.core.records import Alias
from loratree_registry.wire.bodies import Move

router = APIRouter(prefix="/v1/aliases", tags=["aliases"], route_class=Route)

AliasName = Annotated[str, Path(description="The alias's name", examples=["stable"])]


@router.get("/{path:text}", responses=answers([examples.ALIAS], 404))
def list_aliases(registry: ServedRegistry, path: NodePath) -> list[Alias]:
    """List the aliases at `path`, by name."""
    return registry.aliases(path)


@router.put("/{path:text}@{alias:text}", responses=answers(examples.ALIAS, 404, 409))
def set_alias(
    registry: ServedRegistry, path: NodePath, alias: AliasName, move: Annotated[Move, body(examples.MOVE)]
) -> Alias:
    """Move an alias if it names the version `expected` now; else answer 409 with its version."""
    return registry.set_alias(path, alias, version=move.version, expected=move.expected)


@router.delete("/{path:text}@{alias:text}", status_code=204, responses=answers(None, 404, 409, status=204))
def delete_alias(
    registry: ServedRegistry,
    path: NodePath,
    alias: AliasName,
    expected: Annotated[int, Query(description="The version that the alias must name now", examples=[2])],
) -> None:
    """Remove an alias if it names the version `expected` now; else answer 409 with its version."""
    registry.delete_alias(path, alias, expected=expected)
