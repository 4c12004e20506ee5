"""The blob store that LORATREE_BLOBS names."""

from pathlib import Path

from loratree_registry.blobs.store import BlobStore
from loratree_registry.errors import Invalid


def open_blobs(location: str, *, endpoint: str | None = None, public_endpoint: str | None = None) -> BlobStore:
    """Return the store at `location`: a folder, or s3://bucket/prefix at the server `endpoint`. Opens no connection.

    `public_endpoint` is the address at which clients reach that server, if it is not `endpoint`.
    Raises Invalid if the location is neither a folder nor a bucket.
    """
    scheme, separator, rest = location.partition("://")
    if not separator and location:
        from loratree_registry.blobs.local import LocalBlobStore

        return LocalBlobStore(Path(location))
    bucket, _, prefix = rest.partition("/")
    if scheme != "s3" or not bucket:
        raise Invalid(f"LORATREE_BLOBS is {location!r}: expected a folder or s3://bucket/prefix")
    from loratree_registry.blobs.s3.store import S3BlobStore

    return S3BlobStore(bucket, prefix, endpoint=endpoint, public_endpoint=public_endpoint)
