"""Publication of one folder: read, check, find the pin, upload, submit."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from loratree_registry.blobs.counted import counted
from loratree_registry.core.digests import holds
from loratree_registry.core.documents import say_kept
from loratree_registry.core.manifest import BaseManifest
from loratree_registry.core.paths import (
    BASE,
    Level,
    base_of,
    check_same_level,
    parent_of,
    parse_path,
    versionless,
)
from loratree_registry.core.progress import Counter, Progress, silent
from loratree_registry.core.records import Published, Submission, Version
from loratree_registry.core.registry import Registry
from loratree_registry.core.text import bytes_quarantined, check_text, same_quarantined
from loratree_registry.disk.plain_files import open_plain
from loratree_registry.errors import Conflict, Invalid, NotFound, NotUploaded, Quarantined
from loratree_registry.workspace.adapter_directory import AdapterDirectory, read_adapter_directory
from loratree_registry.workspace.compositions import FoundPin
from loratree_registry.workspace.other_folders import RESAVE
from loratree_registry.workspace.pins import OpenPin, find_pin
from loratree_registry.workspace.places import find_place

_TRIES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishResult:
    """The result of publishing a folder: the version, its pin, the files not published, and the bytes uploaded.

    `made` are the nodes that were to be made for it, root to leaf, with their levels.
    """

    published: Published
    pin: FoundPin
    not_published: list[str]
    uploaded_bytes: int
    made: dict[str, Level] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A folder that is valid for its path: the adapter, its pin, and the version that already holds it, if any.

    `made` are the nodes that publishing makes, root to leaf, with their levels; {} where nobody looked.
    """

    adapter: AdapterDirectory
    pin: FoundPin
    known: Version | None
    made: dict[str, Level]


def publish_directory(
    registry: Registry,
    directory: Path,
    path: str,
    *,
    parent: str | None = None,
    level: Level | None = None,
    note: str | None = None,
    home: Path,
    trained_on: Path | None = None,
    force_parent: bool = False,
    assume: bool = True,
    new_path: bool = False,
    asking: bool = True,
    progress: Progress = silent,
) -> PublishResult:
    """Publish the PEFT adapter in `directory` as the next version at `path`, all of it or nothing.

    `parent` is --parent: a ref or `base`; `trained_on` is --trained-on: a folder or a lockfile; `force_parent` lets
    `parent` overrule what the adapter says; without `assume`, a pin that nothing names is refused and not assumed.
    `new_path` allows a new node whose name is nearly that of another. Without `asking`, somebody else has looked at the
    path already (see find_place). Everything is checked before a byte is sent. If `path` has a version of
    this adapter with the same pin, or with any pin if the new pin cannot be decided, that version is returned; its
    bytes are sent again only if the stored ones are damaged. Raises LoratreeError.
    """
    check_text("note", note, limit=2000)
    prepared = prepare(
        registry,
        directory,
        path,
        parent=parent,
        level=level,
        home=home,
        trained_on=trained_on,
        force_parent=force_parent,
        assume=assume,
        new_path=new_path,
        asking=asking,
        progress=progress,
    )
    adapter, pin = prepared.adapter, prepared.pin
    if prepared.known is not None:
        return PublishResult(
            published=_say_kept(registry, adapter, note, Published.already(prepared.known)),
            pin=pin,
            not_published=adapter.not_published,
            uploaded_bytes=_repair(registry, adapter, prepared.known, progress),
        )
    submission = Submission(
        config=adapter.config,
        files=[adapter.file],
        parent=pin.parent,
        found=pin.found,
        level=level,
        note=note,
        documents=adapter.documents,
    )
    published = _upload_and_publish(registry, adapter, path, submission, progress)
    if published.created and pin.warnings:
        published = replace(published, warnings=[*published.warnings, *pin.warnings])
    return PublishResult(
        published=published,
        pin=pin,
        not_published=adapter.not_published,
        uploaded_bytes=adapter.file.size,
        made=prepared.made if published.created else {},
    )


def prepare(
    registry: Registry,
    directory: Path,
    path: str,
    *,
    parent: str | None,
    level: Level | None,
    home: Path,
    trained_on: Path | None = None,
    force_parent: bool = False,
    assume: bool = True,
    new_path: bool = False,
    asking: bool = True,
    progress: Progress = silent,
) -> Prepared:
    """Check a folder as far as possible before a byte of it is sent. Raises LoratreeError."""
    manifest = _read_manifest(registry, path)
    adapter = read_adapter_directory(directory, manifest, progress=progress)
    # The registry checks the adapter again: this check saves an upload, and the registry trusts no client.
    adapter.check_without_pin(manifest)
    known = _find_same_content(registry, path, adapter)
    _check_not_quarantined(registry, path, adapter, known)
    try:
        pin = find_pin(
            registry,
            adapter,
            path,
            parent=parent,
            home=home,
            trained_on=trained_on,
            force=force_parent,
            progress=progress,
        )
    except OpenPin:
        if not known:
            raise
        pin = _pin_of(known[0])
    if pin.found == "assumed" and not assume and not known:
        raise OpenPin(f"{pin.why}, and nothing may be assumed: say with --parent what it was trained on, or `base`")
    # An assumed pin (None) counts as the base: nothing says that the adapter was trained on a composed model.
    if pin.parent is None:
        adapter.check_without_pin(manifest, on_base=True)
    elif pin.parent == BASE:
        adapter.check_against(manifest)
    elif manifest.ties():
        above = registry.ancestry(pin.parent)
        adapter.check_against(manifest, on_base=False, untied=any(version.summary.unties for version in above))
    made = find_place(registry, path, level, new_path=new_path) if asking else {}
    same = [version for version in known if pin.parent is None or version.pin.digest == pin.digest]
    if same:
        check_same_level(path, same[0].level, level)
    return Prepared(adapter=adapter, pin=pin, known=same[0] if same else None, made=made)


def _read_manifest(registry: Registry, path: str) -> BaseManifest:
    if parent_of(parse_path(path)) is None:
        registry.base(path)  # a path that was given without its base is told so
        raise Invalid(versionless(path))
    return registry.base_manifest(base_of(path))


def _find_same_content(registry: Registry, path: str, adapter: AdapterDirectory) -> list[Version]:
    """Return the versions at `path` that have the adapter's content, newest first."""
    try:
        return registry.versions(path, content=adapter.content).items
    except NotFound:
        return []


def _check_not_quarantined(registry: Registry, path: str, adapter: AdapterDirectory, known: list[Version]) -> None:
    """Raise Quarantined if a version at `path` with the same content, or one of any node with its bytes, is."""
    for version in known:
        if version.quarantined is not None:
            raise Quarantined(same_quarantined(f"{path}@{version.number}", version.quarantined.reason))
    held = [] if known else registry.holders(adapter.file.sha256, quarantined=True, limit=1).items
    for version in held:
        if version.quarantined is not None:
            raise Quarantined(bytes_quarantined(path, f"{version.path}@{version.number}", version.quarantined.reason))


def _pin_of(version: Version) -> FoundPin:
    """Return the pin of a version that is already published."""
    pin = version.pin
    name = BASE if pin.digest is None else f"{pin.path}@{pin.version}"
    return FoundPin(name, pin.found, f"already published, pinned to {name}", pin.digest)


def _say_kept(registry: Registry, adapter: AdapterDirectory, note: str | None, published: Published) -> Published:
    """Warn if the folder's documents, or the note, are not those of the version that holds the adapter already."""
    version = published.version
    try:
        documents = registry.documents(f"{version.path}@{version.number}") if adapter.documents else []
    except Quarantined:  # a version above it is
        return published
    kept = {document.name: document.text for document in documents}
    remark = say_kept(version, kept, adapter.documents, note)
    return published if remark is None else replace(published, warnings=[*published.warnings, remark])


def _repair(registry: Registry, adapter: AdapterDirectory, version: Version, progress: Progress) -> int:
    """Send a version's bytes again if the stored ones are damaged or missing; return the number of bytes sent."""
    if not registry.damaged_files(f"{version.path}@{version.number}"):
        return 0
    _upload(registry, adapter, progress)
    return adapter.file.size


def _upload_and_publish(
    registry: Registry, adapter: AdapterDirectory, path: str, submission: Submission, progress: Progress
) -> Published:
    """Upload and publish; retry if `loratree gc` removed the bytes before the version referred to them."""
    for _ in range(_TRIES - 1):
        try:
            _upload(registry, adapter, progress)
            return registry.publish(path, submission)
        except NotUploaded:
            continue
    _upload(registry, adapter, progress)
    return registry.publish(path, submission)


def _upload(registry: Registry, adapter: AdapterDirectory, progress: Progress) -> None:
    """Send the weights; the registry verifies that they have the digest that was computed when they were checked."""
    file = adapter.file
    counter = Counter(progress, f"sending {adapter.weights}", file.size, then="the registry checks what it got")
    with open_plain(adapter.weights, remedy=RESAVE) as stream:
        try:
            registry.upload(counted(stream, counter.add), sha256=file.sha256, size=file.size)
        except Invalid as error:
            stream.seek(0)
            if holds(stream, file):
                raise
            raise Conflict(
                f"{adapter.weights} changed while it was sent, so nothing was published: wait until it is written and "
                "publish again"
            ) from error
