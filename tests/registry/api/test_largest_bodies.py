"""The largest body that each route takes, sent to a real server process: the time and the memory that it costs.

`make test-one T=tests/registry/api/test_largest_bodies.py` prints what was measured, as docs/reliability.md shows it.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from loratree_registry.api.routes.bases import ManifestRoute
from loratree_registry.api.routes.versions import SubmissionRoute
from loratree_registry.api.strict_route import Route
from loratree_registry.blobs.store import PART
from loratree_registry.settings import Settings
from tests.registry.fresh import open_fresh
from tests.registry.material import Material, publish

MIB = 1024 * 1024
MED = "tiny/medicine"
SECONDS = 20.0  # for one request, on a machine that others use too; docs/reliability.md has what it really takes
ID = "0" * 32


@dataclass(frozen=True)
class Server:
    """A `loratree serve` process."""

    url: str
    pid: int

    def measure(
        self, method: str, path: str, body: bytes, kind: str = "application/json"
    ) -> tuple[httpx.Response, Any]:
        """Send a request; return the answer, its seconds, and by how many MiB the server's memory grew for it."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")  # begins a new peak
        before = self._memory("VmRSS")
        begun = time.perf_counter()
        answer = httpx.request(
            method, self.url + path, content=body, headers={"Content-Type": kind}, timeout=120, verify=False
        )
        seconds = time.perf_counter() - begun
        return answer, (seconds, self._memory("VmHWM") - before)

    def _memory(self, name: str) -> int:
        found = re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
        assert found is not None
        return int(found[1]) // 1024


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, material: Material) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("home")
    registry = open_fresh(Settings.from_environment({"LORATREE_HOME": str(home)}))
    registry.add_base("tiny", material.base)
    publish(registry, MED, material.rank4)
    registry.close()
    command = [sys.executable, "-m", "loratree_cli", "serve", "--port", "0"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LORATREE_")}
    with subprocess.Popen(
        command, env=environment | {"LORATREE_HOME": str(home)}, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield Server(process.stdout.readline().strip(), process.pid)
        process.terminate()


def _digest(number: int) -> str:
    return "sha256:" + hashlib.sha256(str(number).encode()).hexdigest()


def _tensors(count: int) -> list[dict[str, Any]]:
    return [
        {"name": f"model.layers.{n}.w", "shape": [64, 64], "dtype": "F32", "kind": "Norm", "sha256": _digest(n)}
        for n in range(count)
    ]


def _base(**manifest: Any) -> dict[str, Any]:
    return {"name": "large", "manifest": manifest}


def _version(material: Material, **config: Any) -> dict[str, Any]:
    file = material.rank4.file
    files = [{"name": file.name, "size": file.size, "sha256": file.sha256}]
    return {"config": material.rank4.config | config, "files": files, "parent": "base", "found": "explicit"}


def _files(count: int) -> dict[str, Any]:
    listed = [{"name": f"model-{n}.safetensors", "size": 1, "sha256": _digest(n)} for n in range(count)]
    return {"files": listed}


FAULTS, VERSION_FAULTS, BASE_FAULTS = (route.max_values - 20 for route in (Route, SubmissionRoute, ManifestRoute))
Case = tuple[str, str, Callable[[Material], object], int]  # method, path, body, status
CASES: dict[str, Case] = {
    "sources, text": ("PUT", "/v1/sources/tiny", lambda m: {"source": "x" * (MIB - 100)}, 422),
    "nodes, path": ("POST", "/v1/nodes", lambda m: {"path": "a/" * (MIB // 2 - 100)}, 422),
    "nodes, fields": ("POST", "/v1/nodes", lambda m: {f"field{n}": n for n in range(FAULTS)}, 422),
    "nodes, more fields": ("POST", "/v1/nodes", lambda m: {f"{n:x}": 0 for n in range(90_000)}, 422),
    "versions, settings": (
        "POST",
        "/v1/versions/tiny/a",
        lambda m: _version(m, notes={f"{n:05}": "x" * 10 for n in range(45_000)}),
        201,
    ),
    "versions, targets": (
        "POST",
        "/v1/versions/tiny/b",
        lambda m: _version(
            m, target_modules=m.rank4.config["target_modules"] + [f"layers.{n}.q_proj" for n in range(45_000)]
        ),
        201,
    ),
    "versions, patterns": (
        "POST",
        "/v1/versions/tiny/c",
        lambda m: _version(m, rank_pattern={f"layers.{n}.none": 4 for n in range(40_000)}),
        201,
    ),
    "versions, text": ("POST", "/v1/versions/tiny/d", lambda m: _version(m, revision="x" * 7 * MIB), 201),
    "versions, nested": ("POST", "/v1/versions/tiny/e", lambda m: _version(m, x=[[]] * (VERSION_FAULTS // 2)), 422),
    "versions, faults": ("POST", "/v1/versions/tiny/f", lambda m: {"files": [0] * VERSION_FAULTS}, 422),
    "versions, more faults": ("POST", "/v1/versions/tiny/g", lambda m: {"files": [0] * 2 * MIB}, 422),
    "versions, note": ("POST", "/v1/versions/tiny/h", lambda m: _version(m) | {"note": "x" * 7 * MIB}, 422),
    "retentions, digits": ("POST", f"/v1/retentions/{MED}", lambda m: b'{"keep": ' + b"9" * (MIB - 100) + b"}", 422),
    "withdrawals, reason": ("POST", f"/v1/withdrawals/{MED}@1", lambda m: {"reason": "x" * (MIB - 100)}, 422),
    "quarantines, reason": ("POST", f"/v1/quarantines/{MED}@1", lambda m: {"reason": "é" * (MIB // 6 - 100)}, 422),
    "aliases, digits": (
        "PUT",
        f"/v1/aliases/{MED}@stable",
        lambda m: b'{"expected": null, "version": ' + b"9" * (MIB - 100) + b"}",
        422,
    ),
    "missing, files": ("POST", "/v1/missing/tiny", lambda m: _files(1_000), 200),
    "missing, more files": ("POST", "/v1/missing/tiny", lambda m: _files(4_900), 422),
    "missing, faults": ("POST", "/v1/missing/tiny", lambda m: {"files": [0] * FAULTS}, 422),
    "missing, name": (
        "POST",
        "/v1/missing/tiny",
        lambda m: {"files": [_files(1)["files"][0] | {"name": "x" * (MIB - 300)}]},
        200,
    ),
    "base-files, files": ("PUT", "/v1/base-files/tiny", lambda m: _files(1_000), 422),
    "base-files, more files": ("PUT", "/v1/base-files/tiny", lambda m: _files(4_900), 422),
    "uploads, digest": ("POST", "/v1/uploads", lambda m: {"sha256": "x" * (MIB - 100), "size": 1}, 422),
    "uploads, size": ("POST", "/v1/uploads", lambda m: {"sha256": _digest(1), "size": PART * 10_000}, 201),
    "uploads, body": ("POST", f"/v1/uploads/{ID}/complete", lambda m: b"x" * MIB, 422),
    "bases, as many tensors as fit": ("POST", "/v1/bases", lambda m: _base(parameters=_tensors(110_000)), 200),
    "bases, again": ("POST", "/v1/bases", lambda m: _base(parameters=_tensors(110_000), leftovers=["a.b"]), 200),
    "bases, faults": ("POST", "/v1/bases", lambda m: _base(parameters=[0] * BASE_FAULTS), 422),
    "bases, more faults": ("POST", "/v1/bases", lambda m: _base(parameters=[0] * 8 * MIB), 422),
    "bases, dimensions": (
        "POST",
        "/v1/bases",
        lambda m: _base(parameters=[_tensors(1)[0] | {"shape": [10**15] * 1_000_000}]),
        422,
    ),
    "bases, names": (
        "POST",
        "/v1/bases",
        lambda m: _base(parameters=_tensors(1), leftovers=["x"] * BASE_FAULTS) | {"name": "names"},
        200,
    ),
    "bases, text": ("POST", "/v1/bases", lambda m: _base(parameters=_tensors(1), architecture="x" * 31 * MIB), 422),
}
MEMORY = {"bases": 1000, "versions": 400}  # MiB


@pytest.mark.parametrize("name", CASES)
def test_the_largest_body_of_a_route_takes_bounded_time_and_memory(
    server: Server, material: Material, name: str, record_property: Callable[[str, object], None]
) -> None:
    method, path, made, status = CASES[name]
    body = made(material)
    sent = body if isinstance(body, bytes) else json.dumps(body, separators=(",", ":")).encode()
    answer, (seconds, peak) = server.measure(method, path, sent)
    size = f"{len(sent) / MIB:.1f} MiB"
    record_property("measured", f"{method} {name}: {size}, {answer.status_code}, {seconds:.2f} s, {peak} MiB")
    assert answer.status_code == status, answer.text[:600]
    assert seconds < SECONDS
    assert peak < MEMORY.get(name.split(",")[0], 150)
    if status >= 400:
        assert len(answer.json()["detail"]) <= 600


def test_a_part_is_never_in_memory_as_a_whole(server: Server, record_property: Callable[[str, object], None]) -> None:
    content = b"\0" * PART
    announced = {"sha256": "sha256:" + hashlib.sha256(content).hexdigest(), "size": PART}
    answer, _ = server.measure("POST", "/v1/uploads", json.dumps(announced).encode())
    upload = answer.json()["id"]
    sent, (seconds, peak) = server.measure("PUT", f"/v1/uploads/{upload}/parts/1", content, "application/octet-stream")
    record_property("measured", f"PUT uploads, part: 64.0 MiB, {sent.status_code}, {seconds:.2f} s, {peak} MiB")
    assert sent.status_code == 204
    assert (seconds < SECONDS, peak < 150) == (True, True)
    done, (seconds, peak) = server.measure("POST", f"/v1/uploads/{upload}/complete", b"")
    assert (done.status_code, seconds < SECONDS, peak < 150) == (200, True, True)


def test_a_long_address_is_refused_at_once(server: Server, record_property: Callable[[str, object], None]) -> None:
    weights = "&".join(f"weight=tiny/a{n}:1" for n in range(3_000))
    content = f"/v1/versions/{MED}?content={'x' * 60_000}"
    for path in (f"/v1/resolve/{MED}?{weights}", f"/v1/nodes/{'a/' * 30_000}", content):
        answer, (seconds, peak) = server.measure("GET", path, b"")
        size = f"{len(path) / MIB:.2f} MiB"
        record_property("measured", f"GET {path[:14]}…: {size}, {answer.status_code}, {seconds:.2f} s, {peak} MiB")
        assert answer.status_code == 422
        assert seconds < SECONDS
