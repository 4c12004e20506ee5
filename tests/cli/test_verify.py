"""One flipped byte: verify names it, pull and compose refuse it; on a folder and on S3."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import CHAIN, LEAF, Shell
from tests.s3 import moto


def blobs(shell: Shell) -> list[Path]:
    return sorted(path for path in (shell.home / "blobs" / "sha256").rglob("*") if path.is_file())


def flip(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def test_verify_names_a_flipped_byte_and_pull_and_compose_refuse_it(shell: Shell, tmp_path: Path) -> None:
    assert ", and 4 versions: all sound" in shell("verify").stderr
    assert ", and 4 versions, 4 adapters checked: all sound" in shell("verify", "--adapters").stderr
    shas = {path: json.loads(shell("show", f"{path}@1", "--json").stdout)["files"][0]["sha256"] for path, _ in CHAIN}
    domain = CHAIN[0][0]
    flip(next(path for path in blobs(shell) if path.name == shas[domain][7:]))
    found = shell("verify", check=False)
    assert (found.returncode, found.stdout.count("\n")) == (1, 1)
    assert found.stdout.startswith(f"{shas[domain]} holds other bytes, ")
    assert found.stdout.endswith(f"it touches {domain}@1\n")
    assert "1 damaged or missing" in found.stderr
    document = json.loads(shell("verify", f"{LEAF}@1", "--json", check=False).stdout)
    assert [damage["versions"] for damage in document["damaged"]] == [[f"{domain}@1"]]
    for command in (
        ["pull", domain, "--out", tmp_path / "out"],
        ["compose", LEAF, "--mode", "merge", "--out", tmp_path / "out"],
    ):
        refused = shell(*command, check=False)
        assert refused.returncode == 1
        assert f"the blob {shas[domain]}" in refused.stderr
        assert "is damaged where the registry stores it" in refused.stderr
        assert not (tmp_path / "out").exists()


def test_verify_takes_a_sample_and_refuses_another(shell: Shell) -> None:
    assert "2 of 4 stored files" in shell("verify", "--sample", "50%").stderr
    assert "1 of 1 stored file, " in shell("verify", LEAF, "--sample", "3").stderr
    for wrong in ("0", "101%"):
        assert shell("verify", "--sample", wrong, check=False).returncode == 2
    unknown = shell("verify", "tiny/nowhere", check=False)
    assert (unknown.returncode, unknown.stderr.count("\n")) == (1, 1)


@pytest.mark.parametrize("command", [["verify"], ["export", "--out", "x"], ["import", "x"]])
def test_under_a_url_each_says_where_to_run_it(shell: Shell, command: list[str], tmp_path: Path) -> None:
    refused = Shell(shell.home, url="http://127.0.0.1:1")(*command, check=False, cwd=tmp_path)
    assert refused.returncode == 1
    assert "LORATREE_URL names a registry that is served" in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_a_flipped_byte_in_s3_is_found_and_refused(shell: Shell, tmp_path: Path) -> None:
    with moto() as server:
        client = server.client()
        client.create_bucket(Bucket="blobs")
        for path in blobs(shell):
            client.put_object(Bucket="blobs", Key=f"sha256/{path.parent.name}/{path.name}", Body=path.read_bytes())
        environment = {key: value for key, value in os.environ.items() if not key.startswith("LORATREE_")}
        environment |= server.environment | {
            "LORATREE_HOME": str(shell.home),
            "LORATREE_BLOBS": "s3://blobs",
            "LORATREE_S3_ENDPOINT": server.endpoint,
        }

        def run(*arguments: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "loratree_cli", *arguments]
            return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)

        assert run("verify").returncode == 0
        for path in blobs(shell):
            content = path.read_bytes()
            key = f"sha256/{path.parent.name}/{path.name}"
            client.put_object(Bucket="blobs", Key=key, Body=content[:-1] + bytes([content[-1] ^ 1]))
        client.close()
        found = run("verify")
        assert (found.returncode, found.stdout.count(" holds other bytes, ")) == (1, len(CHAIN))
        for command in (["pull", LEAF], ["compose", LEAF, "--mode", "merge"]):
            refused = run(*command, "--out", str(tmp_path / "out"))
            assert refused.returncode == 1
            assert "is damaged where the registry stores it" in refused.stderr
            assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", [["verify"], ["export", "--out", "x"], ["gc"], ["gc", "--dry-run"]], ids=" ".join)
def test_a_home_without_a_registry_is_not_called_sound_and_gets_none(tmp_path: Path, command: list[str]) -> None:
    """A backup or a check of a wrong LORATREE_HOME must not succeed."""
    done = Shell(tmp_path / "wrong")(*command, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"there is no registry in {tmp_path}/wrong yet: set LORATREE_HOME or LORATREE_DATABASE" in done.stderr
    assert list(tmp_path.iterdir()) == []
