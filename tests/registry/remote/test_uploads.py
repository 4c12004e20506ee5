"""Uploads that break off, go on, and go straight to the store: what is sent, how often, and what nobody may see."""

import io
import json
import logging
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import IO, Any

import httpx
import pytest

from loratree_registry.blobs.sending import send
from loratree_registry.blobs.store import PART
from loratree_registry.core.digests import FileDigest
from loratree_registry.core.manifest import BaseManifest, Parameter
from loratree_registry.core.records import Submission
from loratree_registry.core.uploads import Part
from loratree_registry.database.engine import writing
from loratree_registry.database.tables import uploads
from loratree_registry.embedded.registry import EmbeddedRegistry
from loratree_registry.errors import Corrupt, Invalid, NotFound, Unavailable
from loratree_registry.remote.http import HttpClient
from loratree_registry.remote.presigned import Presigned
from loratree_registry.remote.registry import RemoteRegistry
from loratree_registry.workspace.base_transfer import pull_base, push_base
from loratree_registry.workspace.fetch import fetch
from tests.registry.conftest import Storage
from tests.registry.fresh import open_fresh
from tests.registry.material import WEIGHTS, Material, publish, sha256
from tests.registry.serving import answering

MED = "tiny/medicine"
CONTENT = b"the bytes of an adapter"
LARGE = PART + 1000

KILLED = """
import os, signal, sys
from pathlib import Path
from loratree_registry.workspace.base_transfer import push_base
from loratree_registry.remote.registry import RemoteRegistry
from loratree_registry.remote.http import HttpClient

put = HttpClient.put_part

def put_and_die(wire, part, content):
    put(wire, part, content)
    if int(part.headers["Content-Length"]) > 10**6:
        os.kill(os.getpid(), signal.SIGKILL)

HttpClient.put_part = put_and_die
push_base(RemoteRegistry(sys.argv[1]), "large", Path(sys.argv[2]))
"""


@pytest.fixture(params=["local", "s3"])
def behind(request: pytest.FixtureRequest, storage: Storage) -> Iterator[EmbeddedRegistry]:
    registry = open_fresh(storage.settings(**(storage.bucket() if request.param == "s3" else {})))
    yield registry
    registry.close()


@pytest.fixture
def over_s3(storage: Storage) -> Iterator[EmbeddedRegistry]:
    registry = open_fresh(storage.settings(**storage.bucket()))
    yield registry
    registry.close()


@pytest.fixture
def remote(behind: EmbeddedRegistry, storage: Storage) -> Iterator[RemoteRegistry]:
    registry = RemoteRegistry(storage.served().over(behind, storage.folder))
    yield registry
    registry.close()


@pytest.fixture
def large(tmp_path: Path) -> tuple[Path, BaseManifest]:
    """A base whose one tensor takes two parts, and its manifest."""
    folder = tmp_path / "large"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    values = bytes(range(250)) * (LARGE // 250)
    header = {"wte.weight": {"dtype": "U8", "shape": [len(values)], "data_offsets": [0, len(values)]}}
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + values)
    tensor = Parameter(name="wte.weight", shape=(len(values),), dtype="U8", kind="Embedding", sha256=sha256(values))
    return folder, BaseManifest(parameters=(tensor,))


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Part]:
    """The parts that clients of this process send."""
    parts: list[Part] = []
    put = HttpClient.put_part

    def note(wire: HttpClient, part: Part, content: IO[bytes]) -> None:
        parts.append(part)
        put(wire, part, content)

    monkeypatch.setattr(HttpClient, "put_part", note)
    return parts


def test_a_push_that_was_killed_between_parts_goes_on_where_it_was(
    behind: EmbeddedRegistry,
    remote: RemoteRegistry,
    large: tuple[Path, BaseManifest],
    sent: list[Part],
    tmp_path: Path,
    record_property: Callable[[str, Any], None],
) -> None:
    folder, manifest = large
    behind.add_base("large", manifest)
    url = remote._http.url
    killed = subprocess.run([sys.executable, "-c", KILLED, url, str(folder)], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not remote.base("large").stored
    pushed = push_base(remote, "large", folder)
    assert pushed.base.stored
    assert pushed.sent == ["model.safetensors"]  # config.json had arrived whole
    size = (folder / "model.safetensors").stat().st_size
    lengths = [int(part.headers["Content-Length"]) for part in sent]
    assert lengths == [size - PART]
    record_property("measured", f"after the kill {sum(lengths):,} of {size:,} bytes were sent")
    pull_base(remote, tmp_path / "home", "large", tmp_path / "out")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()


def test_an_upload_that_holds_another_clients_wrong_parts_is_begun_anew(
    behind: EmbeddedRegistry, remote: RemoteRegistry, sent: list[Part]
) -> None:
    content = bytes(PART) + b"the last part"
    size, digest = len(content), sha256(content)
    announced = {"sha256": digest, "size": size}
    part = httpx.post(f"{remote._http.url}/v1/uploads", json=announced).json()["next"]
    wrong = b"\1" * PART
    url = httpx.URL(remote._http.url).join(part["url"])
    assert httpx.put(url, content=wrong, headers=part["headers"], timeout=60).is_success
    remote.upload(io.BytesIO(content), sha256=digest, size=size)
    assert [part.number for part in sent] == [2, 1, 2]


class Breaking(io.BytesIO):
    """A file whose disk fails behind its first part."""

    def read(self, count: int | None = -1) -> bytes:
        if self.tell() >= PART and count:
            raise OSError(5, "Input/output error")
        return super().read(count)


class Counting(io.BytesIO):
    """A file that counts what is read of it."""

    count = 0

    def read(self, count: int | None = -1) -> bytes:
        chunk = super().read(count)
        self.count += len(chunk)
        return chunk


def test_an_embedded_registry_over_s3_goes_on_too(over_s3: EmbeddedRegistry) -> None:
    content = bytes(PART) + b"the last part"
    give = partial(over_s3.upload, sha256=sha256(content), size=len(content))
    with pytest.raises(Invalid, match="Input/output error"):
        give(Breaking(content))
    source = Counting(content)
    give(source)
    assert source.count == len(b"the last part")


def test_an_upload_that_the_store_has_given_up_is_begun_anew(over_s3: EmbeddedRegistry, storage: Storage) -> None:
    direct = over_s3.direct
    assert direct
    upload = direct.begin(sha256(bytes(PART + 1)), PART + 1)
    assert direct.begin(upload.sha256, upload.size).id == upload.id
    over_s3._blobs.sweep(before=datetime.now(UTC) + timedelta(hours=1))
    assert direct.begin(upload.sha256, upload.size).id != upload.id
    with pytest.raises(NotFound, match="idle for a day"):
        direct.find(upload.id)


def test_an_upload_that_was_left_for_a_day_is_not_resumed(over_s3: EmbeddedRegistry) -> None:
    direct = over_s3.direct
    assert direct
    upload = direct.begin(sha256(b""), PART + 1)
    with writing(over_s3._engine) as connection:
        connection.execute(uploads.update().values(touched_at=datetime.now(UTC) - timedelta(hours=25)))
    assert direct.begin(sha256(b""), PART + 1).id != upload.id


def test_parts_and_files_go_straight_to_the_store_and_their_urls_are_never_logged_or_told(
    over_s3: EmbeddedRegistry, storage: Storage, material: Material, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    over_s3.add_base("tiny", material.base)
    url = storage.served().over(over_s3, storage.folder)
    with closing(RemoteRegistry(url)) as remote:
        publish(remote, MED, material.rank4)
        file = material.rank4.file
        with httpx.Client(base_url=url) as http:
            answer = http.get(f"/v1/files/{MED}@1", params={"name": file.name})
        assert (answer.status_code, answer.content) == (307, b"")
        assert answer.headers["ETag"] == f'"{file.sha256}"'
        assert answer.headers["Cache-Control"] == "no-store"
        assert "X-Amz-Signature" in answer.headers["Location"]
        with remote.open_file(MED, file.name) as stream:
            assert stream.read() == material.rank4.weights
    assert not (storage.folder / "uploads").exists()
    ours = [record.getMessage() for record in caplog.records if record.name != "werkzeug"]  # the S3 server's own
    assert any("/v1/uploads" in message for message in ours)
    assert not [message for message in ours if "X-Amz" in message]


def test_what_was_seen_in_bytes_that_were_refused_says_nothing_of_their_digest(
    over_s3: EmbeddedRegistry, material: Material
) -> None:
    over_s3.add_base("tiny", material.base)
    evil = material.rank4.variant(0).weights[:-4] + struct.pack("<f", float("nan"))

    def complete(content: bytes) -> None:
        assert over_s3.direct
        upload = over_s3.direct.begin(sha256(evil), len(evil))
        assert upload.next
        with closing(Presigned()) as presigned:
            presigned.put(upload.next, io.BytesIO(content))
        over_s3.direct.complete(upload)

    complete(evil)
    with pytest.raises(Invalid, match="are others"):
        complete(material.rank4.weights)
    submission = Submission(
        config=material.rank4.config,
        files=[FileDigest(WEIGHTS, len(evil), sha256(evil))],
        parent="base",
        found="explicit",
        level=None,
        note=None,
    )
    with pytest.raises(Invalid, match="1 NaN"):
        over_s3.publish(MED, submission)


REFUSED = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 44\r\n\r\n<Error><Code>SignatureDoesNotMatch</Code></E>"
OTHERS = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 32\r\n\r\n<Error><Code>BadDigest</Code></E>"


def test_a_store_that_refuses_is_told_in_one_sentence_without_the_url() -> None:
    with answering(REFUSED) as (url, asked), closing(Presigned()) as presigned:
        part = Part(number=1, url=f"{url}/bucket/key?X-Amz-Signature=secret", headers={"Content-Length": "23"})
        with pytest.raises(Unavailable, match=r"403 SignatureDoesNotMatch.*set LORATREE_DIRECT=0") as refused:
            presigned.put(part, io.BytesIO(CONTENT))
        assert url in str(refused.value)
        assert "secret" not in f"{refused.value!r}{part!r}"
        with pytest.raises(Unavailable), presigned.open(part.url):
            pass
    head = asked[0].partition(b"\r\n\r\n")[0].lower()
    assert sorted(line.partition(b":")[0] for line in head.splitlines()[1:]) == [b"content-length", b"host"]


def test_a_store_that_finds_other_bytes_is_believed() -> None:
    with answering(OTHERS) as (url, _), closing(Presigned()) as presigned:
        part = Part(number=1, url=url, headers={"Content-Length": "23"})
        with pytest.raises(Invalid, match="not those announced"):
            presigned.put(part, io.BytesIO(CONTENT))


@pytest.mark.parametrize("code", ["NoSuchUpload", "NoSuchKey"])  # S3's and Ceph's
def test_a_store_that_has_ended_the_upload_is_told_from_one_that_fails(code: str) -> None:
    body = f"<Error><Code>{code}</Code></Error>".encode()
    answer = b"HTTP/1.1 404 Not Found\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    with answering(answer) as (url, _), closing(Presigned()) as presigned:
        part = Part(number=1, url=url, headers={"Content-Length": "23"})
        with pytest.raises(NotFound, match=r"has ended there .* begin a new one"):
            presigned.put(part, io.BytesIO(CONTENT))
        with pytest.raises(Unavailable), presigned.open(url):
            pass


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9/?secret", "nonsense?secret", "http://[::1?secret", "file:///etc/secret"]
)
def test_a_url_that_leads_nowhere_is_one_sentence_without_it(url: str) -> None:
    with closing(Presigned()) as presigned:
        part = Part(number=1, url=url, headers={"Content-Length": "23"})
        with pytest.raises(Unavailable) as refused:
            presigned.put(part, io.BytesIO(CONTENT))
    assert "secret" not in str(refused.value)


def test_a_part_that_fails_is_sent_again_a_few_times_each_time_to_a_new_url(
    over_s3: EmbeddedRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert over_s3.direct
    urls: list[str] = []

    def failing(broken: int, upload: str, part: Part, content: IO[bytes]) -> None:
        urls.append(part.url)
        content.read(5)
        if len(urls) <= broken:
            raise Unavailable("the network is gone")
        with closing(Presigned()) as presigned:
            content.seek(0)
            presigned.put(part, content)

    give = partial(send, over_s3.direct, sha256=sha256(CONTENT), size=len(CONTENT))
    monkeypatch.setattr(over_s3.direct, "put", partial(failing, 2))
    give(io.BytesIO(CONTENT))
    assert len(urls) == 3
    urls.clear()
    monkeypatch.setattr(over_s3.direct, "put", partial(failing, 9))
    with pytest.raises(Unavailable, match="the network is gone"):
        give(io.BytesIO(CONTENT))
    assert len(urls) == 3


@contextmanager
def cutting(url: str, after: list[int]) -> Iterator[str]:
    """A relay before a server that cuts each of its answers off after so many bytes, while `after` has any."""
    server = httpx.URL(url)

    def serve(listening: socket.socket) -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection, socket.create_connection((server.host, server.port)) as behind:
                head = b""
                while b"\r\n\r\n" not in head:
                    head += connection.recv(65536)
                behind.sendall(head.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
                left = after.pop(0) if after else 10**12
                while left > 0 and (chunk := behind.recv(min(left, 65536))):
                    connection.sendall(chunk)
                    left -= len(chunk)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, args=(listening,))
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)
    thread.join(10)


@pytest.mark.parametrize("breaks", [1, 3])
def test_a_download_that_breaks_off_goes_on_where_it_was(
    storage: Storage, material: Material, tmp_path: Path, breaks: int
) -> None:
    with closing(open_fresh(storage.settings())) as registry:
        registry.add_base("tiny", material.base)
        file = publish(registry, MED, material.rank8).version.files[0]
        url = storage.served().over(registry, storage.folder)
        with cutting(url, [2000] * breaks) as relay, closing(RemoteRegistry(relay)) as remote:
            assert fetch(remote, tmp_path, MED, file).read_bytes() == material.rank8.weights


def test_a_download_that_breaks_off_again_and_again_is_given_up(
    storage: Storage, material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loratree_registry.workspace.fetch._PAUSE_S", 0)
    with closing(open_fresh(storage.settings())) as registry:
        registry.add_base("tiny", material.base)
        file = publish(registry, MED, material.rank8).version.files[0]
        url = storage.served().over(registry, storage.folder)
        with (
            cutting(url, [2000] * 99) as relay,
            closing(RemoteRegistry(relay)) as remote,
            pytest.raises(Unavailable, match="cannot be reached"),
        ):
            fetch(remote, tmp_path, MED, file)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_damaged_weight_is_sent_again_by_the_same_push_and_refused_by_pull(
    storage: Storage, material: Material, tmp_path: Path
) -> None:
    folder = tmp_path / "tiny"
    folder.mkdir()
    for name, content in material.checkpoint.items():
        (folder / name).write_bytes(content)
    with closing(open_fresh(storage.settings())) as registry:
        registry.add_base("tiny", material.base)
        weights = material.checkpoint["model.safetensors"]
        registry.upload(io.BytesIO(weights), sha256=sha256(weights), size=len(weights))
        name = sha256(weights).removeprefix("sha256:")
        blob = Path(storage.settings().blobs) / "sha256" / name[:2] / name
        blob.write_bytes(weights[:-1] + b"\x7f")
        assert push_base(registry, "tiny", folder).base.stored
        assert blob.read_bytes() == weights
        blob.write_bytes(weights[:-1] + b"\x7f")
        with pytest.raises(Corrupt, match=name):
            pull_base(registry, tmp_path / "home", "tiny", tmp_path / "out")
    assert not (tmp_path / "out").exists()
