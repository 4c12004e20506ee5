"""Ctrl-C and SIGTERM in the middle of each command that can take long: what it says and keeps, how it goes on."""

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from loratree_registry.blobs.store import PART
from tests import tiny
from tests.cli.conftest import CHAIN, LEAF, Filled, Shell
from tests.cli.paused import Pause, Paused, screen
from tests.registry.remote.test_stalled_peers import Relay
from tests.registry.serving import command_serving
from tests.registry.workspace.test_cache import fill
from tests.tiny import adapter as small_adapter

MED = CHAIN[0][0]


@dataclass(frozen=True)
class Case:
    """A command of a folder that `prepare` has filled, the effect at which it is interrupted, and what it then says."""

    arguments: str
    pause: Pause
    says: str


# {new}: an adapter that is not published, {base}: the base, {out}: a folder to write, and what `prepare` makes.
CASES = {
    "publish": Case("publish {new} tiny/law --parent base", Pause("/blobs/tmp/"), r"whole or not at all; the parts"),
    "hashing": Case("publish {new} tiny/law --parent base", Pause("new/adapter_model.safetensors"), "whole or not at"),
    "manifest": Case(
        "publish --manifest {manifest} --jobs 2", Pause("a3/adapter_config.json"), r"\d published, \d of 6 lines to go"
    ),
    "base add": Case("base add other {base}", Pause("base/model.safetensors", nth=4), "nothing was recorded"),
    "base push": Case("base push tiny {base}", Pause("/blobs/tmp/", nth=2), "the files and parts that arrived stay"),
    "base pull": Case("base pull stored --out {out}", Pause("/.out.loratree"), "nothing was written at .*out"),
    "pull": Case(f"pull {MED} --out {{out}}", Pause("/.out.loratree"), "nothing was written at .*out"),
    "merge": Case(
        f"compose {LEAF} --mode merge --out {{out}}", Pause("out/model.safetensors"), "nothing was written at .*out"
    ),
    "flatten": Case(
        f"compose {LEAF} --mode flatten --out {{out}}", Pause("out/adapter_config"), "nothing was written at .*out"
    ),
    "truncate": Case(
        f"compose {LEAF} --mode flatten --rank 2 --out {{out}}", Pause("out/compr"), "nothing was written at .*out"
    ),
    "verify": Case("verify", Pause("/blobs/sha256/", nth=3), "nothing was changed"),
    "verify adapters": Case("verify --adapters", Pause("/blobs/sha256/", nth=8), "nothing was changed"),
    "gc": Case("gc --grace 0s", Pause("/blobs/sha256/", "os.remove", nth=2), "1 blob and 0 unfinished uploads removed"),
    "cache prune": Case(
        "cache prune --keep 0", Pause("/cache/sha256/", "os.remove", nth=2), "1 file, 3.0 KB, removed: the same command"
    ),
    "export": Case("export --out {out}", Pause("out/blobs/tmp/"), "nothing was written at .*out"),
    "export tar": Case("export --out {out}.tar", Pause("/blobs/sha256/"), "nothing was written at .*out.tar"),
    "import": Case("import {exported}", Pause("/blobs/tmp/", nth=3), "whole or not at all"),
    "retain": Case(
        "retain tiny --keep 1 --below", Pause("loratree.db", "sqlite3.connect"), "stays deleted|changed whole"
    ),
    "ls": Case("ls tiny", Pause("loratree.db", "sqlite3.connect"), "changed whole or not at all"),
}


@pytest.fixture(scope="module")
def prepared(filled: Filled, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a home that has stored weights, unused blobs and all that the cases name."""
    folder = tmp_path_factory.mktemp("prepared")
    shutil.copytree(filled.home, folder / "home")
    shutil.copytree(filled.base, folder / "base")
    shell = Shell(folder / "home")
    for number in range(7):
        small_adapter(filled.base, folder / ("new" if number == 6 else f"a{number}"), seed=100 + number, rank=2)
    rows = [{"directory": f"a{number}", "path": f"tiny/bulk{number}", "parent": "base"} for number in range(6)]
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shell("base", "add", "stored", tiny.llama(folder / "stored", seed=5), "--store")
    for number in range(3):
        unused = small_adapter(filled.base, folder / "unused", seed=200 + number, rank=1)
        shell("publish", unused, "tiny/unused", "--parent", "base")
        shell("delete", f"tiny/unused@{number + 1}", "--reason", "unused")
        shutil.rmtree(unused)
    shell("export", "--out", folder / "exported")
    fill(shell.home, 1000, 2000, 3000)
    return folder


@dataclass(frozen=True)
class Room:
    """A copy of what was prepared, in which a command may write."""

    folder: Path
    shell: Shell

    def arguments(self, case: Case) -> list[str]:
        places = {name: str(self.folder / name) for name in ("new", "base", "out", "exported")}
        return case.arguments.format(manifest=self.folder / "manifest.jsonl", **places).split()

    def leftovers(self) -> list[str]:
        """What an interrupted command must not leave: temporary files and half-written folders."""
        found = [path.relative_to(self.folder) for path in self.folder.rglob("*") if path.is_file()]
        return [str(path) for path in found if "tmp" in path.parts or path.parts[0].startswith((".", "out"))]


@pytest.fixture
def room(prepared: Path, tmp_path: Path) -> Room:
    folder = tmp_path / "room"
    shutil.copytree(prepared, folder)
    shell = Shell(folder / "home")
    # The folder of the base is elsewhere now.
    for file in (folder / "home" / "bases").glob("*.json"):
        file.write_text(file.read_text().replace(str(prepared), str(folder)))
    return Room(folder, shell)


def fresh_home(room: Room, name: str) -> Shell:
    """An import goes into a registry that has nothing yet."""
    return Shell(room.folder / "fresh") if name == "import" else room.shell


@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "pipe"])
@pytest.mark.parametrize("name", CASES)
def test_ctrl_c_says_in_a_line_what_is_kept_and_the_same_command_goes_on(
    name: str, terminal: bool, room: Room, tmp_path: Path
) -> None:
    case, shell = CASES[name], fresh_home(room, name)
    arguments = room.arguments(case)
    with Paused(arguments, shell.environment(), tmp_path / "run", case.pause, terminal=terminal) as running:
        running.wait_for_pause()
        running.press_ctrl_c()
        done = running.end()
    said = screen(done.stderr)
    assert done.returncode == 130, done
    assert len(said) == 1, done
    assert re.search(f"loratree: interrupted: .*{case.says}", said[0].replace("^C", ""))
    assert room.leftovers() == []
    again = shell(*arguments)
    assert again.returncode == 0


@pytest.mark.parametrize(
    "name", ["publish", "manifest", "base push", "merge", "verify", "gc", "cache prune", "export tar", "import"]
)
def test_sigterm_ends_quietly_and_leaves_nothing_temporary(name: str, room: Room, tmp_path: Path) -> None:
    case, shell = CASES[name], fresh_home(room, name)
    arguments = room.arguments(case)
    with Paused(arguments, shell.environment(), tmp_path / "run", case.pause) as running:
        running.wait_for_pause()
        running.send(signal.SIGTERM)
        done = running.end()
    assert (done.returncode, done.stderr) == (143, "")
    assert room.leftovers() == []
    assert shell(*arguments).returncode == 0


EARLY = """
import os, signal, sys
def interrupt(event, about):
    if event == "import" and about[0] == "click":
        os.kill(os.getpid(), signal.SIGINT)
sys.addaudithook(interrupt)
from loratree_cli.entry import start
start()
"""


def test_ctrl_c_before_the_command_is_read_shows_no_traceback(shell: Shell) -> None:
    done = subprocess.run([sys.executable, "-c", EARLY], env=shell.environment(), capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, b"", b"")


def test_an_interrupted_command_tells_programs_so_too(room: Room, tmp_path: Path) -> None:
    case = CASES["publish"]
    arguments = [*room.arguments(case), "--json", "--quiet"]
    with Paused(arguments, room.shell.environment(), tmp_path / "run", case.pause) as running:
        running.wait_for_pause()
        running.press_ctrl_c()
        done = running.end()
    error = json.loads(done.stdout)
    assert (done.returncode, sorted(error), error["details"]) == (130, ["details", "error"], [])
    assert done.stderr == f"loratree: {error['error']}\n"


@pytest.fixture
def relay(room: Room) -> Iterator[Relay]:
    with command_serving(room.folder / "home") as url, closing(Relay(httpx.URL(url).port or 0)) as relay:
        yield relay


def interrupted_at_a_stall(shell: Shell, arguments: list[str | Path], folder: Path) -> subprocess.CompletedProcess[str]:
    """Presses Ctrl-C at a terminal when the bar stands there for a transfer that has stopped."""
    with Paused(arguments, shell.environment(), folder, terminal=True) as running:
        # A small file may be in the sockets' buffers already: then the bar waits for the registry.
        running.wait_for_text(r"\d B of \d|the registry checks what it got")
        running.press_ctrl_c()
        return running.end()


def test_an_upload_over_http_is_interrupted_while_the_server_takes_no_byte(
    room: Room, relay: Relay, tmp_path: Path
) -> None:
    shell, relay.upward = Shell(tmp_path / "client", url=relay.url), 12_000
    arguments: list[str | Path] = ["publish", room.folder / "new", "tiny/law", "--parent", "base"]
    done = interrupted_at_a_stall(shell, arguments, tmp_path / "run")
    assert done.returncode == 130
    assert "the same command sends the rest" in "".join(screen(done.stderr)[-1:])
    assert room.shell("show", "tiny/law", check=False).returncode == 1
    relay.go_on()
    assert shell(*arguments).stdout.startswith("sha256:")


def test_the_parts_of_an_interrupted_push_are_not_sent_again(room: Room, relay: Relay, tmp_path: Path) -> None:
    shell, relay.upward = Shell(tmp_path / "client", url=relay.url), PART + 1024**2
    large = tiny.llama(tmp_path / "large", vocab_size=590_000, tie_word_embeddings=True)  # a part and 8 MiB
    room.shell("base", "add", "large", large)
    arguments: list[str | Path] = ["base", "push", "large", large]
    with Paused(arguments, shell.environment(), tmp_path / "run", terminal=True) as running:
        running.wait_for_text("sending model.safetensors")
        parts = room.folder / "home" / "uploads"
        running.wait_until(lambda: relay.upward <= 0 and any(parts.rglob("part-1")), "sent the first part")
        running.press_ctrl_c()
        done = running.end()
    assert done.returncode == 130
    assert "the files and parts that arrived stay for a day" in screen(done.stderr)[-1]
    assert [path.name for path in parts.rglob("part-*")] == ["part-1"]
    relay.go_on()
    before = relay.upward
    assert shell(*arguments).returncode == 0
    assert before - relay.upward < 16 * 1024**2


def test_a_download_over_http_is_interrupted_while_the_server_gives_no_byte(
    room: Room, relay: Relay, tmp_path: Path
) -> None:
    shell, relay.downward = Shell(tmp_path / "client", url=relay.url), 30_000
    arguments: list[str | Path] = ["base", "pull", "stored", "--out", tmp_path / "out"]
    done = interrupted_at_a_stall(shell, arguments, tmp_path / "run")
    assert done.returncode == 130
    assert not (tmp_path / "out").exists()
    assert list((tmp_path / "client").rglob("tmp/*")) == []
