"""GET /v1/health: is the server up, and which release is it?

Load balancers and `loratree doctor` ask it. It reads one row, so it fails with 503 while the database does not answer;
the blob store is not asked, since a slow store must not take every server out of rotation.
"""

from importlib.metadata import version

from fastapi import APIRouter

from loratree_registry.api import examples
from loratree_registry.api.openapi import Catalog, answers
from loratree_registry.api.strict_route import Route
from loratree_registry.wire.bodies import Health

router = APIRouter(prefix="/v1/health", tags=["health"], route_class=Route)


@router.get("", responses=answers(examples.HEALTH))
def health(registry: Catalog) -> Health:
    """That the server answers, reaches its database, and which release it is."""
    registry.bases(limit=1)
    return Health(status="ok", version=version("loratree"))
