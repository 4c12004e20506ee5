"""What a long command shows while it works: at a terminal a bar, which goes when it ends; nothing in a pipe."""

import re
import time
from pathlib import Path

import pytest

from loratree_cli.progress import DELAY_S
from tests import tiny
from tests.cli.conftest import LEAF, Filled, Shell
from tests.cli.paused import Pause, Paused, screen
from tests.registry.workspace.test_cache import fill

HIDDEN = "\x1b[?25l"  # a bar hides the cursor
SHOWN = "\x1b[?25h"
# Each long command, where it waits, and the step that its bar then tells.
STEPS = {
    "publish": ("publish {new} tiny/law --parent base", "/blobs/tmp/", r"sending \S+ .*0 B of 19\.1 KB"),
    "merge": (f"compose {LEAF} --mode merge --out {{out}}", "out/model.safetensors", r"fetching \S+|merging into"),
    "pull": (f"pull {LEAF} --out {{out}}", "/.out.loratree", r"writing \S+.*0 B of 11\.2 KB"),
    "base add": ("base add other {base}", "base/model.safetensors", r"reading /\S+"),
    "verify": ("verify", "/blobs/sha256/", r"reading the stored files .* of [\d.]+ KB"),
    "export": ("export --out {out}", "out/blobs/tmp/", r"copying the stored files .* of [\d.]+ KB"),
}


@pytest.fixture
def places(filled: Filled, shell: Shell, tmp_path: Path) -> dict[str, str]:
    new = tiny.adapter(filled.base, tmp_path / "new", seed=77, rank=4)
    return {"new": str(new), "base": str(filled.base), "out": str(tmp_path / "out")}


def wait_for_a_bar(running: Paused) -> None:
    running.wait_for_pause()
    running.wait_for_text(re.escape(HIDDEN))


@pytest.mark.parametrize("name", STEPS)
def test_a_bar_tells_the_step_and_is_gone_at_the_end(
    name: str, shell: Shell, places: dict[str, str], tmp_path: Path
) -> None:
    arguments, path, step = STEPS[name]
    command = arguments.format(**places).split()
    with Paused(command, shell.environment(), tmp_path / "run", Pause(path), terminal=True) as running:
        wait_for_a_bar(running)
        running.wait_for_text(step)
        [bar] = screen(running.written())
        done = running.end()
    assert re.search(step, bar), bar
    assert done.returncode == 0, done
    assert done.stderr.count(HIDDEN) == done.stderr.count(SHOWN) == 1
    assert not any(re.search(f"{step}|━", line) for line in screen(done.stderr))


def test_a_quick_command_shows_no_bar(shell: Shell, tmp_path: Path) -> None:
    with Paused(["verify"], shell.environment(), tmp_path / "run", terminal=True) as running:
        start = time.monotonic()
        done = running.end()
    if time.monotonic() - start < DELAY_S:  # not on a machine that is very busy
        assert HIDDEN not in done.stderr
    assert screen(done.stderr)[-1].endswith("all sound")


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("where", ["before", "after"])
def test_quiet_says_nothing_but_errors(
    where: str, terminal: bool, shell: Shell, places: dict[str, str], tmp_path: Path
) -> None:
    command = ["publish", places["new"], "tiny/law", "--parent", "base"]
    command = ["--quiet", *command] if where == "before" else [*command, "--quiet"]
    with Paused(command, shell.environment(), tmp_path / "run", Pause("/blobs/tmp/"), terminal=terminal) as running:
        running.wait_for_pause()
        time.sleep(0.8)  # in which a bar would come
        done = running.end()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("sha256:")
    refused = shell("--quiet", "show", "tiny/nothing", check=False)
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)


def test_a_pipe_gets_no_bar(shell: Shell, places: dict[str, str], tmp_path: Path) -> None:
    command = ["publish", places["new"], "tiny/law", "--parent", "base"]
    with Paused(command, shell.environment(), tmp_path / "run", Pause("/blobs/tmp/")) as running:
        running.wait_for_pause()
        time.sleep(0.8)  # in which a bar would come
        done = running.end()
    assert "\x1b" not in done.stderr
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == [
        "pinned to the base tiny, as --parent says",
        "tiny/law@1",
    ]


def test_verbose_prints_each_step_with_its_size_and_time(shell: Shell, places: dict[str, str]) -> None:
    said = shell("publish", places["new"], "tiny/law", "--parent", "base", "--verbose").stderr
    assert re.search(r"^reading \S+new/adapter_model.safetensors: 19\.1 KB in \d+\.\d s$", said, re.MULTILINE)
    assert re.search(r"^sending \S+new/adapter_model.safetensors: 19\.1 KB in \d+\.\d s$", said, re.MULTILINE)
    before = shell("--verbose", "verify").stderr
    assert re.search(r"^reading the stored files: [\d.]+ KB in \d+\.\d s$", before, re.MULTILINE)


@pytest.mark.parametrize("columns", [40, 60, 80, 200])
def test_a_bar_fits_any_width(columns: int, shell: Shell, places: dict[str, str], tmp_path: Path) -> None:
    command = ["publish", places["new"], "tiny/law", "--parent", "base"]
    pause, environment = Pause("/blobs/tmp/"), shell.environment() | {"COLUMNS": str(columns)}
    with Paused(command, environment, tmp_path / "run", pause, terminal=True) as running:
        wait_for_a_bar(running)
        running.wait_for_text("of 19.1 KB")
        [bar] = screen(running.written())
    assert len(bar) <= columns
    assert "sending" in bar
    assert ("━" in bar) == (columns >= 80)


def test_removing_many_fetched_files_shows_a_bar(shell: Shell, tmp_path: Path) -> None:
    fill(shell.home, 1000, 2000, 3000, 4000)
    pause = Pause("/cache/sha256/", "os.remove", nth=3)
    command = ["cache", "prune", "--keep", "0"]
    with Paused(command, shell.environment(), tmp_path / "run", pause, terminal=True, stdout=True) as running:
        wait_for_a_bar(running)
        running.wait_for_text(r"removing fetched files .* of 4 files")
        done = running.end()
    said = screen(done.stderr)
    assert len([line for line in said if line.startswith("sha256:")]) == 4
    assert said[-1] == "4 files, 10.0 KB, removed"


def test_a_result_that_is_printed_meanwhile_stands_above_the_bar(shell: Shell, filled: Filled, tmp_path: Path) -> None:
    for number in range(3):
        adapter = tiny.adapter(filled.base, tmp_path / f"unused{number}", seed=300 + number, rank=1)
        shell("publish", adapter, "tiny/unused", "--parent", "base")
        shell("delete", f"tiny/unused@{number + 1}", "--reason", "unused")
    pause = Pause("/blobs/sha256/", "os.remove", nth=3)
    command = ["gc", "--grace", "0s"]
    with Paused(command, shell.environment(), tmp_path / "run", pause, terminal=True, stdout=True) as running:
        wait_for_a_bar(running)
        running.wait_for_text("removing")
        done = running.end()
    digests = [line for line in screen(done.stderr) if line.startswith("sha256:")]
    assert len(digests) == len(set(digests)) == 3
    assert screen(done.stderr)[-1].startswith("3 blobs, ")
