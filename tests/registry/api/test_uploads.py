"""Bytes on their way in: announced, sent once, verified, and never half there."""

import os
import socket
import stat
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import httpx
import pytest

from loratree_registry.api.app import create_app
from loratree_registry.blobs.store import PART
from loratree_registry.core.digests import FileDigest
from loratree_registry.core.uploads import LIFETIME_S
from loratree_registry.embedded.registry import EmbeddedRegistry
from loratree_registry.embedded.staged_uploads import StagedUploads, expire
from loratree_registry.errors import Conflict, Invalid, NotFound, Unavailable
from tests.registry.material import sha256
from tests.registry.serving import running

from .test_problems import problem

CONTENT = b"the bytes of an adapter"


def begin(http: httpx.Client, content: bytes = CONTENT, *, size: int | None = None) -> str:
    body = {"sha256": sha256(content), "size": len(content) if size is None else size}
    response = http.post("/v1/uploads", json=body)
    assert response.status_code == 201
    answer = response.json()
    assert answer["next"]["url"] == f"/v1/uploads/{answer['id']}/parts/1"
    return f"/v1/uploads/{answer['id']}"


def begun(staging: StagedUploads) -> str:
    return staging.begin(sha256(CONTENT), len(CONTENT)).id


def unused(stream: BinaryIO, *, sha256: str, size: int) -> None:
    raise AssertionError("nothing was to be stored")


def staged(tmp_path: Path) -> list[str]:
    """What lies in the server's staging folder, whichever upload it belongs to."""
    return staged_in(tmp_path / "uploads")


def staged_in(root: Path) -> list[str]:
    return sorted(path.name for path in root.rglob("*") if path.is_file())


def stored(home: Path) -> list[str]:
    return [path.name for path in (home / "blobs").rglob("*") if path.is_file()]


def test_bytes_are_announced_sent_and_completed(http: httpx.Client, tmp_path: Path) -> None:
    upload = begin(http)
    assert http.put(f"{upload}/parts/1", content=CONTENT).status_code == 204
    completed = http.post(f"{upload}/complete")
    assert (completed.status_code, completed.json()) == (200, {"sha256": sha256(CONTENT), "size": len(CONTENT)})
    assert list((tmp_path / "uploads").iterdir()) == []


def test_bytes_without_a_declared_length_are_counted(http: httpx.Client) -> None:
    upload = begin(http)
    assert http.put(f"{upload}/parts/1", content=iter([CONTENT[:5], CONTENT[5:]])).status_code == 204
    assert http.post(f"{upload}/complete").status_code == 200


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("sent", [CONTENT[:-1], CONTENT + b"!", b""])
def test_content_longer_or_shorter_than_announced_is_refused_and_forgotten(
    http: httpx.Client, tmp_path: Path, sent: bytes, chunked: bool
) -> None:
    upload = begin(http)
    content: Any = iter([sent]) if chunked else sent
    response = http.put(f"{upload}/parts/1", content=content)
    assert response.status_code == 422
    assert "announced" in problem(response)["detail"]
    assert staged(tmp_path) == ["announced"]
    assert http.post(f"{upload}/complete").status_code == 409
    assert http.put(f"{upload}/parts/1", content=CONTENT).status_code == 204


def test_nothing_is_written_beyond_the_announced_size(tmp_path: Path) -> None:
    staging = StagedUploads(tmp_path, unused)
    name = begun(staging)
    chunks = [CONTENT, b"!"]
    with pytest.raises(Invalid, match="longer than the 23 bytes announced"), staging.receive(name, 1) as arriving:
        [arriving.write(chunk) for chunk in chunks]
    assert staged_in(tmp_path) == ["announced"]


def test_content_of_another_digest_is_refused_when_completed_and_the_upload_is_over(
    http: httpx.Client, tmp_path: Path, home: Path
) -> None:
    before = stored(home)
    upload = begin(http)
    http.put(f"{upload}/parts/1", content=CONTENT.upper())
    response = http.post(f"{upload}/complete")
    assert response.status_code == 422
    assert sha256(CONTENT.upper()) in problem(response)["detail"]
    assert (stored(home), staged(tmp_path)) == (before, [])
    assert http.post(f"{upload}/complete").status_code == 404


def test_a_part_sent_again_replaces_the_first_and_an_upload_is_completed_once(http: httpx.Client) -> None:
    upload = begin(http)
    for content in (CONTENT.upper(), CONTENT):
        assert http.put(f"{upload}/parts/1", content=content).status_code == 204
    assert http.post(f"{upload}/complete").status_code == 200
    again = http.post(f"{upload}/complete")
    assert again.status_code == 404
    assert "begin another" in problem(again)["detail"]


def test_an_upload_tells_which_parts_have_arrived_and_where_the_next_one_goes(http: httpx.Client) -> None:
    upload = begin(http)
    before = http.get(upload).json()
    assert (before["parts"], before["part_size"], before["arrived"]) == (1, PART, [])
    assert before["next"] == http.get(f"{upload}/parts/1").json()
    assert before["next"]["headers"] == {"Content-Length": str(len(CONTENT))}
    http.put(f"{upload}/parts/1", content=CONTENT)
    after = http.get(upload)
    assert (after.json()["arrived"], after.json()["next"]) == ([1], None)
    assert after.headers["Cache-Control"] == "no-store"


def test_an_upload_that_is_given_up_is_gone(http: httpx.Client, tmp_path: Path) -> None:
    upload = begin(http)
    http.put(f"{upload}/parts/1", content=CONTENT)
    assert http.delete(upload).status_code == 204
    assert staged(tmp_path) == []
    assert [http.delete(upload).status_code, http.get(upload).status_code] == [404, 404]


@pytest.mark.parametrize("number", [0, -1, 2, 10**12])
def test_a_part_that_the_upload_does_not_have_is_refused(http: httpx.Client, number: int) -> None:
    upload = begin(http)
    for response in (http.get(f"{upload}/parts/{number}"), http.put(f"{upload}/parts/{number}", content=CONTENT)):
        assert response.status_code == 404
        assert "expected 1 to 1" in problem(response)["detail"]


def test_of_many_who_complete_an_upload_at_once_one_does(http: httpx.Client) -> None:
    upload = begin(http)
    http.put(f"{upload}/parts/1", content=CONTENT)
    with ThreadPoolExecutor(6) as pool:
        codes = list(pool.map(lambda _: http.post(f"{upload}/complete").status_code, range(6)))
    assert codes.count(200) == 1
    assert set(codes) <= {200, 404, 409}


@pytest.mark.parametrize("name", ["0" * 32, "..", "%2E%2E", "x", "..%2F..%2Fetc", "A" * 32, "%00"])
def test_an_id_that_was_not_given_is_not_found(http: httpx.Client, name: str) -> None:
    for response in (
        http.get(f"/v1/uploads/{name}"),
        http.get(f"/v1/uploads/{name}/parts/1"),
        http.put(f"/v1/uploads/{name}/parts/1", content=b""),
        http.post(f"/v1/uploads/{name}/complete"),
        http.delete(f"/v1/uploads/{name}"),
    ):
        assert response.status_code == 404
        problem(response)


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ({"sha256": "sha256:short", "size": 1}, "is not a digest"),
        ({"sha256": sha256(b""), "size": -1}, "expected 0 or more"),
        ({"sha256": sha256(b""), "size": 2**60}, "at most 671088640000 bytes"),
        ({"sha256": sha256(b""), "size": 1, "source": "file:///etc/passwd"}, "source: no such field"),
    ],
)
def test_an_announcement_that_cannot_be_kept_is_refused(http: httpx.Client, body: dict[str, Any], detail: str) -> None:
    response = http.post("/v1/uploads", json=body)
    assert response.status_code == 422
    assert detail in problem(response)["detail"]


def test_content_that_is_cut_off_is_forgotten_and_can_be_sent_again(http: httpx.Client, tmp_path: Path) -> None:
    upload = begin(http)
    head = f"PUT {upload}/parts/1 HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(CONTENT)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", http.base_url.port or 0)) as connection:
        connection.sendall(head.encode() + CONTENT[:10])
        wait_until(lambda: len(staged(tmp_path)) == 2)
    wait_until(lambda: staged(tmp_path) == ["announced"])
    assert http.put(f"{upload}/parts/1", content=CONTENT).status_code == 204


def test_of_two_who_send_a_part_at_once_neither_disturbs_the_other(http: httpx.Client, tmp_path: Path) -> None:
    upload = begin(http)
    go = threading.Event()

    def slow() -> Iterator[bytes]:
        yield CONTENT[:10]
        go.wait(10)
        yield CONTENT[10:]

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(lambda: http.put(f"{upload}/parts/1", content=slow()).status_code)
        wait_until(lambda: len(staged(tmp_path)) == 2)
        assert http.put(f"{upload}/parts/1", content=CONTENT).status_code == 204
        go.set()
        assert first.result() == 204
    assert http.post(f"{upload}/complete").status_code == 200


def test_two_servers_over_one_staging_folder_share_its_uploads(
    http: httpx.Client, behind: EmbeddedRegistry, tmp_path: Path
) -> None:
    app = create_app(behind, staging=tmp_path / "uploads")
    with running(app) as url, httpx.Client(base_url=url) as other:
        upload = begin(http)
        assert other.put(f"{upload}/parts/1", content=CONTENT).status_code == 204
        assert http.post(f"{upload}/complete").status_code == 200


def test_a_server_drops_an_upload_that_was_left_for_a_day(behind: EmbeddedRegistry, tmp_path: Path) -> None:
    staging = StagedUploads(tmp_path, unused)
    old, young = begun(staging), begun(staging)
    for name, age in ((old, LIFETIME_S + 60), (young, LIFETIME_S - 60)):
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    with running(create_app(Kept(behind._engine, behind._blobs), staging=tmp_path)):
        wait_until(lambda: not (tmp_path / old).exists())
    assert staging.find(young).sha256 == sha256(CONTENT)
    with pytest.raises(NotFound, match="idle for a day"):
        staging.find(old)


class Kept(EmbeddedRegistry):
    """A registry that others still use after its server stops."""

    def close(self) -> None:
        """Leaves it open."""


def test_an_upload_of_several_parts_that_was_left_for_a_day_begins_anew(tmp_path: Path) -> None:
    staging = StagedUploads(tmp_path, unused)
    upload = staging.begin(sha256(CONTENT), 2 * PART)
    (tmp_path / upload.id / "part-1").write_bytes(b"x")
    assert staging.begin(sha256(CONTENT), 2 * PART).arrived == [1]
    os.utime(tmp_path / upload.id, (0, 0))
    assert staging.begin(sha256(CONTENT), 2 * PART).arrived == []


def test_announcing_an_upload_looks_at_no_other_upload(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    staging = StagedUploads(tmp_path, unused)
    begun(staging)

    def measure() -> float:
        times = []
        for _ in range(50):
            start = time.perf_counter()
            begun(staging)
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    alone = measure()
    for number in range(10_000):
        (tmp_path / f"{number:032x}").mkdir()
        (tmp_path / f"{number:032x}" / "announced").write_text(f'["{sha256(CONTENT)}", 1]')
    among_many = measure()
    record_property("measured", f"announcing takes {1e3 * alone:.2f} ms, {1e3 * among_many:.2f} ms among 10,000 others")
    assert among_many < 3 * alone + 0.002  # a scan of all took 150 ms


def test_what_is_on_its_way_is_its_owners_alone(tmp_path: Path) -> None:
    staging = StagedUploads(tmp_path / "uploads", unused)
    name = begun(staging)
    for folder in (staging.root, staging.root / name):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


class Store:
    """Takes what it is given, or is full."""

    def __init__(self) -> None:
        self.full, self.taken = True, b""

    def __call__(self, stream: BinaryIO, *, sha256: str, size: int) -> None:
        if self.full:
            raise Unavailable("the disk of the blobs is full")
        self.taken = stream.read()


def test_an_upload_that_the_store_cannot_take_now_can_be_completed_later(tmp_path: Path) -> None:
    store = Store()
    staging = StagedUploads(tmp_path, store)
    upload = staging.find(begun(staging))
    with staging.receive(upload.id, 1) as arriving:
        arriving.write(CONTENT)
    with pytest.raises(Unavailable):
        staging.complete(upload)
    store.full = False
    staging.complete(upload)
    assert store.taken == CONTENT
    with pytest.raises(NotFound):
        staging.complete(upload)


def test_an_upload_without_its_parts_cannot_be_completed(tmp_path: Path) -> None:
    staging = StagedUploads(tmp_path, unused)
    name = begun(staging)
    with pytest.raises(Conflict, match="misses the parts 1: send them"):
        staging.complete(staging.find(name))
    with pytest.raises(Invalid, match="has 0 bytes, announced were 23"), staging.receive(name, 1):
        pass


def test_parts_arrive_in_any_order_and_are_stored_as_one(http: httpx.Client, behind: EmbeddedRegistry) -> None:
    content = bytes(range(256)) * (PART // 256) + b"the last part"
    upload = http.post("/v1/uploads", json={"sha256": sha256(content), "size": len(content)}).json()
    assert (upload["parts"], upload["next"]["number"]) == (2, 1)
    assert http.put(f"/v1/uploads/{upload['id']}/parts/2", content=content[PART:]).status_code == 204
    again = http.post("/v1/uploads", json={"sha256": sha256(content), "size": len(content)}).json()
    assert (again["id"], again["arrived"], again["next"]["number"]) == (upload["id"], [2], 1)
    assert http.post(f"/v1/uploads/{upload['id']}/complete").status_code == 409
    assert http.put(again["next"]["url"], content=content[:PART]).status_code == 204
    assert http.post(f"/v1/uploads/{upload['id']}/complete").status_code == 200
    with behind.open_stored(FileDigest("", len(content), sha256(content)), start=PART) as stream:
        assert stream.read() == content[PART:]


def test_an_upload_that_is_being_completed_is_neither_completed_twice_nor_expired(tmp_path: Path) -> None:
    size, completions = PART + 1, []

    def store(stream: BinaryIO, *, sha256: str, size: int) -> None:
        completions.append(sha256)
        again = staging.begin(sha256, size)
        with pytest.raises(Conflict, match="is being completed by another request"):
            staging.complete(again)
        os.utime(tmp_path / upload.id, (0, 0))
        assert expire(tmp_path, before=datetime.now(UTC)) == []

    staging = StagedUploads(tmp_path, store)
    upload = staging.begin(sha256(b""), size)
    for number in (1, 2):
        with staging.receive(upload.id, number) as arriving:
            arriving.write(bytes(staging.length(upload.id, number)))
    staging.complete(upload)
    assert (completions, list(tmp_path.iterdir())) == ([sha256(b"")], [])


def test_a_full_staging_disk_is_503_with_the_remedy_and_leaves_nothing(tmp_path: Path) -> None:
    """In a name space of its own, so that mounting a small disk needs no privilege."""
    program = f"""
import sys
from pathlib import Path
from loratree_registry.embedded.staged_uploads import StagedUploads
from loratree_registry.errors import Unavailable

root = Path({str(tmp_path)!r})
staging = StagedUploads(root, print)
name = staging.begin("sha256:" + "0" * 64, 200_000).id
try:
    with staging.receive(name, 1) as arriving:
        for _ in range(20):
            arriving.write(bytes(10_000))
except Unavailable as error:
    assert "is full: needs 200000 bytes" in str(error), error
    assert str(error).endswith("set LORATREE_HOME"), error
    assert [path.name for path in root.rglob("*") if path.is_file()] == ["announced"]
    sys.exit(42)
"""
    mount = 'mount -t tmpfs -o size=64k tmpfs "$1" && exec "$2" -c "$3"'
    inside = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount]
    inside += ["sh", str(tmp_path), sys.executable, program]
    done = subprocess.run(inside, capture_output=True, text=True)
    assert done.returncode == 42, done.stderr


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)
