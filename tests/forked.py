"""The real `loratree` in a process forked from one that has imported it all: it starts in 20 ms instead of seconds."""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib import import_module
from multiprocessing.connection import wait
from pathlib import Path
from threading import Lock
from typing import Final

from loratree_cli.main import COMMANDS, main

_IMPORTED_LATE = (
    "loratree_composer.base.manifest",
    "loratree_registry.api.app",
    "loratree_registry.blobs.local",
    "loratree_registry.blobs.s3.store",
    "loratree_registry.catalog.examining",
    "loratree_registry.catalog.publishing",
    "loratree_registry.embedded.registry",
    "loratree_registry.remote.registry",
    "loratree_registry.workspace.publish",
    "boto3",
    "botocore.handlers",
    "psycopg",
    "re2",
    "rfc8785",
    "sqlalchemy.dialects.postgresql.psycopg",
    "sqlalchemy.dialects.sqlite",
    "transformers.models.llama.modeling_llama",
    "uvicorn",
)
SERVER: Final = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.preloaded"])
TURN: Final = Lock()  # multiprocessing looks after every child whenever one starts, which is not for two threads
LIMIT_S: Final = 120.0


def preload() -> None:
    """Import what the commands import when they are called."""
    for module, _ in COMMANDS.values():
        import_module(f"loratree_cli.commands.{module.partition(':')[0]}")
    for name in _IMPORTED_LATE:
        import_module(name)


def run(
    arguments: Sequence[str], environment: Mapping[str, str], cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `loratree` with `arguments` and wait for its end. Raises AssertionError after LIMIT_S seconds."""
    with tempfile.TemporaryDirectory() as folder:
        process = SERVER.Process(
            target=_run, args=(list(arguments), dict(environment), folder, str(cwd or Path.cwd())), daemon=True
        )
        with TURN:
            process.start()
        if not wait([process.sentinel], LIMIT_S):
            process.kill()
            raise AssertionError(f"loratree {' '.join(arguments)} did not end in {LIMIT_S:.0f} s")
        with TURN:
            process.join()
        out, err = ((Path(folder) / name).read_text(encoding="utf-8") for name in ("out", "err"))
        assert process.exitcode is not None
        return subprocess.CompletedProcess(["loratree", *arguments], process.exitcode, out, err)


def take_over(
    arguments: Sequence[str], environment: Mapping[str, str], folder: str = "", *, terminal: str = ""
) -> None:
    """Make this forked process one that was called with `arguments`; it writes into `folder`/out and `folder`/err.

    With a `terminal`, the process reads there and writes there instead.
    """
    for handle, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(terminal or f"{folder}/{name}", os.O_RDWR | os.O_CREAT | os.O_NOCTTY), handle)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = environment.get("TMPDIR")
    sys.argv = ["loratree", *arguments]


def _run(arguments: list[str], environment: dict[str, str], folder: str, cwd: str) -> None:
    take_over(arguments, environment, folder)
    os.chdir(cwd)
    main()
