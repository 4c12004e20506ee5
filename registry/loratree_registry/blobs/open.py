"""The blob store that LORATREE_BLOBS names."""

import re
from pathlib import Path
from typing import Final

from loratree_registry.blobs.store import BlobStore
from loratree_registry.core.text import shortened, without_secrets
from loratree_registry.errors import Invalid

_SCHEME: Final = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.-]*:|[sS]3//|//)")  # of a URL, also a mistyped one
_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")


def open_blobs(location: str, *, endpoint: str | None = None, public_endpoint: str | None = None) -> BlobStore:
    """Return the store at `location`: a folder, or s3://bucket/prefix at the server `endpoint`. Opens no connection.

    `public_endpoint` is the address at which clients reach that server, if it is not `endpoint`.
    Raises Invalid if the location is neither a folder nor a bucket.
    """
    if location and not _SCHEME.match(location):
        from loratree_registry.blobs.local import LocalBlobStore

        return LocalBlobStore(Path(location))
    scheme, _, rest = location.partition("://")
    bucket, _, prefix = rest.partition("/")
    shown = shortened(without_secrets(location))
    if scheme != "s3" or not bucket:
        raise Invalid(
            f"LORATREE_BLOBS is {shown!r}: expected a folder or s3://bucket/prefix; write a folder with a colon in its "
            "name as ./name"
        )
    if (
        not _BUCKET.fullmatch(bucket) or without_secrets(location) != location
    ):  # `user:secret@bucket` would be shown with each error
        raise Invalid(
            f"LORATREE_BLOBS is {shown!r}, and a part is left out here that no bucket's name has, such as a user: "
            "expected s3://bucket/prefix; credentials are read from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    from loratree_registry.blobs.s3.store import S3BlobStore

    return S3BlobStore(bucket, prefix, endpoint=endpoint, public_endpoint=public_endpoint)
