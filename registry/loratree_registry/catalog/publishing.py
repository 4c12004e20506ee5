"""Publishing: uploaded files become a version, whole or not at all.

Two parts, because the first reads the files and may take long, and the second holds the database's write lock:
`examine` without a database, `publish` in one transaction.
"""

from dataclasses import asdict, dataclass
from typing import Any, get_args

from sqlalchemy import Connection

from loratree_registry.catalog.files import hold_uploaded
from loratree_registry.catalog.inspection import Inspection
from loratree_registry.catalog.marks import check_chain, check_content
from loratree_registry.catalog.nodes import ensure_trail
from loratree_registry.catalog.versions import no_version, version
from loratree_registry.core.digests import content_digest, version_digest
from loratree_registry.core.manifest import BaseManifest
from loratree_registry.core.paths import (
    BASE,
    MAX_NUMBER,
    ancestors_of,
    base_of,
    is_ancestor,
    is_digest,
    parse_path,
    parse_ref,
    versionless,
)
from loratree_registry.core.records import ADAPTER_WEIGHTS, Pin, PinSource, Published, Submission, Version
from loratree_registry.core.text import check_text
from loratree_registry.core.times import now, rfc3339
from loratree_registry.database import queries
from loratree_registry.database.rows import NodeRow, SameContent, VersionRow
from loratree_registry.errors import Conflict, Invalid, listed
from loratree_registry.peft_format.classify import canonical_config, classify, warnings
from loratree_registry.peft_format.spec import AdapterSpec


@dataclass(frozen=True, slots=True)
class Examined:
    """A submission whose files were read and found good: its canonical config and what the adapter holds."""

    config: dict[str, Any]
    spec: AdapterSpec
    content: str


def check_submission(path: str, submission: Submission) -> None:
    """Checks all that needs no database and no file. Raises Invalid."""
    if "/" not in parse_path(path):
        raise Invalid(versionless(path))
    names = [file.name for file in submission.files]
    if names != [ADAPTER_WEIGHTS]:
        raise Invalid(f"a version holds exactly the file {ADAPTER_WEIGHTS}: got {listed(names) or 'none'}")
    if wrong := [file.sha256 for file in submission.files if not is_digest(file.sha256)]:
        raise Invalid(f"a file's digest is sha256: and 64 hexadecimal digits: got {listed(wrong)}")
    if submission.found not in get_args(PinSource):
        raise Invalid(f"the pin's source is {submission.found!r}: expected one of {', '.join(get_args(PinSource))}")
    if (submission.found == "assumed") != (submission.parent is None):
        raise Invalid(
            f"the parent is {submission.parent or 'not given'} and its source {submission.found}: "
            "an assumed pin names no parent, any other names one"
        )
    check_text("note", submission.note, limit=2000)


def examine(inspection: Inspection, manifest: BaseManifest, path: str, submission: Submission) -> Examined:
    """Checks an adapter whose weights were read against its base. Raises Invalid."""
    try:
        config = canonical_config(submission.config)
        content = content_digest(config, submission.files)
    except ValueError as error:
        raise Invalid(f"the adapter's config has no canonical form: {error}") from error
    on_base = submission.parent in (None, BASE, base_of(path))
    spec = classify(config, inspection.header, manifest, digests=inspection.digests, on_base=on_base)
    return Examined(config, spec, content)


def publish(connection: Connection, path: str, submission: Submission, examined: Examined) -> Published:
    """Makes the examined files a version at `path`, or answers with the version that holds them already."""
    trail = ensure_trail(connection, path, level=submission.level)
    node, above = trail[-1], _pinned(connection, trail, submission)
    pin = above[-1] if above else None
    digest = _digest(node, pin, submission, examined)
    taken = queries.nodes.lock_node(connection, node.id)  # before looking: two of one content must become one version
    same = queries.publishing.same_content(connection, node.id, examined.content)
    check_content(path, same)
    if submission.found == "assumed" and same:
        # Where nothing says what the adapter was trained on, its newest version of the same content does.
        return _known(connection, path, same[0])
    check_chain(path, above)
    if known := [row for row in same if row.digest == digest]:
        return _known(connection, path, known[0])
    hold_uploaded(connection, submission.files)  # collecting may have been at them since they were looked at
    created = _insert(connection, node, pin, _next_number(path, taken), digest, submission, examined)
    return Published(version=created, created=True, warnings=_warnings(examined, pin))


def _next_number(path: str, taken: int) -> int:
    """The number after the last one that was given out. Raises Conflict where no ref could name it."""
    if taken >= MAX_NUMBER:
        raise Conflict(f"{path} has given out every number to {MAX_NUMBER}: publish at another path")
    return taken + 1


def _known(connection: Connection, path: str, row: SameContent) -> Published:
    return Published.already(version(connection, f"{path}@{row.number}"))


def _pinned(connection: Connection, trail: list[NodeRow], submission: Submission) -> list[VersionRow]:
    """The version that the adapter was trained on, last, and what that was trained on; none is the base.

    Raises NotFound, Invalid.
    """
    path = trail[-1].path
    if submission.parent is None:  # the nearest head
        versioned = [node for node in trail[:-1] if node.head is not None]
        return queries.versions.pinned_chain(connection, versioned[-1].id, None) if versioned else []
    if submission.parent in (BASE, base_of(path)):
        return []
    parent = parse_ref(submission.parent)
    if not is_ancestor(parent.path, path):
        above = ", ".join(reversed(ancestors_of(path)))
        raise Invalid(f"{parent.path} is not above {path}: the parent is a version at one of {above}")
    [node] = [node for node in trail if node.path == parent.path]
    chain = queries.versions.pinned_chain(connection, node.id, parent.selector)
    if not chain:
        raise no_version(connection, node, parent.selector)
    return chain


def _digest(node: NodeRow, pin: VersionRow | None, submission: Submission, examined: Examined) -> str:
    return version_digest(
        base_digest=node.base_digest,
        pin_digest=pin.digest if pin else None,
        config=examined.config,
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
    [file], summary, moment = submission.files, examined.spec.summary(), now()
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
        pin_found=submission.found,
        config=examined.config,
        summary=asdict(summary),
        size=file.size,
        note=submission.note,
        created_at=moment,
    )
    return Version(
        path=node.path,
        level=node.level,
        number=number,
        digest=digest,
        content=examined.content,
        base=node.base,
        base_digest=node.base_digest,
        pin=_pin(pin, submission),
        summary=summary,
        config=examined.config,
        files=submission.files,
        size=file.size,
        note=submission.note,
        created_at=rfc3339(moment),
        withdrawn=None,
        quarantined=None,
    )


def _pin(pin: VersionRow | None, submission: Submission) -> Pin:
    if pin is None:
        return Pin(path=None, version=None, digest=None, found=submission.found)
    return Pin(path=pin.path, version=pin.number, digest=pin.digest, found=submission.found)


def _warnings(examined: Examined, pin: VersionRow | None) -> list[str]:
    found = warnings(examined.config, examined.spec, on_base=pin is None)
    if pin and pin.withdrawn_reason is not None:
        found.append(f"{pin.ref}, which it was trained on, was withdrawn ({pin.withdrawn_reason})")
    rank = max(examined.spec.summary().ranks)
    above = max(pin.adapter().ranks) if pin else rank
    if rank > above and pin:
        found.append(f"its rank {rank} is above the rank {above} of {pin.ref}, which it was trained on")
    return found
