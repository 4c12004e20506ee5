"""What goes wrong between an S3 server and the store, each in one sentence."""

import io
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import boto3
import pytest
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from loratree_registry.blobs import parts, store
from loratree_registry.blobs.s3 import bucket as s3_bucket
from loratree_registry.blobs.s3 import client as s3_client
from loratree_registry.blobs.s3 import staged as s3_staged
from loratree_registry.blobs.s3.store import S3BlobStore
from loratree_registry.database.engine import LOCK_TIMEOUT_S
from loratree_registry.errors import Invalid, Unavailable
from tests.s3 import S3Server

from .conftest import PREFIX, HeldInS3
from .test_blob_contract import CONTENT, FAR, digest_of

DIGEST = digest_of(CONTENT)
BUCKET = "weather"
Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def put(store: S3BlobStore, content: bytes = CONTENT) -> None:
    store.put(digest_of(content), len(content), io.BytesIO(content))


class Weather:
    """Stands before moto's server and answers in its place while `answers` lasts; notes what was asked."""

    def __init__(self, server: Wsgi) -> None:
        self.server = server
        self.answers: list[tuple[str, str]] = []
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.change_body: Callable[[bytes], bytes] | None = None
        self.lose_completion = False

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        headers = {key[5:].replace("_", "-").lower(): value for key, value in environ.items() if key[:5] == "HTTP_"}
        self.asked.append((environ["REQUEST_METHOD"], headers))
        if environ["REQUEST_METHOD"] == "PUT":
            if self.answers:
                status, code = self.answers.pop(0)
                start_response(status, [("Content-Type", "application/xml")])
                return [f"<Error><Code>{code}</Code><Message>weather</Message></Error>".encode()]
            if self.change_body:
                body = self.change_body(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
                environ["wsgi.input"] = io.BytesIO(body)
        if self.lose_completion and environ["REQUEST_METHOD"] == "POST" and "uploadId=" in environ["QUERY_STRING"]:
            self.lose_completion = False
            list(self.server(environ, lambda *_: None))  # it is carried out, its answer is lost, and boto3 asks again
            start_response("404 Not Found", [("Content-Type", "application/xml")])
            return [b"<Error><Code>NoSuchUpload</Code><Message>weather</Message></Error>"]
        return self.server(environ, start_response)


@pytest.fixture
def weather(credentials: None) -> Iterator[tuple[Weather, S3BlobStore]]:
    weather = Weather(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, weather, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    client = boto3.client("s3", endpoint_url=url, region_name="us-east-1")
    client.create_bucket(Bucket=BUCKET)
    store = S3BlobStore(BUCKET, endpoint=url)
    weather.asked.clear()
    yield weather, store
    store.close()
    for item in client.list_objects_v2(Bucket=BUCKET).get("Contents", []):
        client.delete_object(Bucket=BUCKET, Key=item["Key"])
    client.delete_bucket(Bucket=BUCKET)
    client.close()
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_put_carries_its_sha256_and_no_other_checksum(weather: tuple[Weather, S3BlobStore]) -> None:
    sky, store = weather
    put(store)
    put_headers, _ = [headers for method, headers in sky.asked if method == "PUT"]
    assert [name for name in put_headers if "checksum" in name or "trailer" in name] == ["x-amz-checksum-sha256"]


def test_a_server_that_fails_for_a_moment_is_asked_again(weather: tuple[Weather, S3BlobStore]) -> None:
    sky, store = weather
    sky.answers = [("503 Slow Down", "SlowDown")]
    put(store)
    assert store.size(DIGEST) == len(CONTENT)


@pytest.mark.parametrize("large", ["staged", "copied"])
def test_a_completion_whose_answer_was_lost_is_one(
    weather: tuple[Weather, S3BlobStore], monkeypatch: pytest.MonkeyPatch, large: str
) -> None:
    sky, held = weather
    if large == "staged":
        for module in (store, s3_staged, parts):
            monkeypatch.setattr(module, "PART", 5 * 1024**2)
    else:
        monkeypatch.setattr(s3_bucket, "COPY_PART", 5 * 1024**2)
    content = os.urandom(6 * 1024**2)
    sky.lose_completion = True
    put(held, content)
    assert not sky.lose_completion
    with held.open(digest_of(content)) as stream:
        assert stream.read() == content


def test_a_server_that_keeps_other_bytes_than_it_was_sent_is_caught(weather: tuple[Weather, S3BlobStore]) -> None:
    sky, store = weather
    sky.change_body = bytes.upper
    with pytest.raises(Unavailable, match="gave back other bytes"):
        put(store)
    assert store.size(DIGEST) is None


@pytest.mark.parametrize("code", ["AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"])
def test_a_refused_access_is_told(weather: tuple[Weather, S3BlobStore], code: str) -> None:
    sky, store = weather
    sky.answers = [("403 Forbidden", code)]
    with pytest.raises(Unavailable, match=rf"refused access \({code}\): check the credentials"):
        put(store)


def test_a_bucket_that_does_not_exist_is_told_by_every_verb(moto_server: S3Server, credentials: None) -> None:
    store = S3BlobStore("nowhere", endpoint=moto_server.endpoint)
    verbs: list[Callable[[], object]] = [
        lambda: put(store),
        lambda: store.size(DIGEST),
        lambda: store.delete(DIGEST),
        lambda: store.open(DIGEST).__enter__(),
    ]
    for verb in verbs:
        with pytest.raises(Unavailable, match=r"s3://nowhere at http.* does not exist: create the bucket"):
            verb()
    store.close()


def test_a_server_that_does_not_answer_holds_no_writer_up_while_a_blob_is_removed(
    credentials: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 2 * s3_client._BRIEF_SECONDS < LOCK_TIMEOUT_S
    monkeypatch.setattr(s3_client, "_BRIEF_SECONDS", 0.4)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        store = S3BlobStore("b", endpoint=f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(Unavailable, match="Read timeout"):
            store.delete(DIGEST)
        store.close()
    assert time.monotonic() - began < 10


def test_an_unreachable_server_is_told(credentials: None) -> None:
    store = S3BlobStore("b", endpoint="http://127.0.0.1:9")
    with pytest.raises(Unavailable, match=r"cannot be used .*127\.0\.0\.1:9.*LORATREE_S3_ENDPOINT"):
        store.size(DIGEST)
    store.close()


def test_missing_credentials_are_told(
    credentials: None, monkeypatch: pytest.MonkeyPatch, moto_server: S3Server
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    store = S3BlobStore(BUCKET, endpoint=moto_server.endpoint)
    with pytest.raises(Unavailable, match="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        store.size(DIGEST)
    store.close()


def test_an_endpoint_that_is_no_url_is_told(credentials: None) -> None:
    with pytest.raises(Invalid, match="LORATREE_S3_ENDPOINT is 'nonsense': expected a URL"):
        S3BlobStore("b", endpoint="nonsense").size(DIGEST)


@pytest.mark.parametrize("endpoint", ["http://u:sekret@127.0.0.1:1", "http://127.0.0.1:1/?token=sekret"])
def test_an_endpoint_with_a_password_is_refused_and_not_shown(credentials: None, endpoint: str) -> None:
    store = S3BlobStore("b", endpoint=endpoint)
    with pytest.raises(Invalid, match="credentials are read from AWS_ACCESS_KEY_ID") as error:
        store.size(DIGEST)
    assert "sekret" not in f"{error.value}{store}"


def test_a_bucket_name_that_s3_forbids_is_told(moto_server: S3Server, credentials: None) -> None:
    store = S3BlobStore("No Such/Name", endpoint=moto_server.endpoint)
    with pytest.raises(Unavailable, match=r"(?s)\A[^\n]*check LORATREE_BLOBS[^\n]*\Z"):
        store.size(DIGEST)
    store.close()


def test_a_missing_boto3_is_told_with_what_to_install() -> None:
    program = f"""
import sys
sys.modules["boto3"] = sys.modules["botocore"] = None
from loratree_registry.blobs.s3.store import S3BlobStore
from loratree_registry.errors import Unavailable
try:
    S3BlobStore("b").size({DIGEST!r})
except Unavailable as error:
    sys.exit("install loratree[s3]" not in str(error))
"""
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_a_blob_of_any_size_is_held_in_a_few_megabytes_of_memory(moto_server: S3Server, credentials: None) -> None:
    held = S3BlobStore("large", endpoint=moto_server.endpoint)
    boto3.client("s3", endpoint_url=moto_server.endpoint, region_name="us-east-1").create_bucket(Bucket="large")
    program = f"""
import hashlib, io, resource, sys
from pathlib import Path
from loratree_registry.blobs.s3.store import S3BlobStore

SIZE = 64 * 1024 * 1024

class Zeros(io.RawIOBase):
    left = SIZE
    def readable(self): return True
    def readinto(self, buffer):
        count = min(len(buffer), self.left)
        buffer[:count] = bytes(count)
        self.left -= count
        return count

digest = hashlib.sha256()
for _ in range(64):
    digest.update(bytes(1024 * 1024))
store = S3BlobStore("large", endpoint={moto_server.endpoint!r})
store.put("sha256:" + hashlib.sha256(b"").hexdigest(), 0, io.BytesIO())
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
store.put("sha256:" + digest.hexdigest(), SIZE, Zeros())
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(grown, file=sys.stderr)
sys.exit(grown > 24 * 1024)
"""
    assert subprocess.run([sys.executable, "-c", program], cwd=Path.cwd()).returncode == 0
    held.close()


def test_a_server_that_refuses_the_checksum_of_wrong_bytes_is_believed_only_when_it_is_right(
    weather: tuple[Weather, S3BlobStore],
) -> None:
    sky, store = weather
    sky.answers = [("400 Bad Request", "BadDigest")]
    with pytest.raises(Invalid, match="hash the file again"):
        store.put(DIGEST, len(CONTENT), io.BytesIO(CONTENT.upper()))
    sky.answers = [("400 Bad Request", "BadDigest")]
    with pytest.raises(Unavailable, match="answered BadDigest"):
        put(store)


def test_a_server_that_fails_while_it_copies_leaves_no_blob(weather: tuple[Weather, S3BlobStore]) -> None:
    sky, store = weather

    def fail_the_copy(stream: BinaryIO) -> None:
        sky.answers = [("400 Bad Request", "Weather")]

    with pytest.raises(Unavailable, match="answered Weather: try again"):
        store.put(DIGEST, len(CONTENT), io.BytesIO(CONTENT), read_back=fail_the_copy)
    assert store.size(DIGEST) is None
    assert store.sweep(before=FAR) == []


def test_a_large_blob_is_copied_in_parts(moto_held: HeldInS3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_bucket, "COPY_PART", 5 * 1024**2)
    content = os.urandom(11 * 1024**2)
    put(moto_held.store, content)
    with moto_held.store.open(digest_of(content)) as stream:
        assert stream.read() == content
    assert moto_held.admin.head_object(Bucket="adapters", Key=f"{PREFIX}/{moto_held.names()[0]}")["ETag"][-3:] == '-3"'


def test_a_blob_of_more_parts_than_s3_takes_is_refused_before_anything_is_sent(moto_held: HeldInS3) -> None:
    with pytest.raises(Invalid, match="takes at most 671088640000 bytes a blob"):
        moto_held.store.begin("0" * 32, DIGEST, 671_088_640_001)
    assert moto_held.uploads() == []


def test_a_file_that_is_cut_off_while_it_is_sent_is_told_and_leaves_nothing(
    moto_held: HeldInS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    class CutOff(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return b""

    with pytest.raises(Invalid, match="expected 23 bytes, got 0"):
        moto_held.store.put(DIGEST, len(CONTENT), CutOff(CONTENT))
    assert moto_held.names() == []


def test_clients_are_sent_to_the_public_endpoint(moto_held: HeldInS3) -> None:
    store = S3BlobStore("adapters", endpoint=moto_held.server.endpoint, public_endpoint="https://s3.example.org")
    transfer = store.begin("0" * 32, DIGEST, len(CONTENT))
    for url in (store.link(DIGEST), store.target(transfer, 1).url):
        assert url.startswith("https://s3.example.org/adapters/")
    assert store.size(DIGEST) is None
    store.close()


def test_a_public_endpoint_that_is_no_url_is_told(credentials: None) -> None:
    with pytest.raises(Invalid, match="LORATREE_S3_PUBLIC_ENDPOINT is 'nonsense': expected a URL"):
        S3BlobStore("b", public_endpoint="nonsense").link(DIGEST)


def test_no_url_that_a_client_is_given_is_logged(moto_held: HeldInS3, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    transfer = moto_held.store.begin("0" * 32, DIGEST, len(CONTENT))
    moto_held.store.target(transfer, 1)
    moto_held.store.link(DIGEST)
    assert "Signature" not in caplog.text


# Answers to a listing that no S3 server gives, each in the place of `…` in a listing of one object.
KEY = f"<Key>sha256/{DIGEST[7:9]}/{DIGEST[7:]}</Key>"
GOOD = '<ETag>"e"</ETag><Size>7</Size><LastModified>2026-01-31T09:30:00.000Z</LastModified>'
LISTINGS = {
    "a time that is no time": GOOD.replace("2026-01-31T09:30:00.000Z", "yesterday"),
    "a time past the last one": GOOD.replace("2026-01-31T09:30:00.000Z", "9999-12-31T23:59:00-23:59"),
    "no time": GOOD.partition("<LastModified>")[0],
    "a size that is no number": GOOD.replace(">7<", ">seven<"),
    "a size below zero": GOOD.replace(">7<", ">-7<"),
    "no size": GOOD.replace("<Size>7</Size>", ""),
    "no tag": GOOD.replace('<ETag>"e"</ETag>', ""),
}
WHOLE = {
    "no XML": "weather",
    "XML that is cut off": "<ListBucketResult><Contents>",
    "a page of HTML": "<html><body>Sign in</body></html>",
    "an endless listing of nothing": "<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>",
    "the same page for ever": f"<ListBucketResult><IsTruncated>true</IsTruncated><Contents>{KEY}{GOOD}</Contents>"
    "</ListBucketResult>",
    "neither the last page nor not": "<ListBucketResult></ListBucketResult>",
    "no key": f"<ListBucketResult><IsTruncated>false</IsTruncated><Contents>{GOOD}</Contents></ListBucketResult>",
}
WHOLE |= {
    name: f"<ListBucketResult><IsTruncated>false</IsTruncated><Contents>{KEY}{item}</Contents></ListBucketResult>"
    for name, item in LISTINGS.items()
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_damaged_listing_is_the_stores_fault_in_one_sentence(
    weather: tuple[Weather, S3BlobStore], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    server, store = weather

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "application/xml")])
        return [WHOLE[name].encode()]

    with monkeypatch.context() as patched:
        patched.setattr(server, "server", answer)
        with pytest.raises(Unavailable, match=r"check LORATREE_S3_ENDPOINT|or check that server") as refused:
            list(store.list_blobs())
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "headers",
    [
        [("Content-Length", "7")],
        [("Content-Length", "7"), ("ETag", '"e"'), ("Last-Modified", "yesterday")],
        [("ETag", '"e"'), ("Last-Modified", "Fri, 31 Dec 9999 23:59:59 -2359"), ("Content-Length", "7")],
    ],
)
def test_an_answer_without_the_headers_of_an_object_is_the_stores_fault(
    weather: tuple[Weather, S3BlobStore], monkeypatch: pytest.MonkeyPatch, headers: list[tuple[str, str]]
) -> None:
    server, store = weather

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_response("200 OK", headers)
        return [b"" if environ["REQUEST_METHOD"] == "HEAD" else b"weather"]

    with monkeypatch.context() as patched:
        patched.setattr(server, "server", answer)
        with pytest.raises(Unavailable, match="check LORATREE_S3_ENDPOINT"):
            store.size(DIGEST)
        with pytest.raises(Unavailable, match="check LORATREE_S3_ENDPOINT"), store.open(DIGEST):
            pass
