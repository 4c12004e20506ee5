"""`loratree export` and `import`, `publish --manifest` and `doctor`, as a user types them."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

from tests.cli.conftest import CHAIN, LEAF, Filled, Shell


def test_a_registry_is_exported_and_restored_to_the_same_composition(shell: Shell, tmp_path: Path) -> None:
    shell("alias", "set", LEAF, "stable", "1")
    for out in ("backup", "backup.tar"):
        assert "4 versions, 4 stored files" in shell("export", "--out", tmp_path / out).stderr
        restored = Shell(tmp_path / f"home-{out}")
        assert "4 versions added, 0 here before" in restored("import", tmp_path / out).stderr
        for command in (["resolve", f"{LEAF}@stable", "--json"], ["tree", "tiny", "--json"]):
            assert restored(*command).stdout == shell(*command).stdout
        again = json.loads(restored("import", tmp_path / out, "--json").stdout)
        assert (again["kept"]["versions"], again["bytes"], again["differences"]) == (4, 0, [])
        restored("verify")


def test_a_subtree_is_exported_and_a_damaged_export_refused_in_one_sentence(shell: Shell, tmp_path: Path) -> None:
    exported = json.loads(shell("export", CHAIN[1][0], "--out", tmp_path / "part.tar", "--json").stdout)
    assert (exported["path"], exported["counts"]["versions"]) == (CHAIN[1][0], 4)
    whole = (tmp_path / "part.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 2])
    home = Shell(tmp_path / "home")
    for export in ("cut.tar", "none.tar"):
        refused = home("import", tmp_path / export, check=False)
        assert (refused.returncode, refused.stderr.count("\n"), refused.stdout) == (1, 1, "")
    again = shell("export", "--out", tmp_path / "part.tar", check=False)
    assert (again.returncode, again.stderr.count("\n")) == (1, 1)
    assert (tmp_path / "part.tar").read_bytes() == whole


def manifest(folder: Path, filled: Filled, count: int) -> Path:
    """A manifest of copies of the rank-2 adapter, each at a path of its own."""
    rows = []
    for number in range(count):
        copied = Path(shutil.copytree(filled.adapters[LEAF], folder / f"adapter{number}"))
        config = json.loads((copied / "adapter_config.json").read_text())
        (copied / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "tiny"}))
        rows.append({"directory": copied.name, "path": f"tiny/bulk/t{number}", "parent": "base"})
    file = folder / "manifest.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_a_manifest_is_published_with_a_report_and_goes_on(shell: Shell, filled: Filled, tmp_path: Path) -> None:
    file = manifest(tmp_path, filled, 3)
    (tmp_path / "adapter1" / "adapter_config.json").rename(tmp_path / "aside")
    before = shell.state()
    dry = shell("publish", "--manifest", file, "--dry-run", check=False)
    assert dry.stdout == "2 to publish, 0 already there, 1 refused\n"
    assert shell.state() == before
    done = shell("publish", "--manifest", file, check=False)
    assert (done.returncode, done.stdout) == (1, "2 published, 0 already there, 1 refused\n")
    assert done.stderr.startswith("line 2: tiny/bulk/t1: ")
    (tmp_path / "aside").rename(tmp_path / "adapter1" / "adapter_config.json")
    report = json.loads(shell("publish", "--manifest", file, "--json").stdout)
    assert (report["published"], report["already"], report["refused"]) == (1, 2, 0)
    assert [outcome["ref"] for outcome in report["outcomes"]] == [f"tiny/bulk/t{number}@1" for number in range(3)]


def test_one_reason_for_many_lines_is_said_once(shell: Shell, filled: Filled, tmp_path: Path) -> None:
    file = manifest(tmp_path, filled, 30)
    file.write_text(file.read_text().replace('"tiny/', '"tinny/'))
    done = shell("publish", "--manifest", file, "--dry-run", check=False)
    assert (done.returncode, done.stdout) == (1, "0 to publish, 0 already there, 30 refused\n")
    assert done.stderr.startswith("30 lines (1; 2; 3; 4; 5; 6; ")
    assert (done.stderr.count("\n"), "did you mean 'tiny'?" in done.stderr) == (1, True)


def test_every_problem_of_a_refused_row_is_listed_on_request(shell: Shell, filled: Filled, tmp_path: Path) -> None:
    file = manifest(tmp_path, filled, 2)
    weights = tmp_path / "adapter1" / "adapter_model.safetensors"
    tensors = {f"{key}.odd": value for key, value in load_file(weights).items()}
    save_file(tensors, weights)
    done = shell("publish", "--manifest", file, "--dry-run", check=False)
    assert done.stderr.startswith("line 2: tiny/bulk/t1: ")
    assert f" (--verbose lists all {len(tensors)} problems)\n" in done.stderr
    done = shell("publish", "--manifest", file, "--dry-run", "--verbose", "--json", check=False)
    assert done.stderr.count("\n  tensor ") == len(tensors)
    [_, refused] = json.loads(done.stdout)["outcomes"]
    assert len(refused["details"]) == len(tensors)
    file.write_text("nothing\n" * 7)
    done = shell("publish", "--manifest", file, "--verbose", check=False)
    assert done.stderr.count("\n  line ") == 7


def test_ctrl_c_tells_what_was_done_and_the_same_command_goes_on(shell: Shell, filled: Filled, tmp_path: Path) -> None:
    file = manifest(tmp_path, filled, 40)
    command = [sys.executable, "-m", "loratree_cli", "publish", "--manifest", str(file), "--jobs", "1", "--json"]
    with subprocess.Popen(
        command, env=shell.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        while shell("show", "tiny/bulk/t0", check=False).returncode:
            assert process.poll() is None, process.communicate()
        process.send_signal(signal.SIGINT)
        told, said = process.communicate(timeout=60)
    stopped = json.loads(told)
    assert (process.returncode, stopped["stopped"]) == (130, "interrupted")
    assert 0 < stopped["published"] < 40
    assert "the same command goes on" in said
    rest = json.loads(shell("publish", "--manifest", file, "--json").stdout)
    assert (rest["published"], rest["already"]) == (stopped["left"], stopped["published"])


def test_a_manifest_and_a_directory_together_are_wrong_usage(shell: Shell, tmp_path: Path) -> None:
    for wrong in (
        ["publish"],
        ["publish", "somewhere"],
        ["publish", "--from-dir", "somewhere", "tiny/a", "--dry-run"],
        ["publish", "--manifest", "m.jsonl", "--note", "x"],
    ):
        assert shell(*wrong, check=False).returncode == 2


def test_doctor_prints_a_line_a_check_and_fails_where_one_does(shell: Shell) -> None:
    lines = shell("doctor").stdout.splitlines()
    assert {line.split()[0] for line in lines} <= {"ok", "warn"}
    assert any(line.startswith("ok    migrations: the schema is at ") for line in lines)
    checks = json.loads(shell("doctor", "--json").stdout)
    assert len(checks) == len(lines)
    assert {check["ok"] for check in checks} <= {True, None}
    failed = Shell(shell.home, url="http://127.0.0.1:1")("doctor", check=False)
    assert failed.returncode == 1
    assert "\nfail  server: " in failed.stdout
