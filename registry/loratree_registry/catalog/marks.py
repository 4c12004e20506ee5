"""Withdrawing: a version that should not be used any more stays for what was trained on it."""

from collections.abc import Iterable

from sqlalchemy import Connection

from loratree_registry.catalog.versions import check_unnamed, lock_version, version
from loratree_registry.core.records import Version
from loratree_registry.core.text import check_reason, same_quarantined
from loratree_registry.database import queries
from loratree_registry.database.rows import SameContent, VersionRow
from loratree_registry.errors import Conflict, Quarantined, listed


def withdraw(connection: Connection, ref: str, *, reason: str) -> Version:
    """Takes a version from the heads; it resolves by number, digest or pin, marked with the reason.

    The same again changes nothing, another reason replaces the first. Raises NotFound, Invalid, and Conflict while an
    alias names it.
    """
    check_reason(reason)
    row = lock_version(connection, ref)
    check_unnamed(connection, row, "withdraw it")
    if row.withdrawn_reason != reason:
        queries.versions.mark_version(connection, row.id, "withdrawn", reason)
        queries.events.insert_event(connection, row.path, "version-withdrawn", version=row.number, reason=reason)
    return version(connection, row.ref)


def reinstate(connection: Connection, ref: str) -> Version:
    """Undoes a withdrawal; a version that is not withdrawn is answered as it is. Raises NotFound, Invalid."""
    row = lock_version(connection, ref)
    if row.withdrawn_reason is not None:
        queries.versions.mark_version(connection, row.id, "withdrawn", None)
        queries.events.insert_event(connection, row.path, "version-reinstated", version=row.number)
    return version(connection, row.ref)


def check_strict(ref: str, chain: list[VersionRow]) -> None:
    """Raises Conflict naming every withdrawn version of a chain."""
    found = [f"{row.ref} ({row.withdrawn_reason})" for row in chain if row.withdrawn_reason is not None]
    if found:
        raise Conflict(
            f"the chain of {ref} holds withdrawn versions: {'; '.join(found)}; name another version, "
            "or leave strict out to take it as it is"
        )


def quarantine(connection: Connection, ref: str, *, reason: str) -> Version:
    """Stops every chain through a version; what is known of it stays to be seen.

    The same again changes nothing, another reason replaces the first. Raises NotFound, Invalid.
    """
    check_reason(reason)
    row = lock_version(connection, ref)  # publishing the same content looks under the same lock
    if row.quarantined_reason != reason:
        queries.versions.mark_version(connection, row.id, "quarantined", reason)
        queries.events.insert_event(connection, row.path, "version-quarantined", version=row.number, reason=reason)
    return version(connection, row.ref)


def lift_quarantine(connection: Connection, ref: str) -> Version:
    """Ends a quarantine; a version that is not quarantined is answered as it is. Raises NotFound, Invalid."""
    row = lock_version(connection, ref)
    if row.quarantined_reason is not None:
        queries.versions.mark_version(connection, row.id, "quarantined", None)
        queries.events.insert_event(connection, row.path, "quarantine-lifted", version=row.number)
    return version(connection, row.ref)


def check_chain(ref: str, chain: Iterable[VersionRow]) -> None:
    """Raises Quarantined naming every quarantined version of a chain, which is all of it."""
    found = sorted({(row.ref, row.quarantined_reason) for row in chain if row.quarantined_reason is not None})
    if not found:
        return
    told = listed([f"{name} is quarantined ({reason})" for name, reason in found])
    raise Quarantined(
        f"{ref} cannot be used: {told}; name another version, "
        f"or once it is safe end it by `loratree quarantine {found[0][0]} --undo`"
    )


def check_above(connection: Connection, ref: str, rows: Iterable[VersionRow]) -> None:
    """Raises Quarantined where one of the versions, or what it was trained on, is quarantined."""
    if keys := [row.id for row in rows]:
        check_chain(ref, queries.versions.quarantined_above(connection, keys))


def check_content(path: str, same: Iterable[SameContent]) -> None:
    """Raises Quarantined where the same content was quarantined at the node, also where it was deleted since."""
    for row in same:
        if row.quarantined_reason is not None:
            raise Quarantined(same_quarantined(f"{path}@{row.number}", row.quarantined_reason))
