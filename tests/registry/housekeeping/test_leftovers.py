"""What a killed process leaves on the disk is removed by the next run, or by a collection."""

import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest

from loratree_registry.core.times import now
from loratree_registry.disk.whole_folder import shelter_beside
from loratree_registry.housekeeping.collecting import collect
from loratree_registry.housekeeping.exports.exporting import export
from loratree_registry.workspace.base_locations import remember_base, sweep_bases
from loratree_registry.workspace.fetch import fetch
from tests.registry.conftest import Build
from tests.registry.material import Material, publish, sha256

KILLED = """
import sys, time
from pathlib import Path
from loratree_registry.housekeeping.exports.writing import open_destination
with open_destination(Path(sys.argv[1])) as destination:
    (destination.folder / "nodes.jsonl").write_text("half a line")
    print("writing", flush=True)
    time.sleep(600)
"""
OLD = time.time() - 7 * 24 * 3600


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", ["out.tar", "out"])
def test_the_next_export_removes_what_a_killed_one_left(
    build: Build, material: Material, tmp_path: Path, name: str
) -> None:
    house = build()
    house.registry.add_base("tiny", material.base)
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / name)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        with shelter_beside(tmp_path / name):  # one that is alive stays
            assert len(names(tmp_path)) == 2
        process.send_signal(signal.SIGKILL)
    assert len(names(tmp_path)) == 1
    export(house.storage, None, tmp_path / name)
    assert names(tmp_path) == [name]


def test_a_collection_removes_what_killed_downloads_and_additions_left(build: Build, material: Material) -> None:
    house = build()
    home = house.settings.home
    left = [home / "cache" / "tmp" / "killed", home / "bases" / ".killed", home / "uploads" / ("0" * 32)]
    for path in left[:2]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
        os.utime(path, (OLD, OLD))
    left[2].mkdir(parents=True)
    os.utime(left[2], (OLD, OLD))
    young = home / "cache" / "tmp" / "young"
    young.write_bytes(b"half")
    for dry_run in (True, False):
        found = {thing.name for thing in collect(house.storage, home / "uploads", grace=timedelta(0), dry_run=dry_run)}
        assert found == {"cache/tmp/killed", "bases/.killed", "uploads/" + "0" * 32}
        assert [path.exists() for path in left] == [dry_run] * 3
    assert young.exists()


def test_the_next_run_of_a_client_removes_them_too(
    build: Build, material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = build()
    house.registry.add_base("tiny", material.base)
    publish(house.registry, "tiny/a", material.rank4, "base")
    killed = tmp_path / "cache" / "tmp" / "killed"
    killed.parent.mkdir(parents=True)
    killed.write_bytes(b"half")
    os.utime(killed, (OLD, OLD))
    monkeypatch.setattr(type(house.registry), "local_file", lambda *_: None)  # as over HTTP
    fetch(house.registry, tmp_path, "tiny/a@1", material.rank4.file)
    assert not killed.exists()
    (tmp_path / "bases").mkdir()
    (tmp_path / "bases" / ".killed").write_bytes(b"half")
    assert sweep_bases(tmp_path, before=now() - timedelta(hours=1)) == []
    os.utime(tmp_path / "bases" / ".killed", (OLD, OLD))
    remember_base(tmp_path, sha256(b"base"), tmp_path)
    assert names(tmp_path / "bases") == [sha256(b"base").removeprefix("sha256:") + ".json"]
