"""A full disk, a real one of a few MiB: what is there can be read and removed, and nothing else is written."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.cli.conftest import LEAF, Filled

SIZE_MIB = 32

# Runs in a mount namespace of its own: mounts a small disk, copies a registry there, fills the disk, runs commands, and
# prints for each its status, its output and the bytes that are free then.
SCRIPT = """
import json, os, pathlib, shutil, subprocess, sys
disk, home, size, commands = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}m", "none", disk], check=True)
shutil.copytree(home, disk / "home")
environment = os.environ | {"LORATREE_HOME": str(disk / "home"), "TMPDIR": str(disk)}

def free():
    status = os.statvfs(disk)
    return status.f_bavail * status.f_frsize

def fill():
    with open(disk / "filler", "ab", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass

done = []
for command in commands:
    if command == ["fill"]:
        fill()
        done.append([0, "", "", free()])
        continue
    if command == ["lose"]:
        (disk / "home" / ".loratree.db.reserve").unlink()
        done.append([0, "", "", free()])
        continue
    run = [sys.executable, "-m", "loratree_cli", *command]
    result = subprocess.run(run, env=environment, capture_output=True, text=True)
    done.append([result.returncode, result.stdout, result.stderr, free()])
print(json.dumps(done))
"""


def on_a_full_disk(filled: Filled, folder: Path, *commands: list[str]) -> list[tuple[int, str, str, int]]:
    """Run commands on a disk of their own; `fill` fills it to the last byte, and `lose` removes the reserve."""
    disk = folder / "disk"
    disk.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LORATREE_")}
    arguments = [str(disk), str(filled.home), str(SIZE_MIB), json.dumps(commands)]
    run = subprocess.run(
        ["unshare", "--map-root-user", "--mount", sys.executable, "-c", SCRIPT, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return [(status, out, err, free) for status, out, err, free in json.loads(run.stdout)]


def test_a_full_disk_can_be_read_and_freed(filled: Filled, tmp_path: Path) -> None:
    reading = [["ls"], ["show", LEAF], ["resolve", LEAF, "--json"], ["verify"], ["gc", "--dry-run"]]
    commands = [["ls"], ["fill"], *reading]
    freeing = [["delete", f"{LEAF}@1", "--reason", "no room"], ["gc", "--grace", "0s", "--json"]]
    done = on_a_full_disk(filled, tmp_path, *commands, *freeing, ["ls"])
    assert done[1][3] == 0
    for (status, out, err, free), command in zip(done[2:7], reading, strict=True):
        assert (status, free) == (0, 0), (command, out, err)
    assert [status for status, *_ in done[7:]] == [0, 0, 0], done[7:]
    assert json.loads(done[8][1])["blobs"] == 1


def test_a_full_disk_without_a_reserve_is_told_in_one_sentence(filled: Filled, tmp_path: Path) -> None:
    done = on_a_full_disk(filled, tmp_path, ["ls"], ["lose"], ["fill"], ["ls"], ["gc"])
    for status, _, err, _ in done[3:]:
        assert status == 1
        assert err.startswith("loratree: the disk of ")
        assert err.count("\n") == 1
        assert "is full" in err
        assert "free some space elsewhere first" in err
        assert len(err) <= 540
