"""From LORATREE_BLOBS to a store."""

import subprocess
import sys
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


@pytest.mark.parametrize("location", ["", "gs://bucket/x", "s3://", "s3:///prefix", "https://example.org/blobs"])
def test_another_location_is_refused(location: str) -> None:
    with pytest.raises(Invalid, match="expected a folder or s3://bucket/prefix"):
        open_blobs(location)


def test_a_folder_store_loads_no_boto3() -> None:
    program = (
        "import sys; from loratree_registry.blobs.open import open_blobs; open_blobs('/x'); open_blobs('s3://b');"
        "sys.exit(bool({'boto3', 'botocore'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
