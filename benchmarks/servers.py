"""The servers that the registry's benchmark starts and stops: ours, MLflow's, databases, S3."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from urllib.error import URLError

from benchmarks.side import ENVIRONMENT
from tests import ceph
from tests.postgresql import PostgreSQL
from tests.s3 import S3Server

_START_S = 600  # MLflow imports all it has in each of its workers
_ENVIRONMENT = Path(".venv-mlflow")
_REQUIREMENTS = Path(__file__).with_name("mlflow-requirements.txt")


def mlflow_python() -> str:
    """The interpreter of MLflow's own environment, made where there is none: its pins are not ours."""
    python = _ENVIRONMENT / "bin" / "python"
    done = _ENVIRONMENT / _REQUIREMENTS.name
    if not done.exists() or done.read_text() != _REQUIREMENTS.read_text():
        subprocess.run([sys.executable, "-m", "venv", _ENVIRONMENT], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", _REQUIREMENTS], check=True)
        done.write_text(_REQUIREMENTS.read_text())
    return str(python)


@contextmanager
def database(server: PostgreSQL | None, file: Path) -> Iterator[str]:
    """A new database's address: on the server, or a file."""
    with nullcontext(f"sqlite:///{file}") if server is None else server.empty() as address:
        yield address


@contextmanager
def loratree(environment: Mapping[str, str]) -> Iterator[int]:
    """Runs `loratree serve`; gives its port."""
    command = [sys.executable, "-m", "loratree_cli", "serve", "--port", "0"]
    with _running(command, environment, stdout=subprocess.PIPE, stderr=None) as process:
        assert process.stdout
        yield int(process.stdout.readline().rpartition(":")[2])


@contextmanager
def bare() -> Iterator[int]:
    """Runs a server of one FastAPI route under the settings of `loratree serve`; gives its port."""
    with _running([sys.executable, "-m", "benchmarks.bare_server"], {}, stdout=subprocess.PIPE, stderr=None) as process:
        assert process.stdout
        yield int(process.stdout.readline().rpartition(":")[2])


@contextmanager
def mlflow(python: str, address: str) -> Iterator[int]:
    """Runs `mlflow server` with its default of four workers; gives its port."""
    port = _free_port()
    command = [python, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", address, "--no-serve-artifacts", "--default-artifact-root", "/nonexistent"]
    with _running(command, {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}):
        _wait(f"http://127.0.0.1:{port}/health")
        yield port


@contextmanager
def moto() -> Iterator[S3Server]:
    """Runs moto's server in a process of its own, so that it takes no time of the process that is measured."""
    port = _free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with _running(command, {}):
        _wait(f"http://127.0.0.1:{port}/moto-api/")
        yield S3Server(f"http://127.0.0.1:{port}", "key", "secret")


def s3_servers() -> Mapping[str, Callable[[], AbstractContextManager[S3Server]]]:
    """The S3 servers that there are, by name."""
    return {"moto": moto} | ({"ceph": ceph.ceph} if ceph.wanted() else {})


@contextmanager
def _running(
    command: list[str],
    environment: Mapping[str, str],
    *,
    stdout: int | None = subprocess.DEVNULL,
    stderr: int | None = subprocess.DEVNULL,
) -> Iterator[subprocess.Popen[str]]:
    given = os.environ | ENVIRONMENT | environment
    process = subprocess.Popen(command, env=given, stdout=stdout, stderr=stderr, text=True)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def _wait(url: str) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (URLError, OSError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port
