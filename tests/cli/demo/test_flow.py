"""The whole demo at a size that trains in seconds: real training, the real command line, the real registry."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from loratree_cli.demo.recipe import LEAF, RUNGS, Rung

ADAPTER = "adapters/alice/adapter_model.safetensors"


@dataclass(frozen=True)
class Ran:
    """One run of the demo: its folder, its exit status, and what it and its commands printed."""

    out: Path
    status: int
    printed: str


def start(out: Path, *arguments: str) -> subprocess.Popen[str]:
    """Starts the demo beside a user who has settings of his own, which it must not use."""
    own = {"LORATREE_HOME": str(out.parent / "own-home"), "LORATREE_URL": "http://127.0.0.1:9", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "tests.cli.demo.small", str(out), *arguments]
    return subprocess.Popen(
        command,
        env=os.environ | own,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run(out: Path, *arguments: str) -> Ran:
    process = start(out, *arguments)
    printed, _ = process.communicate(timeout=250)
    return Ran(out, process.returncode, printed)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """A run that Ctrl-C stopped while it trained the first adapter."""
    out = tmp_path_factory.mktemp("demo") / "out"
    process = start(out)
    assert process.stdout is not None
    printed = ""
    while "training tiny/medicine," not in printed:
        line = process.stdout.readline()
        assert line, printed
        printed += line
    os.killpg(process.pid, signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    return Ran(out, process.returncode, printed + rest)


@pytest.fixture(scope="module")
def ran(stopped: Ran) -> Ran:
    return run(stopped.out)


@pytest.fixture(scope="module")
def judged_wrongly(ran: Ran) -> Ran:
    """A run after somebody edited one adapter, whose levels are judged on text where they cannot help."""
    adapter = ran.out / ADAPTER
    (ran.out / "before").write_bytes(adapter.read_bytes())
    adapter.write_bytes(adapter.read_bytes()[:-1] + b"\x00")
    return run(ran.out, "--wrong-text")


def test_ctrl_c_stops_in_one_sentence_and_the_next_run_goes_on(stopped: Ran, ran: Ran) -> None:
    assert stopped.status == 130
    assert stopped.printed.splitlines()[-1] == "stopped: the same command goes on from here"
    assert f"kept from an earlier run: {ran.out}/base\n" in ran.printed
    assert "training tiny, from scratch" not in ran.printed


def test_every_level_helps_and_all_forms_agree(ran: Ran) -> None:
    assert ran.status == 0, ran.printed
    assert [f"{rung.row} beats {above.row} on {rung.name} text" in ran.printed for above, rung in pairs()] == [True] * 4
    assert "all forms agree" in ran.printed
    assert (ran.out / "ladder.png").read_bytes().startswith(b"\x89PNG")


def test_each_version_is_pinned_to_its_parent_by_the_lockfile(ran: Ran) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LORATREE_")}
    command = [sys.executable, "-m", "loratree_cli", "resolve", LEAF.path, "--json"]
    answer = subprocess.check_output(command, env=environment | {"LORATREE_HOME": str(ran.out / "home")}, text=True)
    chain = json.loads(answer)["chain"]
    assert [(link["path"], link["ranks"], link["pin"]["path"]) for link in chain] == [
        (rung.path, [rung.rank], above.path if above.rank else None) for above, rung in pairs()
    ]
    assert {link["pin"]["found"] for link in chain} == {"lockfile"}


def test_the_demo_keeps_to_its_own_folder(ran: Ran) -> None:
    assert [path.name for path in ran.out.parent.iterdir()] == ["out"]


def test_an_edited_adapter_is_trained_again_and_what_is_whole_is_kept(ran: Ran, judged_wrongly: Ran) -> None:
    assert [line for line in judged_wrongly.printed.splitlines() if line.startswith("training ")] == [
        f"training {LEAF.path}, a LoRA adapter of rank 2, on user text"
    ]
    assert (ran.out / ADAPTER).read_bytes() == (ran.out / "before").read_bytes()
    assert judged_wrongly.printed.count("already published, nothing stored") == 4


def test_levels_that_do_not_help_are_said_so_and_fail_the_demo(judged_wrongly: Ran) -> None:
    assert judged_wrongly.status == 1
    assert "+domain does not help: on domain text it is worse than base by" in judged_wrongly.printed
    assert "\nFAILED, for the reasons above" in judged_wrongly.printed


def pairs() -> list[tuple[Rung, Rung]]:
    return list(pairwise(RUNGS))
