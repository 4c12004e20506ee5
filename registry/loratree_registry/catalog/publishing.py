"""Publishing: uploaded files become a version, whole or not at all.

There are two functions: `examine` checks the adapter without a database and may take long; `publish` holds the
database's write lock, for one transaction.
"""

from dataclasses import asdict, dataclass
from typing import Any, get_args

from sqlalchemy import Connection

from loratree_registry.catalog.files import hold_uploaded
from loratree_registry.catalog.inspection import Inspection
from loratree_registry.catalog.marks import check_chain, check_content
from loratree_registry.catalog.nodes import ensure_trail
from loratree_registry.catalog.versions import no_version, version
from loratree_registry.core.digests import canonical_json, content_digest, version_digest_of
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
from loratree_registry.core.records import (
    ADAPTER_WEIGHTS,
    AdapterSummary,
    Pin,
    PinSource,
    Published,
    Submission,
    Version,
)
from loratree_registry.core.text import check_text
from loratree_registry.core.times import now, rfc3339
from loratree_registry.database import queries
from loratree_registry.database.json_text import JsonText, to_json
from loratree_registry.database.rows import NodeRow, SameContent, VersionRow
from loratree_registry.errors import Conflict, Invalid, listed
from loratree_registry.peft_format.classify import (
    canonical_config,
    check_without_values,
    classify,
    is_zero,
    summarize,
    warnings,
)
from loratree_registry.peft_format.spec import AdapterSpec
from loratree_registry.tensor_files.header import Header


@dataclass(frozen=True, slots=True)
class Examined:
    """A checked submission: its canonical config, the adapter's parts and summary, and the content digest.

    `canonical` is the config as canonical JSON, and `columns` the config and the summary as the database stores them.

    `untied` is true if the adapter was read as one that was trained where its ancestors had taken ties apart.
    `warnings` are for a pin to the base (true) and for another one (false); matching a config's patterns may take long,
    so it is done before the transaction that writes.
    """

    config: dict[str, Any]
    canonical: bytes
    columns: dict[str, JsonText]
    spec: AdapterSpec
    summary: AdapterSummary
    content: str
    untied: bool
    warnings: dict[bool, list[str]]


def check_submission(path: str, submission: Submission) -> None:
    """Check everything that needs no database and no file. Raises Invalid."""
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


def is_parent_untied(connection: Connection, path: str, submission: Submission) -> bool:
    """Return whether the chain that an adapter was trained on takes ties of the base apart.

    Raises NotFound, Invalid.
    """
    nodes = queries.nodes.nodes_on_path(connection, parse_path(path))
    return _is_untied(_read_parents(connection, path, nodes, submission))


def check_shapes(submission: Submission, manifest: BaseManifest, header: Header) -> None:
    """Check what a header says against the base, before the values behind it are read. Raises Invalid."""
    check_without_values(submission.config, header, manifest)


def examine(
    inspection: Inspection, manifest: BaseManifest, path: str, submission: Submission, *, untied: bool = False
) -> Examined:
    """Check an adapter, after its weights were read, against its base. Raises Invalid.

    `untied` is what `is_parent_untied` returns.
    """
    try:
        config = canonical_config(submission.config)
        content, canonical = content_digest(config, submission.files), canonical_json(config)
    except ValueError as error:
        raise Invalid(f"the adapter's config has no canonical form: {error}") from error
    # An assumed pin (None) counts as the base: nothing says that the adapter was trained on a composed model, so its
    # copies of weights must be the base's.
    on_base = submission.parent in (None, BASE, base_of(path))
    header, digests = inspection.header, inspection.digests
    spec = classify(config, header, manifest, digests=digests, on_base=on_base, untied=untied)
    summary = summarize(spec, config, header, manifest, digests=digests, on_base=on_base, untied=untied)
    does_nothing = is_zero(spec, digests)
    said = {on_base: warnings(config, spec, on_base=on_base, is_zero=does_nothing) for on_base in (True, False)}
    columns = {"config": to_json(config), "summary": to_json(asdict(summary))}
    return Examined(config, canonical, columns, spec, summary, content, untied, said)


def check_published(
    inspection: Inspection,
    manifest: BaseManifest,
    path: str,
    submission: Submission,
    *,
    content: str,
    summary: AdapterSummary,
    untied: bool,
) -> None:
    """Check a version that is recorded, here or in an export, as if it were published now.

    `submission` is what its publisher sent; `content` and `summary` are what is recorded. Raises Invalid.
    """
    check_submission(path, submission)
    examined = examine(inspection, manifest, path, submission, untied=untied)
    if examined.content != content:
        raise Invalid(f"its config and files give the content {examined.content}, recorded is {content}")
    recorded, actual = asdict(summary), asdict(examined.summary)
    wrong = [
        f"{name} {recorded[name]!r:.60} for {actual[name]!r:.60}" for name in actual if recorded[name] != actual[name]
    ]
    if wrong:
        raise Invalid(f"its summary says something else than its files: {listed(wrong, limit=3)}")


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
    same = queries.publishing.same_content(connection, node.id, examined.content)
    check_content(path, same)
    if submission.found == "assumed" and same:
        # The submission names no parent, so the newest version of the same content gives the parent.
        return _return_existing(connection, path, same[0])
    check_chain(path, above)
    if known := [row for row in same if row.digest == digest]:
        return _return_existing(connection, path, known[0])
    hold_uploaded(connection, submission.files)  # a collection may have removed them since the first check
    created = _insert(connection, node, pin, _choose_number(path, last_number), digest, submission, examined)
    return Published(version=created, created=True, warnings=_list_warnings(examined, pin))


def _choose_number(path: str, last_number: int) -> int:
    """Return the number after the last used number. Raises Conflict if no ref could name it."""
    if last_number >= MAX_NUMBER:
        raise Conflict(f"{path} has given out every number to {MAX_NUMBER}: publish at another path")
    return last_number + 1


def _return_existing(connection: Connection, path: str, row: SameContent) -> Published:
    return Published.already(version(connection, f"{path}@{row.number}"))


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
    chain = [] if node is None else queries.versions.pinned_chain(connection, node.id, parent.selector)
    if not chain and node is not None:
        raise no_version(connection, node, parent.selector)
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
