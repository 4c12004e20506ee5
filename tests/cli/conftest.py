"""A registry that was filled by the command line, once per session, and a fresh copy of it for each test."""

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests import forked, tiny

CHAIN = [
    ("tiny/medicine", 8),
    ("tiny/medicine/cardiology", 6),
    ("tiny/medicine/cardiology/diagnosis", 4),
    ("tiny/medicine/cardiology/diagnosis/alice", 2),
]
LEAF = CHAIN[-1][0]


@dataclass(frozen=True)
class Shell:
    """Runs `loratree` in a process of its own over one LORATREE_HOME."""

    home: Path
    url: str | None = None
    variables: Mapping[str, str] = field(default_factory=dict)

    def __call__(
        self, *arguments: str | Path, check: bool = True, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        done = forked.run([*map(str, arguments)], self.environment(), cwd)
        assert not check or done.returncode == 0, done.stderr
        return done

    def environment(self) -> dict[str, str]:
        """The variables of its processes: its own settings, and none of the tests' shell."""
        others = {key: value for key, value in os.environ.items() if not key.startswith("LORATREE_")}
        others |= {"LORATREE_CONFIG": os.devnull, **self.variables}
        return others | {"LORATREE_HOME": str(self.home)} | ({"LORATREE_URL": self.url} if self.url else {})

    def state(self) -> tuple[list[str], list[str]]:
        """Everything that a refused command must leave as it was: every row of the database, and the stored files."""
        with closing(sqlite3.connect(self.home / "loratree.db")) as database:
            rows = list(database.iterdump())
        return rows, sorted(str(file.relative_to(self.home)) for file in self.home.rglob("blobs/**/*"))


@dataclass(frozen=True)
class Filled:
    """The base's directory, one adapter directory for each path of CHAIN, and the home that holds them published."""

    base: Path
    adapters: dict[str, Path]
    home: Path


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Filled:
    folder = tmp_path_factory.mktemp("cli")
    base = tiny.llama(folder / "base")
    adapters = {
        path: tiny.adapter(base, folder / path.replace("/", "-"), seed=rank, rank=rank, alpha=2 * rank)
        for path, rank in CHAIN
    }
    shell = Shell(folder / "home")
    shell("base", "add", "tiny", base)
    above = "base"
    for path, adapter in adapters.items():
        shell("publish", adapter, path, "--parent", above)
        above = path
    return Filled(base, adapters, shell.home)


@pytest.fixture
def shell(filled: Filled, tmp_path: Path) -> Shell:
    return Shell(Path(shutil.copytree(filled.home, tmp_path / "home")))
