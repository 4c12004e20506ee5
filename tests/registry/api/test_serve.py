"""`serve` in a process of its own."""

import io
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

import httpx
import pytest

from loratree_registry.api.serve import serve
from loratree_registry.errors import Invalid, Unavailable
from loratree_registry.remote.registry import RemoteRegistry
from loratree_registry.settings import Settings
from tests.registry.material import sha256

PROGRAM = "import sys; from loratree_registry.api.serve import serve; from loratree_registry.settings import Settings; "
SERVE = PROGRAM + "serve(Settings.from_environment(), sys.argv[1], int(sys.argv[2]), workers=int(sys.argv[3]))"


@contextmanager
def serving(
    home: Path,
    host: str = "127.0.0.1",
    *,
    workers: int = 1,
    files: int | None = None,
    stderr: IO[bytes] | None = None,
    **settings: str,
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    environment = os.environ | {"LORATREE_HOME": str(home), "PYTHONUNBUFFERED": "1"} | settings
    command = [sys.executable, "-c", SERVE, host, "0", str(workers)]
    if files is not None:  # as many as the process may have open
        command = ["prlimit", f"--nofile={files}:{files}", *command]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True) as process:
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


def answering_workers(process: subprocess.Popen[str]) -> list[int]:
    """The processes that a server's supervisor has started and that have the application loaded."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(child) for child in children if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()]


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.05)


@contextmanager
def only(worker: int, workers: list[int]) -> Iterator[None]:
    """Lets one worker answer, and the others wait."""
    others = [other for other in workers if other != worker]
    for other in others:
        os.kill(other, signal.SIGSTOP)
    try:
        yield
    finally:
        for other in others:
            os.kill(other, signal.SIGCONT)


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_what_one_worker_began_another_completes(tmp_path: Path, database: str, request: pytest.FixtureRequest) -> None:
    content = b"the bytes of an adapter"
    new = {"sha256": sha256(content), "size": len(content)}
    with ExitStack() as opened:
        settings = {}
        if database == "postgresql":
            settings["LORATREE_DATABASE"] = opened.enter_context(request.getfixturevalue("server").migrated())
        url, process = opened.enter_context(serving(tmp_path, workers=2, **settings))
        wait_until(lambda: len(answering_workers(process)) == 2)
        one, other = workers = answering_workers(process)
        with only(one, workers):
            upload = httpx.post(f"{url}/v1/uploads", json=new, timeout=60).json()
        with only(other, workers):
            assert httpx.put(f"{url}{upload['next']['url']}", content=content, timeout=60).status_code == 204
        with only(one, workers):
            assert httpx.post(f"{url}/v1/uploads/{upload['id']}/complete", timeout=60).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_a_worker_that_dies_is_replaced_and_ctrl_c_stops_all(tmp_path: Path) -> None:
    with serving(tmp_path, workers=2) as (url, process):
        wait_until(lambda: len(answering_workers(process)) == 2)
        httpx.get(f"{url}/v1/health", timeout=60).raise_for_status()
        before = answering_workers(process)
        os.kill(before[0], signal.SIGKILL)
        wait_until(lambda: len(set(answering_workers(process)) - {before[0]}) == 2)
        httpx.get(f"{url}/v1/health", timeout=60).raise_for_status()
        after = answering_workers(process)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert not [child for child in after if Path(f"/proc/{child}").exists()]


def test_a_worker_that_dies_while_it_is_asked_whether_it_is_well_is_replaced_at_once(tmp_path: Path) -> None:
    with serving(tmp_path, workers=2) as (url, process):
        wait_until(lambda: len(answering_workers(process)) == 2)
        httpx.get(f"{url}/v1/health", timeout=60).raise_for_status()
        before = answering_workers(process)
        os.kill(before[1], signal.SIGSTOP)  # it answers no question, and the supervisor asks each half second
        time.sleep(2)
        os.kill(before[1], signal.SIGKILL)
        start = time.monotonic()
        wait_until(lambda: len(set(answering_workers(process)) - {before[1]}) == 2)
        assert time.monotonic() - start < 30  # the timeout of a check is 60 s


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
