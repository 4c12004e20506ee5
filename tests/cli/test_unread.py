"""A reader that has read enough, such as `head`, closes the pipe: each command ends quietly with SIGPIPE's status."""

import json
import os
import subprocess
import sys

import pytest

from tests.cli.conftest import LEAF, Filled, Shell

COMMANDS = (
    "ls",
    "ls tiny --json",
    "tree",
    "tree --json",
    "show tiny/medicine",
    f"resolve {LEAF}",
    f"lineage {LEAF} --json",
    "log",
    "dependents tiny",
    "base ls",
    "base add tiny {base} --json",
    "verify --json",
    "doctor",
    "cache ls",
    "--version",
    "--help",
    "publish --help",
)
REFUSED = ("show tiny/nothing", "publish", "frobnicate", "ls --frobnicate")  # they print on stderr alone


def unread(shell: Shell, command: str, *, also_stderr: bool) -> tuple[int, str]:
    """The exit status of a command in `loratree … | true`, and what it says on a stderr that is still read."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "loratree_cli", *command.split()],
            env=shell.environment(),
            stdout=writer,
            stderr=writer if also_stderr else subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(writer)
    return done.returncode, done.stderr or ""


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_whose_output_nobody_reads_ends_with_141_without_an_error(
    command: str, shell: Shell, filled: Filled
) -> None:
    status, said = unread(shell, command.format(base=filled.base), also_stderr=False)
    assert status == 141
    assert not any(word in said for word in ("Error", "Exception", "Traceback", "loratree:", "Broken")), said


@pytest.mark.parametrize("command", [*REFUSED, "tree", "verify --verbose", "--help"])
def test_a_command_whose_errors_nobody_reads_either_ends_with_141(command: str, shell: Shell) -> None:
    assert unread(shell, command, also_stderr=True)[0] == 141


def test_a_refusal_is_said_even_if_its_record_is_not_read(shell: Shell) -> None:
    status, said = unread(shell, "show tiny/nothing --json", also_stderr=False)
    assert status == 1
    assert len(said.splitlines()) == 1, said
    assert said.startswith("loratree: tiny/nothing is not known")


def test_a_change_is_made_whole_before_it_is_told_to_nobody(shell: Shell) -> None:
    assert unread(shell, "alias set tiny/medicine stable 1 --json", also_stderr=True)[0] == 141
    assert json.loads(shell("alias", "ls", "tiny/medicine", "--json").stdout)[0]["version"] == 1


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_fault_and_no_file_takes_their_place(closed: str, shell: Shell) -> None:
    command = f"{sys.executable} -m loratree_cli alias set tiny/medicine stable 1 --json {closed}"
    done = subprocess.run(["bash", "-c", command], env=shell.environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert ('"version": 1' in done.stdout) == (">&-" not in closed.replace("2>&-", ""))
    assert json.loads(shell("alias", "ls", "tiny/medicine", "--json").stdout)[0]["version"] == 1
    shell("verify")
