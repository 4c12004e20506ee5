"""An export that is imported elsewhere gives the same registry; a damaged or hostile export changes nothing."""

import io
import json
import os
import re
import shutil
import struct
import tarfile
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import text

from loratree_registry.catalog import base_weights
from loratree_registry.core.digests import FileDigest, content_digest, version_digest
from loratree_registry.core.progress import Progress
from loratree_registry.database.engine import writing
from loratree_registry.errors import Conflict, Corrupt, Invalid, LoratreeError, NotFound, Unavailable
from loratree_registry.housekeeping.exports import format
from loratree_registry.housekeeping.exports.exporting import export
from loratree_registry.housekeeping.exports.importing import import_
from loratree_registry.housekeeping.exports.reading import open_export
from loratree_registry.housekeeping.exports.writing import blob_name
from loratree_registry.housekeeping.verifying import verify
from loratree_registry.workspace.base_transfer import pull_base
from tests.registry.conftest import Build
from tests.registry.housed import House, everything
from tests.registry.material import Material, publish, sha256

LINES = ["bases", "nodes", "versions", "tombstones", "aliases", "events", "blobs"]
WAYS = [
    ("sqlite", "local", "postgresql", "local", "folder"),
    ("postgresql", "local", "sqlite", "s3", "all.tar"),
    ("sqlite", "s3", "sqlite", "local", "folder"),
]


def grown(house: House, material: Material) -> House:
    """Fill a registry with every kind of record: two trees, aliases, marks, a tombstone, groupings, a stale pin."""
    registry = house.registry
    registry.add_base("tiny", material.base, source="hub/tiny")
    registry.add_base("other", material.other_base)
    publish(registry, "tiny/law", material.rank8, note="the first, with ünïcode")
    card = {"README.md": "# Vät\n\x1b[0m", "empty.txt": ""}
    publish(registry, "tiny/law/tax/vat", material.rank4, change=lambda one: replace(one, documents=card))
    publish(registry, "tiny/law", material.rank8.variant(1))
    publish(registry, "tiny/law", material.rank8.variant(2))
    publish(registry, "tiny/law/tax/vat/bob", material.rank2)
    publish(registry, "tiny/medicine", material.rank8)
    publish(registry, "tiny/medicine", material.override, "base")
    publish(registry, "tiny/lawn", material.rank4)
    registry.set_alias("tiny/law", "stable", version=1, expected=None)
    registry.set_alias("tiny/law/tax/vat", "stable", version=1, expected=None)
    registry.withdraw("tiny/law@3", reason="wrong data")
    registry.quarantine("tiny/medicine@1", reason="leaked data")
    registry.delete("tiny/law@2", reason="never used")
    return house


@pytest.mark.parametrize(("database", "blobs", "to_database", "to_blobs", "name"), WAYS)
def test_everything_restored_is_the_same_and_its_export_the_same_bytes(
    build: Build,
    material: Material,
    database: str,
    blobs: str,
    to_database: str,
    to_blobs: str,
    name: str,
    tmp_path: Path,
) -> None:
    source = grown(build(database, blobs), material)
    exported = export(source.storage, None, tmp_path / name)
    target = build(to_database, to_blobs)
    imported = import_(target.storage, tmp_path / name)
    assert imported.added == {k: n for k, n in exported.counts.items() if n and k != "blobs"}
    assert everything(target.registry) == everything(source.registry)
    assert verify(target.storage).sound
    export(target.storage, None, tmp_path / "again")
    export(source.storage, None, tmp_path / "first")
    assert listed(tmp_path / "again") == listed(tmp_path / "first")
    number = publish(target.registry, "tiny/law", material.rank8.variant(9)).version.number
    assert number == 4  # no number is given out twice


def listed(folder: Path) -> dict[str, bytes]:
    """Return every file of an export except its header, which holds the time of the export."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != format.HEADER
    }


def test_a_subtree_brings_what_it_was_trained_on_and_nothing_else(
    build: Build, material: Material, tmp_path: Path
) -> None:
    source, target = grown(build(), material), build()
    export(source.storage, "tiny/law/tax", tmp_path / "tax")
    import_(target.storage, tmp_path / "tax")
    registry = target.registry
    assert [node.path for node in registry.descendants("tiny").items] == [
        "tiny/law",
        "tiny/law/tax",
        "tiny/law/tax/vat",
        "tiny/law/tax/vat/bob",
    ]
    assert [version.number for version in registry.versions("tiny/law").items] == [1]
    assert (
        registry.resolve("tiny/law/tax/vat/bob").composition
        == source.registry.resolve("tiny/law/tax/vat/bob").composition
    )
    assert [event.kind for event in registry.events("tiny/law").items if event.path == "tiny/law"] == [
        "alias-set",
        "version-imported",
        "node-created",
    ]
    assert verify(target.storage).sound
    assert publish(registry, "tiny/law", material.rank2).version.number == 4


def test_a_whole_export_fills_in_what_a_part_left_out_and_again_changes_nothing(
    build: Build, material: Material, tmp_path: Path
) -> None:
    source, target = grown(build(), material), build()
    export(source.storage, "tiny/law/tax", tmp_path / "tax")
    export(source.storage, None, tmp_path / "all")
    import_(target.storage, tmp_path / "tax")
    filled = import_(target.storage, tmp_path / "all")
    assert (filled.added["versions"], filled.kept["versions"], filled.differences) == (4, 3, [])
    before = everything(target.registry)
    again = import_(target.storage, tmp_path / "all")
    assert (again.added.get("versions"), again.bytes) == (0, 0)
    assert everything(target.registry) == before
    theirs = everything(source.registry)
    assert before["tiny/law/tax/vat/bob"] == theirs["tiny/law/tax/vat/bob"]
    assert verify(target.storage).sound


def test_what_contradicts_the_registry_is_listed_and_nothing_is_imported(
    build: Build, material: Material, tmp_path: Path
) -> None:
    source, target = grown(build(), material), build()
    export(source.storage, None, tmp_path / "all")
    target.registry.add_base("tiny", material.base)
    publish(target.registry, "tiny/law", material.rank4)
    publish(target.registry, "tiny/lawn", material.rank4, level="task")
    before, stored = everything(target.registry), sorted(held.digest for held in target.storage.blobs.list_blobs())
    with pytest.raises(Conflict) as refused:
        import_(target.storage, tmp_path / "all")
    assert "tiny/law@1 is sha256:" in str(refused.value)
    assert "tiny/lawn is a task here, and a domain in the export" in str(refused.value)
    assert everything(target.registry) == before
    assert sorted(held.digest for held in target.storage.blobs.list_blobs()) == stored


def test_marks_and_aliases_that_were_changed_here_stay_and_are_told(
    build: Build, material: Material, tmp_path: Path
) -> None:
    source = grown(build(), material)
    export(source.storage, None, tmp_path / "all")
    registry = source.registry
    registry.reinstate("tiny/law@3")
    registry.set_alias("tiny/law", "stable", version=3, expected=1)
    before = everything(registry)
    assert import_(source.storage, tmp_path / "all").differences == [
        "tiny/law@3 is not withdrawn here, unlike in the export",
        "the alias tiny/law@stable is at version 3 here, 1 in the export",
    ]
    assert everything(registry) == before


def test_quarantined_content_does_not_come_back_by_import(build: Build, material: Material, tmp_path: Path) -> None:
    source, target = build(), build()
    for house in (source, target):
        house.registry.add_base("tiny", material.base)
        publish(house.registry, "tiny/law", material.rank8)
    publish(source.registry, "tiny/law/tax", material.rank4)
    publish(target.registry, "tiny/law/tax", material.rank2)
    publish(target.registry, "tiny/law/tax", material.rank4)
    target.registry.quarantine("tiny/law/tax@2", reason="leaked")
    target.registry.delete("tiny/law/tax@2", reason="leaked")
    target.registry.delete("tiny/law/tax@1", reason="old")
    with writing(target.storage.engine) as connection:
        connection.execute(text("DELETE FROM tombstones WHERE number = 1"))
    export(source.storage, None, tmp_path / "all")
    with pytest.raises(Conflict, match="tiny/law/tax@1 holds what is quarantined here"):
        import_(target.storage, tmp_path / "all")


def test_bytes_that_are_quarantined_at_another_node_come_back_by_import_with_a_warning(
    build: Build, material: Material, tmp_path: Path
) -> None:
    source, target = build(), build()
    for house in (source, target):
        house.registry.add_base("tiny", material.base)
        publish(house.registry, "tiny/law", material.rank8)
    publish(source.registry, "tiny/tax", material.rank8)
    publish(source.registry, "tiny/tax/vat", material.rank4)
    source.registry.quarantine("tiny/tax@1", reason="leaked")
    publish(source.registry, "tiny/tax", material.rank4, "base")
    export(source.storage, None, tmp_path / "all")
    imported = import_(build().storage, tmp_path / "all")  # a backup is restored whole, as it was
    assert (imported.added["versions"], imported.warnings) == (4, [])
    target.registry.quarantine("tiny/law@1", reason="names")
    publish(target.registry, "tiny/lawn", material.rank4)
    target.registry.quarantine("tiny/lawn@1", reason="also names")
    assert import_(target.storage, tmp_path / "all").warnings == [
        "tiny/tax/vat@1 holds the same bytes as tiny/lawn@1, which is quarantined here (also names)",
        "tiny/tax@2 holds the same bytes as tiny/lawn@1, which is quarantined here (also names)",
    ]
    assert target.registry.version("tiny/tax@2").digest == source.registry.version("tiny/tax@2").digest
    assert import_(target.storage, tmp_path / "all").warnings == []


def test_an_interrupted_import_goes_on_and_shows_nothing_before(
    build: Build, material: Material, tmp_path: Path
) -> None:
    source, target = grown(build(), material), build()
    export(source.storage, None, tmp_path / "all")

    with pytest.raises(KeyboardInterrupt):  # after the bytes were stored
        import_(target.storage, tmp_path / "all", progress=interrupt_at("checking adapters"))
    assert target.registry.bases().items == []
    assert len(list(target.storage.blobs.list_blobs())) > 0
    assert import_(target.storage, tmp_path / "all").bytes == 0  # all the bytes were stored the first time
    assert everything(target.registry) == everything(source.registry)


def interrupt_at(step: str) -> Progress:
    """Return a progress that is a Ctrl-C when the step begins."""

    def interrupt(what: str, _done: int, _total: int, _unit: str) -> None:
        if what == step:
            raise KeyboardInterrupt

    return interrupt


@pytest.mark.parametrize("name", ["out", "out.tar"])
def test_a_damaged_blob_is_not_exported_and_leaves_nothing(
    build: Build, material: Material, tmp_path: Path, name: str
) -> None:
    house = grown(build(), material)
    house.flip(material.rank4.file.sha256)
    with pytest.raises(Corrupt, match="the blob store holds other bytes as sha256"):
        export(house.storage, None, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_an_export_never_goes_over_what_is_there(build: Build, material: Material, tmp_path: Path) -> None:
    house = grown(build(), material)
    (tmp_path / "all.tar").write_bytes(b"mine")
    with pytest.raises(Conflict, match="is there already"):
        export(house.storage, None, tmp_path / "all.tar")
    with pytest.raises(NotFound, match="tiny/physics is not known"):
        export(house.storage, "tiny/physics", tmp_path / "new")
    assert (tmp_path / "all.tar").read_bytes() == b"mine"


def edited(name: str, change: Callable[[list[dict[str, object]]], None]) -> Callable[[Path], None]:
    """Change the lines of a file, and the header to match, as a forger of an export would."""

    def apply(folder: Path) -> None:
        path = folder / f"{name}.jsonl"
        records = [json.loads(line) for line in path.read_bytes().splitlines()]
        change(records)
        forged(folder, name, b"".join(json.dumps(record).encode() + b"\n" for record in records))

    return apply


def forged(folder: Path, name: str, content: bytes) -> None:
    """Write a file, and its digest in the header."""
    (folder / f"{name}.jsonl").write_bytes(content)
    header = json.loads((folder / format.HEADER).read_text())
    for file in header["files"]:
        if file["name"] == f"{name}.jsonl":
            file |= {"size": len(content), "sha256": sha256(content)}
    (folder / format.HEADER).write_text(json.dumps(header))


def replaced(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """Give the first version other bytes, with every digest in the export that then changes, as a forger would."""

    def apply(folder: Path) -> None:
        versions = [json.loads(line) for line in (folder / "versions.jsonl").read_bytes().splitlines()]
        [file] = versions[0]["files"]
        old = file["sha256"]
        content = change(blob_path(folder, old).read_bytes())
        file |= {"sha256": sha256(content), "size": len(content)}
        path = blob_path(folder, sha256(content))
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        if all(version["files"][0]["sha256"] != old for version in versions):
            blob_path(folder, old).unlink()
        kept = {version["files"][0]["sha256"]: version["files"][0]["size"] for version in versions}
        blobs = [{"sha256": digest, "size": size} for digest, size in sorted(kept.items())]
        renamed: dict[str, str] = {}
        bases = [json.loads(line) for line in (folder / "bases.jsonl").read_bytes().splitlines()]
        digests = {base["name"]: base["digest"] for base in bases}
        for version in versions:  # a pin comes before what was trained on it
            pin = version["pin"]
            if pin:
                pin["digest"] = renamed.get(pin["digest"], pin["digest"])
            files = [FileDigest(**stored) for stored in version["files"]]
            config, before = version["config"], version["digest"]
            version["content"] = content_digest(config, files)
            version["digest"] = version_digest(
                base_digest=digests[version["path"].partition("/")[0]],
                pin_digest=pin["digest"] if pin else None,
                config=config,
                files=files,
            )
            renamed[before] = version["digest"]
        for name, records in (("versions", versions), ("blobs", blobs)):
            forged(folder, name, b"".join(json.dumps(record).encode() + b"\n" for record in records))

    return apply


def blob_path(folder: Path, digest: str) -> Path:
    return folder / blob_name(digest)


def first_blob(folder: Path) -> Path:
    return min(path for path in folder.rglob("blobs/**/*") if path.is_file())


def flipped(folder: Path) -> None:
    content = first_blob(folder).read_bytes()
    first_blob(folder).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def linked(folder: Path) -> None:
    blob = first_blob(folder)
    blob.rename(folder.parent / "elsewhere")
    blob.symlink_to(folder.parent / "elsewhere")


def linked_lines(folder: Path) -> None:
    (folder / "nodes.jsonl").rename(folder.parent / "elsewhere")
    (folder / "nodes.jsonl").symlink_to(folder.parent / "elsewhere")


def later_pin(records: list[dict[str, object]]) -> None:
    records.insert(0, records.pop(1))


def twice(folder: Path) -> None:
    content = (folder / "nodes.jsonl").read_bytes()
    forged(folder, "nodes", content.replace(b'{"path":', b'{"path":"tiny/x","path":', 1))


def giant(folder: Path) -> None:
    with (folder / "nodes.jsonl").open("r+b") as stream:
        stream.truncate(2 * format.MAX_LINE)


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped bit": (
        flipped,
        "^the export is damaged: the bytes of .*/export/blobs/sha256/../[0-9a-f]{64} have the digest sha256:[0-9a-f]+"
        ": export it again, or copy it again whole$",
    ),
    "a blob cut off": (lambda folder: os.truncate(first_blob(folder), 5), "has 5 bytes, expected"),
    "a blob missing": (lambda folder: first_blob(folder).unlink(), "is listed but missing"),
    "an extra blob": (
        lambda folder: first_blob(folder).with_name("0" * 64).write_bytes(b""),
        "which it does not list: move it away",
    ),
    "an extra file": (lambda folder: (folder / "setup.py").touch(), "setup.py is no part of the export"),
    "a link for a blob": (linked, "is not a plain file"),
    "a link for lines": (linked_lines, r"nodes.jsonl cannot be read \(.*\), expected a plain file"),
    "no header": (lambda folder: (folder / format.HEADER).unlink(), "holds no loratree-export.json"),
    "lines cut off": (lambda folder: os.truncate(folder / "versions.jsonl", 100), "line 1 of .*versions.jsonl is cut"),
    "another line": (lambda folder: (folder / "events.jsonl").write_bytes(b""), "not the file that the header lists"),
    "a giant line": (giant, "line 9 of .*nodes.jsonl is longer than"),
    "a key twice": (twice, "'path' stands twice in one object"),
    "a path upwards": (
        edited("nodes", lambda records: records[1].update(path="tiny/../etc")),
        r"the segment '\.\.'",
    ),
    "a file upwards": (
        edited("versions", lambda records: records[0]["files"][0].update(name="../x")),  # type: ignore[index]
        "is not a plain file name",
    ),
    "another digest": (
        edited("versions", lambda records: records[0].update(digest=f"sha256:{'0' * 64}")),
        "the export contradicts itself: tiny/law@1 has the digest sha256:000",
    ),
    "another config": (
        edited("versions", lambda records: records[0]["config"].update(r=9)),  # type: ignore[attr-defined]
        "tiny/law@1 has the content digest",
    ),
    "a later pin": (edited("versions", later_pin), "is pinned to .*, which does not come before it"),
    "no such pin": (edited("versions", lambda records: records.pop(0)), "is pinned to tiny/law@1, which does not come"),
    "another base": (
        edited("bases", lambda records: records[0].update(digest=f"sha256:{'0' * 64}")),
        "the base other is sha256:000",
    ),
    "a node without a parent": (edited("nodes", lambda records: records.pop(2)), "comes before its parent"),
    "a version without a node": (edited("nodes", lambda records: records.pop()), "names nodes that it does not list"),
    "bytes not listed": (edited("blobs", lambda records: records.pop()), "which it does not list: move it away"),
    "a number too high": (
        edited("nodes", lambda records: records[2].update(last_number=0)),
        "tiny/law@1 has a number that its node has not given out",
    ),
    "a number that nothing has": (
        edited("nodes", lambda records: records[2].update(last_number=999_999_999)),
        "a last_number above every version at tiny/law, expected",
    ),
    "a time that UTC cannot write": (
        edited("nodes", lambda records: records[0].update(created_at="9999-12-31T23:59:00-23:59")),
        "line 1 of .*nodes.jsonl is not valid .*is not in the years 1 to 9999 in UTC",
    ),
    "a time before the first one": (
        edited("events", lambda records: records[0].update(created_at="0001-01-01T00:00:00+23:59")),
        "is not in the years 1 to 9999 in UTC",
    ),
    "an adapter without ranks": (
        edited("versions", lambda records: records[0]["summary"].update(ranks=[])),  # type: ignore[attr-defined]
        r"the export's tiny/law@1 is not what publish would take: its summary says .* ranks \[\] for \[8\]",
    ),
    "an adapter that unties nothing": (
        edited("versions", lambda records: records[0]["summary"].update(unties=True)),  # type: ignore[attr-defined]
        "its summary says something else than its files: unties True for False",
    ),
    "a pickle for an adapter": (
        replaced(lambda _: b"\x80\x04\x95" + bytes(200)),
        "tiny/law@1 is not what publish would take: .*is not a safetensors file",
    ),
    "an adapter with NaN": (
        replaced(lambda content: content[:-4] + struct.pack("<f", float("nan"))),
        "tiny/law@1 is not what publish would take: .*values that are not finite",
    ),
    "an adapter of another base": (
        replaced(lambda content: content.replace(b".q_proj.", b".x_proj.")),
        "tiny/law@1 is not what publish would take: the adapter cannot be published",
    ),
    "another schema": (
        lambda folder: (folder / format.HEADER).write_bytes(
            (folder / format.HEADER).read_bytes().replace(b"export/1", b"export/9")
        ),
        "is a 'loratree/export/9' export",
    ),
    "no JSON": (lambda folder: (folder / format.HEADER).write_bytes(b"{"), "loratree-export.json is not valid"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, material: Material) -> Path:
    """Make an export of a whole registry, which tests copy and damage."""
    from tests.registry.housed import house

    folder = tmp_path_factory.mktemp("whole")
    with house(folder) as source:
        export(grown(source, material).storage, None, folder / "export")
    return folder / "export"


@pytest.mark.parametrize("attack", HOSTILE)
def test_a_damaged_or_hostile_export_is_refused_and_nothing_of_it_is_seen(
    build: Build, whole: Path, tmp_path: Path, attack: str
) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "export"))
    harm, sentence = HOSTILE[attack]
    harm(folder)
    refused_unseen(build(), folder, sentence)


def refused_unseen(house: House, where: Path, sentence: str) -> None:
    with pytest.raises(LoratreeError, match=sentence) as refused:
        import_(house.storage, where)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 2000
    assert house.registry.bases().items == []


def packed(folder: Path, where: Path, change: Callable[[tarfile.TarInfo], tarfile.TarInfo | None]) -> Path:
    """Make a tar file of an export's files, in the right order, each of which may be changed or left out."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    files.sort(key=lambda path: (path.name == format.HEADER, "blobs" not in path.parts, path))
    with tarfile.open(where, "w", format=tarfile.GNU_FORMAT) as tar:
        for path in files:
            member = tarfile.TarInfo(str(path.relative_to(folder)))
            member.size = path.stat().st_size
            if (changed := change(member)) is not None:
                tar.addfile(changed, io.BytesIO(path.read_bytes()))
    return where


def renamed(old: str, new: str) -> Callable[[tarfile.TarInfo], tarfile.TarInfo]:
    def change(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.name = new if member.name == old else member.name
        return member

    return change


def as_link(member: tarfile.TarInfo) -> tarfile.TarInfo:
    if member.name == "nodes.jsonl":
        member.type, member.linkname, member.size = tarfile.SYMTYPE, "/etc/passwd", 0
    return member


TARS: dict[str, tuple[Callable[[tarfile.TarInfo], tarfile.TarInfo | None], str]] = {
    "a path upwards": (renamed("nodes.jsonl", "../nodes.jsonl"), r"'\.\./nodes.jsonl', which is no part of an export"),
    "an absolute path": (renamed("nodes.jsonl", "/etc/x"), "which is no part of an export"),
    "a name twice": (renamed("nodes.jsonl", "bases.jsonl"), "'bases.jsonl', which is no part"),
    "a link": (as_link, "'nodes.jsonl', not a plain file"),
    "a long name": (renamed("nodes.jsonl", "x" * 300), "not a plain file"),
    "no header": (lambda member: None if member.name == format.HEADER else member, "does not end with loratree-export"),
    "no blob": (lambda member: None if member.name.startswith("blobs/") else member, "is listed but missing"),
}


@pytest.mark.parametrize("attack", TARS)
def test_a_hostile_tar_file_is_refused_and_nothing_is_extracted(
    build: Build, whole: Path, tmp_path: Path, attack: str
) -> None:
    change, sentence = TARS[attack]
    refused_unseen(build(), packed(whole, tmp_path / "export.tar", change), sentence)
    assert [path.name for path in tmp_path.iterdir()] == ["export.tar"]


def test_a_flipped_bit_in_a_tar_file_is_told_with_the_name_of_its_member(
    build: Build, whole: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "export"))
    flipped(folder)
    tar = packed(folder, tmp_path / "export.tar", lambda member: member)
    name = re.escape(str(first_blob(folder).relative_to(folder)))
    sentence = f"of .*/export.tar/{name} have the digest sha256:[0-9a-f]+: export it again, or copy it again whole$"
    refused_unseen(build(), tar, sentence)
    refused_unseen(build("sqlite", "s3"), tar, sentence)


def test_a_file_that_is_whole_again_when_it_is_looked_at_is_told_to_have_changed(whole: Path) -> None:
    with open_export(whole) as opened:
        blob, open_blob = next(opened.blobs())
        told = opened.describe_damage(blob, open_blob)
    assert str(told).endswith(
        f"{blob_name(blob.sha256)} changed while it was read: import the export again, and do not change it meanwhile"
    )


def test_bytes_that_are_damaged_here_are_not_called_the_exports_fault(
    build: Build, material: Material, tmp_path: Path
) -> None:
    source, target = weighty(grown(build(), material), material.checkpoint), build()
    export(source.storage, None, tmp_path / "all")
    for sha256_, what in (
        (material.rank4.file.sha256, "tiny/law/tax/vat@1"),
        (sha256(material.checkpoint["model.safetensors"]), "the weights of the base tiny"),
    ):
        with suppress(KeyboardInterrupt):
            import_(target.storage, tmp_path / "all", progress=interrupt_at("checking adapters"))
        target.flip(sha256_)
        with pytest.raises(Corrupt, match=f"^{what} cannot be checked, as this registry's own blob store .* verify"):
            import_(target.storage, tmp_path / "all")


def test_an_import_whose_bytes_are_collected_meanwhile_is_to_be_run_again(build: Build, whole: Path) -> None:
    target = build()

    def collect(what: str, done: int, _total: int, _unit: str) -> None:
        if what == "storing the files" and done:
            with writing(target.storage.engine) as connection:
                connection.execute(text("UPDATE blobs SET state = 'condemned' WHERE state = 'expected'"))

    with pytest.raises(Unavailable, match="were collected during the import: import the export again"):
        import_(target.storage, whole, progress=collect)
    import_(target.storage, whole)
    assert verify(target.storage).sound


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.999])
def test_a_tar_file_that_was_cut_off_anywhere_is_refused(
    build: Build, whole: Path, tmp_path: Path, share: float
) -> None:
    tar = packed(whole, tmp_path / "export.tar", lambda member: member)
    end = len(tar.read_bytes().rstrip(b"\0"))
    os.truncate(tar, int(end * share))
    refused_unseen(build(), tar, "is not a whole tar file|is cut off in|does not end with")
    (tmp_path / "no.tar").write_bytes(b"PK\x03\x04" + bytes(2000))
    refused_unseen(build(), tmp_path / "no.tar", "is not a whole tar file")


def test_every_kind_of_line_says_what_it_is_strictly() -> None:
    assert sorted(format.FILES) == sorted(LINES)
    with pytest.raises(Invalid, match="size: Input should be a valid integer"):
        format.read_record(format.BlobLine, b'{"sha256": "sha256:%s", "size": "3"}' % (b"0" * 64), "line 1")


def test_a_wrong_size_that_somebody_announced_is_in_no_imports_way(
    build: Build, material: Material, tmp_path: Path
) -> None:
    source, target = grown(build(), material), build()
    export(source.storage, None, tmp_path / "all")
    with pytest.raises(Invalid):
        target.registry.upload(io.BytesIO(b"oops"), sha256=sha256(material.rank8.weights), size=4)
    import_(target.storage, tmp_path / "all")
    assert everything(target.registry) == everything(source.registry)


def test_trying_an_import_keeps_nobody_from_publishing_the_same_bytes(
    build: Build, material: Material, tmp_path: Path
) -> None:
    source, target = grown(build(), material), build("postgresql")
    target.registry.add_base("other", material.other_base)
    target.registry.add_base("tiny", material.base, source="hub/tiny")
    export(source.storage, None, tmp_path / "all")
    published = []

    def publish_meanwhile(step: str, done: int, _total: int, _unit: str) -> None:
        if step == "checking versions" and done and not published:
            published.append(publish(target.registry, "tiny/elsewhere", material.rank8))

    import_(target.storage, tmp_path / "all", progress=publish_meanwhile)
    assert published[0].created
    assert verify(target.storage).sound


@pytest.mark.parametrize("mark", ["withdraw", "quarantine"])
def test_nobody_marks_a_version_between_an_imports_look_and_its_writing(
    build: Build, material: Material, mark: str, tmp_path: Path
) -> None:
    source, target = build(), build("postgresql")
    for house in (source, target):
        house.registry.add_base("tiny", material.base)
        publish(house.registry, "tiny/law", material.rank8)
    source.registry.set_alias("tiny/law", "stable", version=1, expected=None)
    export(source.storage, None, tmp_path / "all")
    marking: list[threading.Thread] = []
    early = []

    def mark_meanwhile(step: str, done: int, _total: int, _unit: str) -> None:
        if step == "adding versions" and done and not marking:
            act = partial(getattr(target.registry, mark), "tiny/law@1", reason="wrong data")
            marking.append(threading.Thread(target=suppressed, args=(act,)))
            marking[0].start()
            marking[0].join(1)
            early.append(not marking[0].is_alive())

    import_(target.storage, tmp_path / "all", progress=mark_meanwhile)
    marking[0].join()
    assert early == [False]  # it waited for the import
    assert verify(target.storage).sound


def suppressed(act: Callable[[], object]) -> None:
    """Do the change, or accept the refusal: a version with an alias cannot be withdrawn."""
    with suppress(Conflict):
        act()


def test_a_node_whose_numbers_are_used_up_takes_no_other_version(build: Build, material: Material) -> None:
    house = grown(build(), material)
    with writing(house.storage.engine) as connection:
        connection.execute(text("UPDATE nodes SET last_number = 999999999 WHERE path = 'tiny/law'"))
    with pytest.raises(Conflict, match="tiny/law has given out every number to 999999999: publish at another path"):
        publish(house.registry, "tiny/law", material.rank4)
    assert [version.number for version in house.registry.versions("tiny/law").items] == [3, 1]


def weighty(house: House, checkpoint: Mapping[str, bytes]) -> House:
    """Record `checkpoint` as the weights of a registry's base, without checking its content."""
    files = [FileDigest(name, len(content), sha256(content)) for name, content in sorted(checkpoint.items())]
    for content in checkpoint.values():
        house.registry.upload(io.BytesIO(content), sha256=sha256(content), size=len(content))
    with writing(house.storage.engine) as connection:
        base_weights.record(connection, "tiny", files)
    return house


@pytest.mark.parametrize(("database", "blobs", "to_database", "to_blobs", "name"), WAYS)
def test_stored_weights_are_restored_whole(
    build: Build,
    material: Material,
    database: str,
    blobs: str,
    to_database: str,
    to_blobs: str,
    name: str,
    tmp_path: Path,
) -> None:
    source = weighty(grown(build(database, blobs), material), material.checkpoint)
    export(source.storage, None, tmp_path / name)
    target = build(to_database, to_blobs)
    assert import_(target.storage, tmp_path / name).added["weights"] == len(material.checkpoint)
    assert everything(target.registry) == everything(source.registry)
    assert verify(target.storage).sound
    pull_base(target.registry, tmp_path / "home", "tiny", tmp_path / "pulled")
    assert {path.name: path.read_bytes() for path in (tmp_path / "pulled").iterdir()} == dict(material.checkpoint)


def test_weights_that_are_not_the_bases_own_are_not_imported(build: Build, material: Material, tmp_path: Path) -> None:
    weights = material.checkpoint["model.safetensors"]
    other = {**material.checkpoint, "model.safetensors": weights[:-1] + bytes([weights[-1] ^ 1])}
    source, target = weighty(grown(build(), material), other), build()
    export(source.storage, None, tmp_path / "all")
    with pytest.raises(
        Invalid,
        match=r"the export's weights of the base tiny are not its own: \S+ has other values; export it again from a",
    ):
        import_(target.storage, tmp_path / "all")
    assert everything(target.registry) == {}
    target.registry.add_base("tiny", material.base)
    assert target.registry.base_files("tiny") == []


def test_a_pipe_for_a_tar_file_is_refused_and_never_waited_for(build: Build, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "all.tar")
    with pytest.raises(Invalid, match=r"all\.tar is not a file"):
        import_(build().storage, tmp_path / "all.tar")


def test_a_version_without_documents_is_written_as_releases_without_them_read_it(
    build: Build, material: Material, tmp_path: Path
) -> None:
    house = grown(build("sqlite", "local"), material)
    export(house.storage, None, tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out" / "versions.jsonl").read_text().splitlines()]
    with_documents = {f"{line['path']}@{line['number']}" for line in lines if "documents" in line}
    assert with_documents == {"tiny/law/tax/vat@1"}
