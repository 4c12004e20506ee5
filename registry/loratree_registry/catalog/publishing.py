"""Publishing: uploaded files become a version, whole or not at all.

`examining` checks the adapter before, without a database, which may take long; `publish` holds the database's write
lock, for one transaction.
"""

from dataclasses import replace

from sqlalchemy import Connection

from loratree_registry.catalog.examining import Examined
from loratree_registry.catalog.files import hold_uploaded
from loratree_registry.catalog.marks import check_bytes, check_chain, check_content
from loratree_registry.catalog.nodes import ensure_trail
from loratree_registry.catalog.versions import choose, find_version, no_version, records
from loratree_registry.core.digests import version_digest_of
from loratree_registry.core.documents import say_kept
from loratree_registry.core.paths import (
    BASE,
    MAX_NUMBER,
    ancestors_of,
    base_of,
    is_ancestor,
    parse_path,
    parse_ref,
)
from loratree_registry.core.records import (
    Pin,
    Published,
    Submission,
    Version,
)
from loratree_registry.core.times import now, rfc3339
from loratree_registry.database import queries
from loratree_registry.database.rows import NodeRow, SameContent, VersionRow
from loratree_registry.errors import Conflict, Invalid


def is_parent_untied(connection: Connection, path: str, submission: Submission) -> bool:
    """Return whether the chain that an adapter was trained on takes ties of the base apart.

    Raises NotFound, Invalid.
    """
    nodes = queries.nodes.nodes_on_path(connection, parse_path(path))
    return _is_untied(_read_parents(connection, path, nodes, submission))


class BaseReplaced(Conflict):
    """The base was removed, and another one was added under its name, since the adapter was checked against it."""


def publish(
    connection: Connection, path: str, submission: Submission, examined: Examined, *, base_digest: str
) -> Published:
    """Make the examined files a version at `path`, or return the version that already holds them.

    The adapter was examined against the base `base_digest`.
    """
    trail = ensure_trail(connection, path, level=submission.level)
    if trail[-1].base_digest != base_digest:
        raise BaseReplaced(f"the base {base_of(path)} was replaced while the adapter was checked: publish it again")
    node, above = trail[-1], _read_parents(connection, path, trail, submission)
    pin = above[-1] if above else None
    if _is_untied(above) != examined.untied:
        raise Conflict(f"the head above {path} changed while the adapter was checked: publish it again")
    digest = _compute_digest(node, pin, submission, examined)
    # The lock comes before the query for the same content, so that two publishes of one content make one version.
    last_number = queries.nodes.lock_node(connection, node.id)
    [file] = submission.files
    same, barred = queries.publishing.same_content(connection, node.id, examined.content, file.sha256)
    check_content(path, same)
    if submission.found == "assumed" and same:
        # The submission names no parent, so the newest version of the same content gives the parent.
        return _return_existing(connection, path, same[0], submission)
    check_chain(path, above)
    if known := [row for row in same if row.digest == digest]:
        return _return_existing(connection, path, known[0], submission)
    check_bytes(path, barred)
    hold_uploaded(connection, submission.files)  # a collection may have removed them since the first check
    created = _insert(connection, node, pin, _choose_number(path, last_number), digest, submission, examined)
    return Published(version=created, created=True, warnings=_list_warnings(examined, pin))


def _choose_number(path: str, last_number: int) -> int:
    """Return the number after the last used number. Raises Conflict if no ref could name it."""
    if last_number >= MAX_NUMBER:
        raise Conflict(f"{path} has given out every number to {MAX_NUMBER}: publish at another path")
    return last_number + 1


def _return_existing(connection: Connection, path: str, row: SameContent, submission: Submission) -> Published:
    found = find_version(connection, f"{path}@{row.number}")
    published = Published.already(records(connection, [found])[0])
    kept = queries.versions.documents_of(connection, found.id) if submission.documents else {}
    remark = say_kept(published.version, kept, submission.documents, submission.note)
    return replace(published, warnings=[*published.warnings, *([remark] if remark else [])])


def _is_untied(chain: list[VersionRow]) -> bool:
    return any(row.adapter().unties for row in chain)


def _read_parents(connection: Connection, path: str, nodes: list[NodeRow], submission: Submission) -> list[VersionRow]:
    """Return the chain that the adapter was trained on, root to leaf; an empty chain means the base.

    `nodes` are the nodes on the way to `path` that exist. Raises NotFound, Invalid.
    """
    if submission.parent is None:  # the nearest head
        versioned = [node for node in nodes if node.path != path and node.head is not None]
        return queries.versions.pinned_chain(connection, versioned[-1].id, None) if versioned else []
    if submission.parent in (BASE, base_of(path)):
        return []
    parent = parse_ref(submission.parent)
    if not is_ancestor(parent.path, path):
        above = ", ".join(reversed(ancestors_of(path)))
        raise Invalid(f"{parent.path} is not above {path}: the parent is a version at one of {above}")
    node = next((node for node in nodes if node.path == parent.path), None)
    if node is None:
        return []
    selector = choose(connection, node, parent.selector)
    if not (chain := queries.versions.pinned_chain(connection, node.id, selector)):
        raise no_version(connection, node, selector)
    return chain


def _compute_digest(node: NodeRow, pin: VersionRow | None, submission: Submission, examined: Examined) -> str:
    return version_digest_of(
        examined.canonical,
        base_digest=node.base_digest,
        pin_digest=pin.digest if pin else None,
        files=submission.files,
    )


def _insert(
    connection: Connection,
    node: NodeRow,
    pin: VersionRow | None,
    number: int,
    digest: str,
    submission: Submission,
    examined: Examined,
) -> Version:
    [file], summary, moment = submission.files, examined.summary, now()
    queries.publishing.insert_published(
        connection,
        node.path,
        file,
        detail={"version": number, "digest": digest, "pin": pin.ref if pin else None},
        node_id=node.id,
        base_id=node.base_id,
        number=number,
        digest=digest,
        content=examined.content,
        pin_id=pin.id if pin else None,
        pin_found="explicit" if submission.found == "forced" else submission.found,
        pin_forced=submission.found == "forced",
        **examined.columns,
        size=file.size,
        note=submission.note,
        created_at=moment,
        documents=submission.documents or None,
    )
    return Version(
        path=node.path,
        level=node.level,
        number=number,
        digest=digest,
        content=examined.content,
        base=node.base,
        base_digest=node.base_digest,
        pin=_to_pin(pin, submission),
        summary=summary,
        config=examined.config,
        files=submission.files,
        size=file.size,
        note=submission.note,
        created_at=rfc3339(moment),
        withdrawn=None,
        quarantined=None,
    )


def _to_pin(pin: VersionRow | None, submission: Submission) -> Pin:
    if pin is None:
        return Pin(path=None, version=None, digest=None, found=submission.found)
    return Pin(path=pin.path, version=pin.number, digest=pin.digest, found=submission.found)


def _list_warnings(examined: Examined, pin: VersionRow | None) -> list[str]:
    texts = list(examined.warnings[pin is None])
    if pin and pin.withdrawn_reason is not None:
        texts.append(f"{pin.ref}, which it was trained on, was withdrawn ({pin.withdrawn_reason})")
    rank = max(examined.summary.ranks, default=0)
    above = max(pin.adapter().ranks, default=rank) if pin else rank
    if rank > above and pin:
        texts.append(f"its rank {rank} is above the rank {above} of {pin.ref}, which it was trained on")
    return texts
