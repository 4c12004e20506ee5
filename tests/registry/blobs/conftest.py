"""Every blob store there is, each empty, each with a way to spoil what it holds behind its back."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from loratree_registry.blobs import BlobStore
from loratree_registry.blobs.local import LocalBlobStore
from loratree_registry.blobs.s3 import S3BlobStore

BUCKET = "adapters"


@dataclass
class Held:
    """A store, and what only its owner may do: list its keys and overwrite a blob."""

    store: BlobStore
    names: Callable[[], list[str]]
    overwrite: Callable[[str, bytes], None]


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="session")
def admin(s3_server: str) -> Iterator[Any]:
    """The bucket's owner, who makes and spoils what the store under test holds."""
    session = boto3.Session(aws_access_key_id="key", aws_secret_access_key="secret", region_name="us-east-1")
    client = session.client("s3", endpoint_url=s3_server)
    yield client
    client.close()


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("CONFIG_FILE", "SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(f"AWS_{name}", str(tmp_path / "absent"))


@pytest.fixture(params=["local", "s3"])
def held(request: pytest.FixtureRequest) -> Held:
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
def s3_held(s3_server: str, admin: Any, credentials: None) -> Iterator[Held]:
    admin.create_bucket(Bucket=BUCKET)
    prefix = "some/prefix"

    def keys() -> list[str]:
        return [item["Key"] for item in admin.list_objects_v2(Bucket=BUCKET).get("Contents", [])]

    def names() -> list[str]:
        return sorted(key.removeprefix(prefix + "/") for key in keys())

    def overwrite(digest: str, content: bytes) -> None:
        admin.put_object(Bucket=BUCKET, Key=f"{prefix}/sha256/{digest[7:9]}/{digest[7:]}", Body=content)

    store = S3BlobStore(BUCKET, prefix, endpoint=s3_server)
    yield Held(store, names, overwrite)
    store.close()
    for key in keys():
        admin.delete_object(Bucket=BUCKET, Key=key)
    admin.delete_bucket(Bucket=BUCKET)
