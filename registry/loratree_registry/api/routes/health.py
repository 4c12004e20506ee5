"""GET /v1/health: is the server up, and which release is it?

Load balancers and `loratree doctor` call it. The route reads one row, so it fails with 503 if the database does not
answer. It does not read the blob store, because a slow store must not take every server out of rotation.
"""

from importlib.metadata import version

from fastapi import APIRouter

from loratree_registry.api import examples
from loratree_registry.api.openapi import ServedRegistry, answers
from loratree_registry.api.strict_route import Route
from loratree_registry.wire.bodies import Health


class HealthRoute(Route):
    """A route that asks the database again after a second: an older answer would not tell that it has failed."""

    keeps_s = 1.0


router = APIRouter(prefix="/v1/health", tags=["health"], route_class=HealthRoute)


@router.get("", responses=answers(examples.HEALTH))
def get_health(registry: ServedRegistry) -> Health:
    """Report that the server answers and reaches its database, and its release.

    Needs no rights: whoever reaches the server may ask.
    """
    registry.bases(limit=1)
    return Health(status="ok", version=version("loratree"))
