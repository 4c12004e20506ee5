"""Every blob store there is, each empty, each with a way to spoil what it holds behind its back."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from loratree_registry.blobs.local import LocalBlobStore
from loratree_registry.blobs.s3.store import S3BlobStore
from loratree_registry.blobs.store import BlobStore
from tests import ceph
from tests.s3 import S3Server, moto

BUCKET = "adapters"
PREFIX = "some/prefix"

# The servers that the S3 store is tested on, and the stores that the contract suite runs against.
SERVERS = ["moto", *(["ceph"] if ceph.wanted() else [])]
STORES = ["local", *SERVERS]


@dataclass
class Held:
    """A store, and what only its owner may do: list its keys and overwrite a blob."""

    store: BlobStore
    names: Callable[[], list[str]]
    overwrite: Callable[[str, bytes], None]


@dataclass
class HeldInS3(Held):
    """A store in S3, its server and its owner's client."""

    store: S3BlobStore
    server: S3Server
    admin: Any

    def uploads(self) -> list[str]:
        """The keys of the multipart uploads that are not completed."""
        return [upload["Key"] for upload in self._uploads()]

    def empty(self) -> None:
        """Removes everything."""
        for name in self.names():
            self.admin.delete_object(Bucket=BUCKET, Key=f"{PREFIX}/{name}")
        for upload in self._uploads():
            self.admin.abort_multipart_upload(Bucket=BUCKET, Key=upload["Key"], UploadId=upload["UploadId"])

    def _uploads(self) -> list[dict[str, str]]:
        return self.admin.list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])


@pytest.fixture(scope="session")
def moto_server() -> Iterator[S3Server]:
    with moto() as server:
        yield server


@pytest.fixture(scope="session")
def moto_bucket(moto_server: S3Server) -> Iterator[HeldInS3]:
    yield from a_bucket(moto_server)


@pytest.fixture(scope="session")
def ceph_bucket(ceph_server: S3Server) -> Iterator[HeldInS3]:
    yield from a_bucket(ceph_server)


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in S3Server("", "key", "secret").environment.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(params=STORES)
def held(request: pytest.FixtureRequest) -> Held:
    return request.getfixturevalue(f"{request.param}_held")


@pytest.fixture(params=SERVERS)
def s3_held(request: pytest.FixtureRequest) -> HeldInS3:
    return request.getfixturevalue(f"{request.param}_held")


@pytest.fixture
def local_held(tmp_path: Path) -> Held:
    root = tmp_path / "blobs"

    def names() -> list[str]:
        return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())

    def overwrite(digest: str, content: bytes) -> None:
        (root / "sha256" / digest[7:9] / digest[7:]).write_bytes(content)

    return Held(LocalBlobStore(root), names, overwrite)


@pytest.fixture
def moto_held(moto_bucket: HeldInS3, credentials: None) -> Iterator[HeldInS3]:
    yield moto_bucket
    moto_bucket.empty()


@pytest.fixture
def ceph_held(ceph_bucket: HeldInS3, credentials: None) -> Iterator[HeldInS3]:
    yield ceph_bucket
    ceph_bucket.empty()


def a_bucket(server: S3Server) -> Iterator[HeldInS3]:
    """A bucket and a store that speaks to it: making boto3's clients takes longer than most tests."""
    admin = server.client()
    admin.create_bucket(Bucket=BUCKET)

    def names() -> list[str]:
        found = admin.list_objects_v2(Bucket=BUCKET).get("Contents", [])
        return sorted(item["Key"].removeprefix(PREFIX + "/") for item in found)

    def overwrite(digest: str, content: bytes) -> None:
        admin.put_object(Bucket=BUCKET, Key=f"{PREFIX}/sha256/{digest[7:9]}/{digest[7:]}", Body=content)

    store = S3BlobStore(BUCKET, PREFIX, endpoint=server.endpoint)
    with pytest.MonkeyPatch.context() as environment:
        for name, value in server.environment.items():
            environment.setenv(name, value)
        store.bucket.client  # noqa: B018 - takes the credentials that there are now
    yield HeldInS3(store, names, overwrite, server, admin)
    store.close()
    admin.close()
