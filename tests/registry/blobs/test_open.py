"""From LORATREE_BLOBS to a store."""

import subprocess
import sys
import traceback
from pathlib import Path

import pytest

from loratree_registry.blobs.local import LocalBlobStore
from loratree_registry.blobs.open import open_blobs
from loratree_registry.blobs.s3.store import S3BlobStore
from loratree_registry.errors import Invalid


def test_a_plain_location_is_a_folder() -> None:
    store = open_blobs("/srv/blobs")
    assert isinstance(store, LocalBlobStore)
    assert store.root == Path("/srv/blobs")


@pytest.mark.parametrize(
    ("location", "bucket", "prefix"),
    [("s3://adapters", "adapters", ""), ("s3://adapters/", "adapters", ""), ("s3://adapters/a/b/", "adapters", "a/b")],
)
def test_an_s3_location_is_a_bucket_and_a_prefix(location: str, bucket: str, prefix: str) -> None:
    store = open_blobs(location, endpoint="http://127.0.0.1:1")
    assert isinstance(store, S3BlobStore)
    assert (store.bucket.name, store.bucket.prefix, store.bucket.endpoint) == (bucket, prefix, "http://127.0.0.1:1")


MISTYPED = ["s3:/bucket", "s3:bucket", "S3://bucket", "s3//bucket", " s3://bucket", "//bucket/x", "http:/h/x"]
OTHERS = [
    "",
    "gs://bucket/x",
    "s3://",
    "s3:///prefix",
    "https://example.org/blobs",
    "file:///srv/blobs",
    "postgres:/h/x",
]


@pytest.mark.parametrize("location", MISTYPED + OTHERS)
def test_another_location_is_refused(location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Invalid, match="expected a folder or s3://bucket/prefix"):
        open_blobs(location)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "location",
    [
        "s3://user:sekret@bucket/prefix",
        "s3://user:se/kret@bucket",
        "s3:///user:sekret@bucket",
        "s3:user:sekret@bucket",
        "s3://bucket/prefix?secret=sekret",
        "https://user:sekret@host/x",
        "S3://user:sekret@bucket",
        "//user:sekret@bucket",
    ],
)
def test_no_location_with_a_secret_is_taken_or_shown(location: str) -> None:
    with pytest.raises(Invalid) as error:
        open_blobs(location)
    shown = "".join(traceback.format_exception(error.value))
    assert "kret" not in str(error.value)
    assert "AWS_SECRET_ACCESS_KEY" in shown or "expected a folder or s3://bucket/prefix" in shown
    assert len(str(error.value)) <= 540


@pytest.mark.parametrize("location", ["./a:b", "/srv/a:b", "blobs", "a/s3:b", "~x"])
def test_a_folder_may_have_a_colon_behind_a_slash(location: str) -> None:
    assert isinstance(open_blobs(location), LocalBlobStore)


def test_a_folder_store_loads_no_boto3() -> None:
    program = (
        "import sys; from loratree_registry.blobs.open import open_blobs; open_blobs('/x'); open_blobs('s3://b');"
        "sys.exit(bool({'boto3', 'botocore'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
