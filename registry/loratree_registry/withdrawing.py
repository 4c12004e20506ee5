"""Withdrawing: a version that should not be used any more stays for what was trained on it."""

from sqlalchemy import Connection

from loratree_registry import repository
from loratree_registry.errors import Conflict
from loratree_registry.rows import VersionRow
from loratree_registry.schemas import Version
from loratree_registry.text import check_reason
from loratree_registry.versions import check_unnamed, lock_version, version


def withdraw(connection: Connection, ref: str, *, reason: str) -> Version:
    """Takes a version from the heads; it resolves by number, digest or pin, marked with the reason.

    The same again changes nothing, another reason replaces the first. Raises NotFound, Invalid, and Conflict while an
    alias names it.
    """
    check_reason(reason)
    row = lock_version(connection, ref)
    check_unnamed(connection, row, "withdraw it")
    if row.withdrawn_reason != reason:
        repository.mark_version(connection, row.id, "withdrawn", reason)
        repository.insert_event(connection, row.path, "version-withdrawn", version=row.number, reason=reason)
    return version(connection, row.ref)


def reinstate(connection: Connection, ref: str) -> Version:
    """Undoes a withdrawal; a version that is not withdrawn is answered as it is. Raises NotFound, Invalid."""
    row = lock_version(connection, ref)
    if row.withdrawn_reason is not None:
        repository.mark_version(connection, row.id, "withdrawn", None)
        repository.insert_event(connection, row.path, "version-reinstated", version=row.number)
    return version(connection, row.ref)


def check_strict(ref: str, chain: list[VersionRow]) -> None:
    """Raises Conflict naming every withdrawn version of a chain."""
    found = [f"{row.ref} ({row.withdrawn_reason})" for row in chain if row.withdrawn_reason is not None]
    if found:
        raise Conflict(
            f"the chain of {ref} holds withdrawn versions: {'; '.join(found)}; name another version, "
            "or leave strict out to take it as it is"
        )
