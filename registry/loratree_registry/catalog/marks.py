"""Withdrawn and quarantined versions: they stay stored, because other versions may be trained on them."""

from collections.abc import Iterable

from sqlalchemy import Connection

from loratree_registry.catalog.versions import check_unnamed, lock_version, version
from loratree_registry.core.records import Version
from loratree_registry.core.text import bytes_quarantined, check_reason, same_quarantined
from loratree_registry.database import queries
from loratree_registry.database.rows import Barred, SameContent, VersionRow
from loratree_registry.errors import Conflict, Quarantined, listed


def withdraw(connection: Connection, ref: str, *, reason: str) -> Version:
    """Withdraw a version: it is no longer a head, and still resolves by number, digest or pin, with the reason shown.

    The same reason again changes nothing; another reason replaces the first. Raises NotFound, Invalid, and Conflict
    while an alias names the version.
    """
    check_reason(reason)
    row = lock_version(connection, ref)
    check_unnamed(connection, row, "withdraw it")
    if row.withdrawn_reason != reason:
        queries.versions.mark_version(connection, row.id, "withdrawn", reason)
        queries.events.insert_event(connection, row.path, "version-withdrawn", version=row.number, reason=reason)
    return version(connection, row.ref)


def reinstate(connection: Connection, ref: str) -> Version:
    """Undo a withdrawal; a version that is not withdrawn stays as it is. Raises NotFound, Invalid."""
    row = lock_version(connection, ref)
    if row.withdrawn_reason is not None:
        queries.versions.mark_version(connection, row.id, "withdrawn", None)
        queries.events.insert_event(connection, row.path, "version-reinstated", version=row.number)
    return version(connection, row.ref)


def check_strict(ref: str, chain: list[VersionRow]) -> None:
    """Raise Conflict if a chain holds withdrawn versions, and name each of them."""
    withdrawn = [f"{row.ref} ({row.withdrawn_reason})" for row in chain if row.withdrawn_reason is not None]
    if withdrawn:
        raise Conflict(
            f"the chain of {ref} holds withdrawn versions: {'; '.join(withdrawn)}; name another version, "
            "or leave strict out to take it as it is"
        )


def quarantine(connection: Connection, ref: str, *, reason: str) -> Version:
    """Quarantine a version: every chain through it stops, and its record can still be read.

    The same reason again changes nothing; another reason replaces the first. Raises NotFound, Invalid.
    """
    check_reason(reason)
    row = lock_version(connection, ref)  # publishing takes this lock too, before it checks for quarantined content
    if row.quarantined_reason != reason:
        queries.versions.mark_version(connection, row.id, "quarantined", reason)
        queries.events.insert_event(connection, row.path, "version-quarantined", version=row.number, reason=reason)
    return version(connection, row.ref)


def lift_quarantine(connection: Connection, ref: str) -> Version:
    """End a quarantine; a version that is not quarantined stays as it is. Raises NotFound, Invalid."""
    row = lock_version(connection, ref)
    if row.quarantined_reason is not None:
        queries.versions.mark_version(connection, row.id, "quarantined", None)
        queries.events.insert_event(connection, row.path, "quarantine-lifted", version=row.number)
    return version(connection, row.ref)


def check_chain(ref: str, chain: Iterable[VersionRow]) -> None:
    """Raise Quarantined if versions of a chain are quarantined, and name each of them."""
    quarantined = sorted({(row.ref, row.quarantined_reason) for row in chain if row.quarantined_reason is not None})
    if not quarantined:
        return
    reasons = listed([f"{name} is quarantined ({reason})" for name, reason in quarantined])
    raise Quarantined(
        f"{ref} cannot be used: {reasons}; name another version, "
        f"or once it is safe end it by `loratree quarantine {quarantined[0][0]} --undo`"
    )


def check_above(connection: Connection, ref: str, rows: Iterable[VersionRow]) -> None:
    """Raise Quarantined if a version among `rows`, or a version above it in its pinned chain, is quarantined."""
    if keys := [row.id for row in rows]:
        check_chain(ref, queries.versions.quarantined_above(connection, keys))


def check_content(path: str, same: Iterable[SameContent]) -> None:
    """Raise Quarantined if the node has a quarantined version with the same content, or has deleted such a version."""
    for row in same:
        if row.quarantined_reason is not None:
            raise Quarantined(same_quarantined(f"{path}@{row.number}", row.quarantined_reason))


def check_bytes(path: str, barred: Barred | None) -> None:
    """Raise Quarantined if a quarantined version of any node holds the bytes of a version to be published at `path`."""
    if barred is not None:
        raise Quarantined(bytes_quarantined(path, barred.ref, barred.reason))
