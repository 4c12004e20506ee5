"""Trials of what an S3 server can do."""

import io
import threading
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from hashlib import sha256
from http.client import HTTPException
from typing import Any, Final
from uuid import uuid4

from loratree_registry.blobs.s3.bucket import Bucket
from loratree_registry.blobs.s3.client import error_code, s3_errors
from loratree_registry.blobs.s3.multipart import Multipart
from loratree_registry.blobs.s3.staged import FOLDER
from loratree_registry.core.times import in_utc
from loratree_registry.errors import LoratreeError

Answer = tuple[bool | None, str]

_CONTENT: Final = b"loratree tries what this server honours"
_SKEW_S: Final = 300  # S3 refuses requests at 900 s
_URL_S: Final = 60
_NOT_NEEDED: Final = "loratree does not rely on it: it reads back and hashes what is stored"


class Trial:
    """A bucket and one staged object in it; if the process is killed, a sweep removes the object."""

    def __init__(self, bucket: Bucket) -> None:
        self.bucket, self.name = bucket, FOLDER + uuid4().hex

    @property
    def at(self) -> dict[str, Any]:
        """The arguments by which boto3 finds the object."""
        return self.bucket.at(self.name)

    def put(self, **condition: Any) -> str | None:
        """Write the object; return the code of the server's refusal, or None if it accepted. Raises Unavailable."""
        client = self.bucket.client
        with s3_errors(self.bucket):
            try:
                client.put_object(Body=_CONTENT, **self.at, **condition)
            except client.exceptions.ClientError as error:
                if not condition:
                    raise
                return error_code(error)
            return None

    def read(self) -> bytes:
        """Return the object's bytes. Raises NotFound, Unavailable."""
        with self.bucket.open(self.name) as (_, stream):
            return stream.read()


@contextmanager
def trial(bucket: Bucket) -> Iterator[Trial]:
    """Yield a trial of `bucket`, and remove its object at the end."""
    tried = Trial(bucket)
    try:
        yield tried
    finally:
        with suppress(LoratreeError):
            bucket.delete(tried.name)


def _check_reachable(tried: Trial) -> Answer:
    tried.put()
    same = tried.read() == _CONTENT
    return same, f"{tried.bucket} {'gives back what is written' if same else 'gives back other bytes: check it'}"


def _check_listing(tried: Trial) -> Answer:
    listed = tried.name in (stored.name for stored in tried.bucket.list(tried.name))
    return listed, "what is written is listed" if listed else "what is written is not listed: gc would not find it"


def _check_conditional_writes(tried: Trial) -> Answer:
    tried.bucket.delete(tried.name)
    together = threading.Barrier(2)

    def race(_: int) -> str | None:
        together.wait()
        return tried.put(IfNoneMatch="*")

    with ThreadPoolExecutor(2) as pool:
        refusals = list(pool.map(race, range(2)))
    tried.put()
    if refusals.count(None) == 1:
        return True, "of two conditional writes at once, one is refused"
    return False, f"of two conditional writes at once, {refusals.count(None)} are taken; {_NOT_NEEDED}"


def _check_checksums(tried: Trial) -> Answer:
    if tried.put(ChecksumSHA256=b64encode(sha256(b"other bytes").digest()).decode()):
        return True, "a wrong ChecksumSHA256 is refused"
    return False, f"a wrong ChecksumSHA256 is accepted; {_NOT_NEEDED}"


def _check_multipart(tried: Trial) -> Answer:
    upload = Multipart.begin(tried.bucket, tried.name)
    with s3_errors(tried.bucket):
        tag = upload.put(1, io.BytesIO(_CONTENT))
    upload.complete({1: tag})
    same = tried.read() == _CONTENT
    return same, f"an object made of parts gives back {'the same' if same else 'other'} bytes"


def _check_copy(tried: Trial) -> Answer:
    with trial(tried.bucket) as other:
        tried.bucket.copy(tried.name, other.name, len(_CONTENT))
        same = other.read() == _CONTENT
    return same, f"a copy within the server gives back {'the same' if same else 'other'} bytes"


def _check_presigned(tried: Trial) -> Answer:
    signer = tried.bucket.signer
    put = signer.generate_presigned_url("put_object", tried.at | {"ContentLength": len(_CONTENT)}, _URL_S)
    get = signer.generate_presigned_url("get_object", tried.at, _URL_S)
    try:
        _send(put, _CONTENT, "PUT")
        same = _send(get, None, "GET") == _CONTENT
    except urllib.error.HTTPError as error:
        return False, f"a presigned URL is answered with {error.code}: clients need such URLs to send and read"
    except (OSError, HTTPException, ValueError):  # no HTTP, or no URL at all
        return None, "presigned URLs name a server that this machine cannot reach: try one from a client"
    return same, f"presigned URLs take and give {'the same' if same else 'other'} bytes"


def _check_ranges(tried: Trial) -> Answer:
    with s3_errors(tried.bucket):
        part = tried.bucket.client.get_object(**tried.at, Range="bytes=9-13")["Body"].read()
    right = part == _CONTENT[9:14]
    return right, "a range is read alone" if right else f"5 bytes asked for by range are answered with {len(part)}"


def _check_clock(tried: Trial) -> Answer:
    with s3_errors(tried.bucket):
        headers = tried.bucket.client.head_object(**tried.at)["ResponseMetadata"]["HTTPHeaders"]
        if "date" not in headers:
            return None, "the server sends no Date header, so its clock is not known"
        skew = abs(datetime.now(UTC) - in_utc(parsedate_to_datetime(headers["date"]))).total_seconds()
    if skew > _SKEW_S:
        return False, f"the server's clock is {skew:.0f} s away from this machine's: set both, S3 refuses 900 s"
    return True, f"the server's clock is within {skew:.0f} s of this machine's"


def _check_deleting(tried: Trial) -> Answer:
    tried.bucket.delete(tried.name)
    gone = tried.bucket.head(tried.name) is None
    return gone, "what is deleted is gone" if gone else "what is deleted is still there: check the bucket's policy"


S3_QUESTIONS: Final[Mapping[str, Callable[[Trial], Answer]]] = {
    "reachable": _check_reachable,
    "listing": _check_listing,
    "conditional writes": _check_conditional_writes,
    "checksums": _check_checksums,
    "multipart": _check_multipart,
    "copies": _check_copy,
    "presigned URLs": _check_presigned,
    "ranges": _check_ranges,
    "clock": _check_clock,
    "deleting": _check_deleting,
}


def _send(url: str, body: bytes | None, method: str) -> bytes:
    # Not httpx: it logs the URL, and anyone who reads the URL can write. The URL is our own, http or https.
    kind = {"Content-Type": "application/octet-stream"}
    request = urllib.request.Request(url, body, kind, method=method)  # noqa: S310
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
        content: bytes = answer.read()
        return content
