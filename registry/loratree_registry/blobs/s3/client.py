"""The boto3 client, and its errors said in one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from loratree_registry.core.text import without_secrets
from loratree_registry.errors import Invalid, LoratreeError, Unavailable

if TYPE_CHECKING:
    from botocore.exceptions import BotoCoreError, ClientError
    from mypy_boto3_s3 import S3Client

_CONNECT_SECONDS = 5
_READ_SECONDS = 60
_ATTEMPTS = 4
_BRIEF_SECONDS = 10  # and two attempts: what fails is over before SQLite's other writers give up, after 30
_FORBIDDEN = ("403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken")
_NO_BUCKET = ("404", "NoSuchBucket")


def open_client(endpoint: str | None, setting: str = "LORATREE_S3_ENDPOINT", *, brief: bool = False) -> "S3Client":
    """A client with bounded timeouts and retries, `brief` ones within 30 s; `setting` is what says the endpoint.

    Raises Unavailable where boto3 is missing, Invalid.
    """
    if endpoint and without_secrets(endpoint) != endpoint:  # botocore would print it whole when it fails
        raise Invalid(
            f"{setting} is {without_secrets(endpoint)!r} with a user or a query: take that out, "
            "credentials are read from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    try:
        import boto3
        from botocore.config import Config
    except ImportError as error:
        raise Unavailable("blobs in S3 need boto3, which is not installed: install loratree[s3]") from error
    config = Config(
        connect_timeout=_CONNECT_SECONDS if not brief else _BRIEF_SECONDS / 4,
        read_timeout=_READ_SECONDS if not brief else _BRIEF_SECONDS,
        retries={"mode": "standard", "total_max_attempts": _ATTEMPTS if not brief else 2},
        # Else boto3 adds CRC32 trailers, which R2, GCS and others refuse; our own ChecksumSHA256 still travels.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        signature_version="s3v4",  # the default signs some URLs by version 2, which leaves the headers out
        # What is stored is hashed when it is read back, so the signature need not cover it: one pass less over http.
        s3={"addressing_style": "path" if endpoint else "auto", "payload_signing_enabled": False},
        max_pool_connections=32,
    )
    try:
        return boto3.session.Session().client("s3", endpoint_url=endpoint, config=config)
    except ValueError as error:
        raise Invalid(
            f"{setting} is {without_secrets(endpoint or '')!r}: expected a URL such as http://127.0.0.1:9000"
        ) from error


@contextmanager
def s3_errors(store: object) -> Iterator[None]:
    """Turns what boto3 raises inside the block into Unavailable."""
    try:
        from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
    except ImportError:
        yield  # without boto3 the first use of the client raises, with the remedy
        return
    try:
        yield
    except ClientError as error:
        raise Unavailable(_answered(store, error)) from error
    except HTTPClientError as error:
        inner = error.kwargs.get("error")
        if isinstance(inner, LoratreeError):
            raise inner from None  # the body that was sent could not be read to its end
        raise Unavailable(_failed(store, error)) from error
    except BotoCoreError as error:
        raise Unavailable(_failed(store, error)) from error


def error_code(error: "ClientError") -> str:
    """The code that S3 answered with, such as `NoSuchKey`, or the status where a HEAD has no body."""
    return error.response.get("Error", {}).get("Code", "")


def _answered(store: object, error: "ClientError") -> str:
    code = error_code(error)
    if code in _FORBIDDEN:
        return f"{store} refused access ({code}): check the credentials and the bucket's policy"
    if code in _NO_BUCKET:
        return f"{store} does not exist: create the bucket or set LORATREE_BLOBS"
    return f"{store} answered {code or 'with an error'}: try again, or check that server"


def _failed(store: object, error: "BotoCoreError") -> str:
    from botocore.exceptions import NoCredentialsError, PartialCredentialsError

    if isinstance(error, (NoCredentialsError, PartialCredentialsError)):
        return f"{store} needs credentials and none were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    reason = " ".join(str(error).split())
    return f"{store} cannot be used ({reason}): check LORATREE_BLOBS, LORATREE_S3_ENDPOINT and the network"
