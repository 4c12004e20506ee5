"""The objects and uploads that unfinished transfers left in a bucket."""

import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from datetime import datetime

from loratree_registry.blobs.s3.bucket import BLOBS, Bucket
from loratree_registry.blobs.s3.client import s3_errors
from loratree_registry.blobs.s3.multipart import Multipart
from loratree_registry.blobs.s3.staged import FOLDER
from loratree_registry.core.times import in_utc
from loratree_registry.errors import NotFound

_OURS = re.compile(rf"{FOLDER}[0-9a-f]{{32}}|{BLOBS}([0-9a-f]{{2}})/\1[0-9a-f]{{62}}")  # a bucket may be shared


def sweep(bucket: Bucket, *, before: datetime, keep: Collection[str], dry_run: bool) -> list[str]:
    """Remove the staged objects and multipart uploads that got no bytes since `before`, and return their names.

    S3's list of uploads may be out of date: the next sweep finds any that this one misses. Raises Unavailable.
    """
    staged = (stored for stored in bucket.list(FOLDER) if _OURS.fullmatch(stored.name) and stored.name not in keep)
    objects = [stored.name for stored in staged if stored.modified < before]
    begun = ((upload, began) for upload, began in _list_uploads(bucket) if upload.name not in keep)
    uploads = [upload for upload, began in begun if _find_last_arrival(upload, began) < before]
    if not dry_run:
        for name in objects:
            bucket.delete(name)
        for upload in uploads:
            with suppress(NotFound):
                upload.abort()
    return sorted({*objects, *(upload.name for upload in uploads)})


def _list_uploads(bucket: Bucket) -> Iterator[tuple[Multipart, datetime]]:
    """Yield loratree's own multipart uploads: of staged objects, and of large copies to a blob."""
    with s3_errors(bucket):
        pages = bucket.client.get_paginator("list_multipart_uploads")
        for folder in (FOLDER, BLOBS):
            for page in pages.paginate(Bucket=bucket.name, Prefix=bucket.key(folder)):
                for item in page.get("Uploads", []):
                    if _OURS.fullmatch(name := bucket.below(item["Key"])):
                        yield Multipart(bucket, name, str(item["UploadId"])), in_utc(item["Initiated"])


def _find_last_arrival(upload: Multipart, began: datetime) -> datetime:
    """Return when the last part arrived: an upload of a terabyte is in progress long after it began."""
    try:
        return max([began, *(part.modified for part in upload.parts().values())])
    except NotFound:
        return began
