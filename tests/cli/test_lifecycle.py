"""Withdrawing, quarantine, deleting, retention and collecting, as a user types them."""

import json
import re
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from loratree_cli.commands.collecting import gc
from loratree_cli.commands.marks import quarantine
from loratree_registry.embedded.registry import EmbeddedRegistry
from loratree_registry.errors import Unavailable
from tests.cli.conftest import LEAF, Filled, Shell
from tests.registry.serving import command_serving
from tests.terminals import on_terminal

MED, CARDIO = "tiny/medicine", "tiny/medicine/cardiology"


def refused(shell: Shell, *arguments: str | Path) -> str:
    """The one sentence of a command that fails and leaves everything as it was."""
    before = shell.state()
    done = shell(*arguments, check=False)
    assert (done.returncode, done.stdout, shell.state()) == (1, "", before), done
    [sentence] = done.stderr.splitlines()
    return sentence


def version_2(shell: Shell, filled: Filled, tmp_path: Path) -> None:
    """Publishes another adapter at tiny/medicine."""
    shutil.copytree(filled.adapters[LEAF], tmp_path / "another")
    shell("publish", tmp_path / "another", MED, "--parent", "base")


def test_a_withdrawn_version_is_marked_wherever_it_is_shown_and_strict_refuses_it(shell: Shell, tmp_path: Path) -> None:
    done = shell("withdraw", f"{MED}@1", "--reason", "diverges")
    assert done.stderr == f"{MED}@1 is withdrawn: diverges\n"
    assert "withdrawn: diverges" in shell("show", MED).stdout.splitlines()[2]
    assert "state\twithdrawn: diverges\n" in shell("show", f"{MED}@1").stdout
    assert "\twithdrawn: diverges\t" in shell("resolve", CARDIO).stdout.splitlines()[1]
    first = json.loads(shell("resolve", CARDIO, "--json").stdout)["chain"][0]
    assert first["withdrawn"]["reason"] == "diverges"
    edges = json.loads(shell("lineage", CARDIO, "--json").stdout)["edges"]
    assert [edge["withdrawn"] and edge["withdrawn"]["reason"] for edge in edges] == [None, "diverges"]
    out = tmp_path / "out"
    for command in (["resolve"], ["pull", "--out", out], ["compose", "--mode", "flatten", "--out", out]):
        assert f"{MED}@1 (diverges)" in refused(shell, command[0], CARDIO, "--strict", *command[1:])
    assert not out.exists()
    assert shell("withdraw", f"{MED}@1", "--undo").stderr == f"{MED}@1 is no longer withdrawn\n"
    assert shell("withdraw", f"{MED}@1", "--undo").stderr == f"{MED}@1 was not withdrawn, so nothing changed\n"
    shell("resolve", CARDIO, "--strict")


def test_an_older_version_published_again_says_which_is_the_head(shell: Shell, filled: Filled, tmp_path: Path) -> None:
    again = ("publish", filled.adapters[MED], MED, "--parent", "base")
    assert shell(*again).stderr.endswith("already published, nothing stored; it is pinned to tiny\n")
    version_2(shell, filled, tmp_path)
    assert shell(*again).stderr.endswith(
        f"{MED}@1: already published, nothing stored; it is pinned to tiny, and the head is @2\n"
    )


@pytest.mark.parametrize(("command", "mark"), [("withdraw", "withdrawn"), ("quarantine", "quarantined")])
def test_a_mark_that_is_there_already_is_told_with_the_reason_that_holds(shell: Shell, command: str, mark: str) -> None:
    ref = f"{MED}@1"

    def said(reason: str) -> str:
        return shell(command, ref, "--reason", reason).stderr.splitlines()[0]

    assert said("names") == f"{ref} is {mark}: names"
    assert said("names") == f"{ref} was {mark} before, so nothing changed: names"
    assert said("more names") == f"{ref} was {mark} before (names), and the reason is now: more names"
    assert json.loads(shell("show", ref, "--json").stdout)[mark]["reason"] == "more names"
    shell(command, ref, "--undo")
    assert said("names") == f"{ref} is {mark}: names"


def test_an_alias_has_to_be_moved_before_its_version_is_withdrawn(shell: Shell) -> None:
    shell("alias", "set", MED, "stable", "1")
    assert f"loratree alias set {MED} stable VERSION" in refused(shell, "withdraw", f"{MED}@1", "--reason", "old")
    assert shell("withdraw", f"{MED}@1", check=False).returncode == 2
    for command in ("withdraw", "quarantine", "delete"):
        done = shell(command, MED, check=False)
        assert done.returncode == 2
        whole = f"give the version's number or digest, as in `loratree {command} {MED}@NUMBER`, and --reason TEXT"
        assert whole in " ".join(done.stderr.split())
        lone = shell(command, MED, "--reason", "old", check=False)
        assert (lone.returncode, lone.stderr.splitlines()[-1]) == (2, f"Error: {whole.partition(', and')[0]}")
        assert "Error: give --reason TEXT" in shell(command, f"{MED}@1", check=False).stderr
    assert shell("quarantine", f"{MED}@1", "--undo", "--reason", "both", check=False).returncode == 2


def test_composing_along_an_alias_warns_of_what_was_trained_on_something_else(
    shell: Shell, filled: Filled, tmp_path: Path
) -> None:
    version_2(shell, filled, tmp_path)
    done = shell("compose", LEAF, "--mode", "flatten", "--follow", "latest", "--out", tmp_path / "out")
    others = f"{CARDIO}@1 on {MED}@2, trained on {MED}@1"
    assert f"warning: 1 version stands on another than it was trained on: {others}\n" in done.stderr
    done = shell("compose", LEAF, "--mode", "flatten", "--out", tmp_path / "pinned")
    assert "warning" not in done.stderr
    again = refused(shell, "compose", LEAF, "--mode", "flatten", "--out", tmp_path / "out")
    assert f"it holds another composition of {LEAF}@1: {MED}@2 instead of @1; choose another folder" in again


def test_a_quarantine_is_done_also_if_nobody_can_say_who_else_holds_the_bytes(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise Unavailable("the database does not answer: check that it is running")

    monkeypatch.setattr(EmbeddedRegistry, "holders", fail)
    done = CliRunner().invoke(
        quarantine, [f"{MED}@1", "--reason", "names"], env={"LORATREE_HOME": str(shell.home)}, catch_exceptions=False
    )
    assert (done.exit_code, done.stderr) == (
        0,
        f"{MED}@1 is quarantined: names\n"
        "warning: which other versions hold the same bytes is not known: the database does not answer: check that it "
        "is running, then run the same command again\n",
    )
    assert "quarantined" in shell("show", f"{MED}@1").stdout


def test_quarantined_bytes_are_refused_at_another_node_before_anything_is_sent(shell: Shell, filled: Filled) -> None:
    shell("quarantine", f"{MED}@1", "--reason", "names")
    assert refused(shell, "publish", filled.adapters[MED], "tiny/law", "--parent", "base") == (
        f"loratree: tiny/law cannot take this adapter: {MED}@1 holds the same bytes and is quarantined (names): train "
        f"without the quarantined data, or once the bytes are safe end it by `loratree quarantine {MED}@1 --undo`"
    )
    shell("quarantine", f"{MED}@1", "--undo")
    shell("publish", filled.adapters[MED], "tiny/law", "--parent", "base")


def test_quarantined_bytes_are_refused_in_each_line_of_a_manifest_and_in_its_dry_run(
    shell: Shell, filled: Filled, tmp_path: Path
) -> None:
    shell("quarantine", f"{MED}@1", "--reason", "names")
    lines = [
        {"directory": str(filled.adapters[path]), "path": f"tiny/law/{number}", "parent": "base"}
        for number, path in enumerate((MED, LEAF))
    ]
    manifest = tmp_path / "rows.jsonl"
    manifest.write_text("\n".join(map(json.dumps, lines)))
    for option, done in (["--dry-run"], "1 to publish"), ([], "1 published"):
        said = shell("publish", "--manifest", manifest, *option, check=False)
        assert (said.returncode, said.stdout) == (1, f"{done}, 0 already there, 1 refused\n")
        assert f"line 1: tiny/law/0: tiny/law/0 cannot take this adapter: {MED}@1 holds the same bytes" in said.stderr


def test_quarantine_names_the_versions_of_other_nodes_that_hold_the_same_bytes(shell: Shell, filled: Filled) -> None:
    for path in ("tiny/law", "tiny/tax"):
        shell("publish", filled.adapters[MED], path, "--parent", "base")
    said = shell("quarantine", "tiny/law@1", "--reason", "names").stderr
    assert said == (
        "tiny/law@1 is quarantined: names\n"
        f"warning: 2 versions hold the same bytes and can still be used: {MED}@1; tiny/tax@1\n"
    )
    assert shell("publish", filled.adapters[MED], "tiny/tax").returncode == 0  # what is there stays there
    said = shell("quarantine", "tiny/tax@1", "--reason", "names").stderr.splitlines()[1]
    assert said == f"warning: 1 version holds the same bytes and can still be used: {MED}@1"
    assert shell("quarantine", "tiny/law@1", "--undo").stderr == "tiny/law@1 is no longer quarantined\n"
    said = shell("quarantine", "tiny/law@1", "--undo").stderr
    assert said == "tiny/law@1 was not quarantined, so nothing changed\n"
    assert "warning" not in shell("quarantine", f"{LEAF}@1", "--reason", "names").stderr


def test_a_quarantined_version_stops_composing_and_pulling(shell: Shell, tmp_path: Path) -> None:
    shell("pull", LEAF, "--out", tmp_path / "before")  # in the cache now
    assert shell("quarantine", f"{MED}@1", "--reason", "names").stderr == f"{MED}@1 is quarantined: names\n"
    out = tmp_path / "out"
    for command in (["resolve"], ["pull", "--out", out], ["compose", "--mode", "merge", "--out", out]):
        assert f"{MED}@1 is quarantined (names)" in refused(shell, command[0], LEAF, *command[1:])
    assert not out.exists()
    assert "quarantined: names" in shell("lineage", LEAF).stdout
    assert json.loads(shell("show", MED, "--json").stdout)["versions"][0]["quarantined"]["reason"] == "names"
    shell("quarantine", f"{MED}@1", "--undo")
    shell("resolve", LEAF)


def test_a_deleted_version_leaves_a_tombstone_and_gc_takes_its_bytes(
    shell: Shell, filled: Filled, tmp_path: Path
) -> None:
    version_2(shell, filled, tmp_path)
    assert f"{CARDIO}@1 was trained on it" in refused(shell, "delete", f"{MED}@1", "--reason", "old")
    assert shell("delete", f"{MED}@2", "--reason", "by mistake").stderr == f"{MED}@2 is deleted: by mistake\n"
    assert "@2 was deleted on" in shell("show", MED).stdout.splitlines()[-1]
    assert json.loads(shell("show", MED, "--json").stdout)["tombstones"][0]["reason"] == "by mistake"
    assert "(by mistake): name another version" in refused(shell, "resolve", f"{MED}@2")
    report = json.loads(shell("gc", "--json").stdout)
    waiting = report.pop("waiting")
    assert report == {"dry_run": False, "grace_s": 86400, "blobs": 0, "bytes": 0, "uploads": 0}
    size = (tmp_path / "another" / "adapter_model.safetensors").stat().st_size
    assert (waiting["blobs"], waiting["bytes"]) == (0, 0)  # the leaf has the same bytes
    shell("delete", f"{LEAF}@1", "--reason", "old")
    waiting = json.loads(shell("gc", "--json").stdout)["waiting"]
    assert (waiting["blobs"], waiting["bytes"]) == (1, size)
    begun = datetime.fromisoformat(waiting["first_at"]) - timedelta(days=1)
    assert waiting["first_at"] == waiting["last_at"]
    assert timedelta(0) <= datetime.now(UTC) - begun < timedelta(minutes=10)
    said = shell("gc").stderr.splitlines()
    assert said[0] == "0 blobs, 0 B, and 0 unfinished uploads removed"
    assert re.fullmatch(
        r"1 blob, \S+ KB, that nothing needs waits for the grace of 24h: collected from 20\d\d-\S+Z on", said[1]
    )
    [said] = shell("gc", "--grace", "0s").stderr.splitlines()
    assert re.fullmatch(r"1 blob, \S+ KB, and 0 unfinished uploads removed", said)
    assert (
        shell("publish", tmp_path / "another", MED, "--parent", "base").stderr.splitlines()[-1].startswith(f"{MED}@3")
    )


def test_retain_and_gc_tell_first_and_do_it_then(shell: Shell, filled: Filled, tmp_path: Path) -> None:
    alone = LEAF.rpartition("/")[0] + "/bob"
    for path in (LEAF, CARDIO):
        shell("publish", filled.adapters[path], alone, "--parent", "base")
    before = shell.state()
    dry = shell("retain", "tiny", "--keep", "1", "--below", "--dry-run")
    assert (dry.stdout, shell.state()) == (f"{alone}\t1\n", before)
    done = json.loads(shell("retain", "tiny", "--keep", "1", "--below", "--json").stdout)
    assert [(one["path"], one["deleted"], one["kept"]) for one in done] == [(alone, [1], 1)]
    shell("delete", f"{LEAF}@1", "--reason", "old")  # it had the same bytes
    before = shell.state()
    would = shell("gc", "--grace", "0s", "--dry-run")
    assert (len(would.stdout.splitlines()), shell.state()) == (1, before)
    assert shell("gc", "--grace", "0s").stdout == would.stdout
    assert shell("gc", "--grace", "0s").stdout == ""
    shell("verify")


@pytest.mark.parametrize("grace", ["1", "-1d", "1w", "", "9999999d"])
def test_gc_takes_no_other_grace_than_a_number_and_a_unit(grace: str) -> None:
    done = CliRunner().invoke(gc, ["--grace", grace])
    assert done.exit_code == 2
    assert "expected a number and a unit, such as 0s, 30m" in done.output


def test_gc_takes_no_grace_from_before_the_first_year() -> None:
    done = CliRunner().invoke(gc, ["--grace", "999999d"])
    assert done.exit_code == 2
    assert "--grace is '999999d': expected at most 36500d" in done.output


def test_over_http_all_but_gc_is_the_same(shell: Shell) -> None:
    with command_serving(shell.home) as url:
        served = Shell(shell.home, url)
        before = json.loads(shell("show", f"{MED}@1", "--json").stdout)
        shown = {name: before[name] for name in ("documents", "kinds")}
        assert json.loads(served("withdraw", f"{MED}@1", "--reason", "old", "--json").stdout) | shown == json.loads(
            shell("show", f"{MED}@1", "--json").stdout
        )
        assert "where the server runs, with its LORATREE_HOME, or its LORATREE_DATABASE and" in refused(served, "gc")
        served("delete", f"{LEAF}@1", "--reason", "old")
        assert served("show", LEAF, "--json").stdout == shell("show", LEAF, "--json").stdout
        assert served("retain", "tiny", "--keep", "3", "--below", "--json").stdout.strip() == "[]"


def test_a_deleted_node_is_hidden_from_the_tree_and_said_to_be_deleted(shell: Shell) -> None:
    assert "hidden" not in on_terminal(shell.home, "tree")
    shell("delete", f"{LEAF}@1", "--reason", "left")
    seen = on_terminal(shell.home, "tree")
    assert "alice" not in seen
    assert seen.splitlines()[-1] == "1 deleted node is hidden; --all draws it"
    for said in (on_terminal(shell.home, "tree", "--all"), shell("tree").stdout):
        assert "alice user deleted" in said
        assert "hidden" not in said
    assert json.loads(shell("tree", "--json").stdout)[-1]["marks"] == ["deleted"]
    assert shell("ls", LEAF.rpartition("/")[0]).stdout.splitlines()[1].split("\t")[-1] == "deleted"
    stays = refused(shell, "rm", LEAF)
    assert f"{LEAF} stays, because its tombstones keep the numbers of deleted versions" in stays
    assert "`loratree base rm tiny` removes the tree once no version is left in it" in stays
