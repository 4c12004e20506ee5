"""No command prints a password of a setting, whatever the command and the fault."""

import os
from pathlib import Path

import pytest

from tests import forked

SETTINGS = {
    "LORATREE_BLOBS": ["s3://user:sekret@bucket/x", "s3:/user:sekret@bucket", "https://user:sekret@host/x"],
    "LORATREE_DATABASE": [
        "postgresql://user:sekret@127.0.0.1:1/x",
        "postgresql:/user:sekret@127.0.0.1:1/x",
        "mysql://user:sekret@h/x",
    ],
    "LORATREE_URL": ["http://user:sekret@127.0.0.1:9", "http:/user:sekret@127.0.0.1:9", "http://user:sekret@h?x=1"],
    "LORATREE_S3_ENDPOINT": ["http://user:sekret@127.0.0.1:1", "nonsense:user:sekret@h"],
    "LORATREE_S3_PUBLIC_ENDPOINT": ["http://127.0.0.1:1?token=sekret"],
}
CASES = [(name, value) for name, values in SETTINGS.items() for value in values]


@pytest.mark.parametrize(("name", "value"), CASES)
def test_no_command_prints_a_password(tmp_path: Path, name: str, value: str) -> None:
    environment = {key: text for key, text in os.environ.items() if not key.startswith(("LORATREE_", "AWS_"))}
    environment |= {"LORATREE_HOME": str(tmp_path / "home"), name: value}
    if "S3" in name:
        environment |= {"LORATREE_BLOBS": "s3://bucket/x", "LORATREE_S3_ENDPOINT": "http://127.0.0.1:1", name: value}
    before = {path.name for path in tmp_path.iterdir()}
    for command in (["doctor"], ["ls", "--json"], ["gc"]):
        done = forked.run(command, environment, tmp_path)
        assert "sekret" not in done.stdout + done.stderr, command
        assert "Traceback" not in done.stderr
    assert {path.name for path in tmp_path.iterdir()} - before <= {"home"}
