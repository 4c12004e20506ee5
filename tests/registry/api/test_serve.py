"""`serve` in a process of its own."""

import io
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from loratree_registry.api.serve import serve
from loratree_registry.errors import Invalid, Unavailable
from loratree_registry.remote import RemoteRegistry
from loratree_registry.settings import Settings
from tests.registry.material import sha256

PROGRAM = "import sys; from loratree_registry.api.serve import serve; from loratree_registry.settings import Settings; "
SERVE = PROGRAM + "serve(Settings.from_environment(), sys.argv[1], int(sys.argv[2]))"


@contextmanager
def serving(home: Path, host: str = "127.0.0.1") -> Iterator[tuple[str, subprocess.Popen[str]]]:
    environment = os.environ | {"LORATREE_HOME": str(home), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-c", SERVE, host, "0"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip(), process
        finally:
            process.terminate()


def memory(process: subprocess.Popen[str]) -> int:
    """The most memory that a process has held, in bytes."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


@pytest.mark.parametrize(("host", "name"), [("127.0.0.1", "127.0.0.1"), ("localhost", "localhost"), ("::1", "[::1]")])
def test_it_prints_the_url_where_it_answers_and_ends_quietly_when_interrupted(
    tmp_path: Path, host: str, name: str
) -> None:
    with serving(tmp_path, host) as (url, process):
        assert url.startswith(f"http://{name}:")
        httpx.get(f"{url}/v1/health", timeout=20).raise_for_status()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


def test_a_large_upload_is_never_whole_in_the_servers_memory(tmp_path: Path) -> None:
    content = os.urandom(1024) * (96 * 1024)
    with serving(tmp_path) as (url, process):
        registry = RemoteRegistry(url)
        registry.upload(io.BytesIO(b"small"), sha256=sha256(b"small"), size=5)
        before = memory(process)
        registry.upload(io.BytesIO(content), sha256=sha256(content), size=len(content))
        assert memory(process) - before < len(content) // 3
        registry.close()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "8.8.8.8"])
def test_it_refuses_to_serve_other_machines(tmp_path: Path, host: str) -> None:
    with pytest.raises(Invalid, match=r"it has no access control yet: give 127\.0\.0\.1, ::1 or localhost"):
        serve(Settings.from_environment({"LORATREE_HOME": str(tmp_path / "home")}), host, 0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("host", ["", "example.org", "localhost.", "127.1"])
def test_it_refuses_a_host_that_is_no_address(tmp_path: Path, host: str) -> None:
    with pytest.raises(Invalid, match="is not an address"):
        serve(Settings.from_environment({"LORATREE_HOME": str(tmp_path)}), host, 0)


def test_a_port_that_is_taken_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Unavailable, match=f"port {port} of 127.0.0.1 cannot be taken .*give another --port"):
            serve(Settings.from_environment({"LORATREE_HOME": str(tmp_path)}), "127.0.0.1", port)


def test_a_missing_server_part_is_told_with_what_to_install(tmp_path: Path) -> None:
    program = f"""
import sys
sys.modules["uvicorn"] = None
from loratree_registry.api.serve import serve
from loratree_registry.errors import Unavailable
from loratree_registry.settings import Settings
try:
    serve(Settings.from_environment({{"LORATREE_HOME": {str(tmp_path)!r}}}), "127.0.0.1", 0)
except Unavailable as error:
    sys.exit(0 if "install loratree[server]" in str(error) else 1)
"""
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_several_workers_can_be_started_from_the_environment(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "--factory", "loratree_registry.api.app:create_app_from_settings"]
    command += ["--workers", "2", "--port", str(port), "--log-level", "critical"]
    environment = os.environ | {"LORATREE_HOME": str(tmp_path)}
    with subprocess.Popen(command, env=environment) as process:
        transport = httpx.HTTPTransport(retries=8)  # waits 0.5 s, 1 s, … until the workers listen
        with httpx.Client(transport=transport, timeout=30) as client:
            assert client.get(f"http://127.0.0.1:{port}/v1/health").json()["status"] == "ok"
        process.terminate()
        process.wait(20)
