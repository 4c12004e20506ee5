"""Routes of marks on versions: withdrawn, quarantined."""

from typing import Annotated

from fastapi import APIRouter

from loratree_registry.api import examples
from loratree_registry.api.openapi import RefPath, ServedRegistry, answers, body
from loratree_registry.api.strict_route import Route
from loratree_registry.core.records import Version
from loratree_registry.wire.bodies import Reason

router = APIRouter(prefix="/v1", tags=["marks"], route_class=Route)


@router.post("/withdrawals/{ref:text}", responses=answers(examples.WITHDRAWN, 404, 409, 410))
def withdraw_version(registry: ServedRegistry, ref: RefPath, why: Annotated[Reason, body(examples.REASON)]) -> Version:
    """Withdraw a version from the heads, named by its number or digest; refused while an alias names it."""
    return registry.withdraw(ref, reason=why.reason)


@router.delete("/withdrawals/{ref:text}", responses=answers(examples.VERSION, 404, 410))
def reinstate_version(registry: ServedRegistry, ref: RefPath) -> Version:
    """Undo a withdrawal."""
    return registry.reinstate(ref)


@router.post("/quarantines/{ref:text}", responses=answers(examples.IN_QUARANTINE, 404, 410))
def quarantine_version(
    registry: ServedRegistry, ref: RefPath, why: Annotated[Reason, body(examples.REASON)]
) -> Version:
    """Stop every chain through a version, named by its number or digest."""
    return registry.quarantine(ref, reason=why.reason)


@router.delete("/quarantines/{ref:text}", responses=answers(examples.VERSION, 404, 410))
def lift_quarantine(registry: ServedRegistry, ref: RefPath) -> Version:
    """Lift a quarantine."""
    return registry.lift_quarantine(ref)
