"""The boto3 client, and its errors, each as one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from loratree_registry.core.text import shortened, without_secrets
from loratree_registry.errors import Invalid, LoratreeError, Unavailable

if TYPE_CHECKING:
    from botocore.exceptions import BotoCoreError, ClientError
    from mypy_boto3_s3 import S3Client

_CONNECT_SECONDS = 5
_READ_SECONDS = 60
_ATTEMPTS = 4
_BRIEF_SECONDS = 10  # with two attempts: a failure ends before SQLite's other writers give up, after 30 s
_FORBIDDEN = ("403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken")
_NO_BUCKET = ("404", "NoSuchBucket")
# What boto3's parsers, and we, raise for fields that are missing or have another form: a size "x", a time "yesterday".
_UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError)


def open_client(endpoint: str | None, setting: str = "LORATREE_S3_ENDPOINT", *, brief: bool = False) -> "S3Client":
    """Return a client with bounded timeouts and retries; with `brief`, a request ends within 30 s.

    `setting` is the name of the endpoint's setting. Raises Unavailable if boto3 is missing, Invalid.
    """
    if endpoint and without_secrets(endpoint) != endpoint:  # botocore's errors would show the secret
        raise Invalid(
            f"{setting} is {without_secrets(endpoint)!r} with a user or a query: remove them, "
            "credentials are read from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, InvalidRegionError
    except ImportError as error:
        raise Unavailable("blobs in S3 need boto3, which is not installed: install loratree[s3]") from error
    config = Config(
        connect_timeout=_CONNECT_SECONDS if not brief else _BRIEF_SECONDS / 4,
        read_timeout=_READ_SECONDS if not brief else _BRIEF_SECONDS,
        retries={"mode": "standard", "total_max_attempts": _ATTEMPTS if not brief else 2},
        # By default boto3 adds CRC32 trailers, which R2, GCS and others refuse; our own ChecksumSHA256 is still sent.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        signature_version="s3v4",  # the default signs some URLs by version 2, which does not sign the headers
        # Stored bytes are hashed when they are read back, so no signature need cover them: over http, one pass less.
        s3={"addressing_style": "path" if endpoint else "auto", "payload_signing_enabled": False},
        max_pool_connections=32,
    )
    try:
        return boto3.session.Session().client("s3", endpoint_url=endpoint, config=config)
    except (BotoCoreError, InvalidRegionError) as error:  # a profile or a region that is none, a file that is broken
        reason = shortened(" ".join(str(error).split()), 200)
        raise Invalid(
            f"boto3 cannot use its settings ({reason}): check AWS_PROFILE, AWS_DEFAULT_REGION and the files in ~/.aws"
        ) from error
    except ValueError as error:
        raise Invalid(
            f"{setting} is {without_secrets(endpoint or '')!r}: expected a URL such as http://127.0.0.1:9000"
        ) from error


@contextmanager
def s3_errors(store: object) -> Iterator[None]:
    """Turn an error of boto3 inside the block into Unavailable, and an answer that is not S3's as well."""
    try:
        from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
        from botocore.parsers import ResponseParserError
    except ImportError:
        yield  # the first use of the client raises an error with the remedy
        return
    try:
        yield
    except ClientError as error:
        raise Unavailable(_describe_answer(store, error)) from error
    except HTTPClientError as error:
        inner = error.kwargs.get("error")
        if isinstance(inner, LoratreeError):
            raise inner from None  # our own error, from reading the body to send
        raise Unavailable(_describe_failure(store, error)) from error
    except BotoCoreError as error:
        raise Unavailable(_describe_failure(store, error)) from error
    except (ResponseParserError, *_UNREADABLE) as error:
        raise Unavailable(not_s3(store, f"{type(error).__name__}: {error}")) from error


def not_s3(store: object, what: str) -> str:
    """Return the sentence for an answer that no S3 server gives, such as a listing without keys."""
    reason = shortened(" ".join(what.split()))
    return f"{store} answered with something that is not S3's ({reason}): check LORATREE_S3_ENDPOINT and that server"


def error_code(error: "ClientError") -> str:
    """Return the code of S3's answer, such as `NoSuchKey`; after a HEAD, which has no body, the HTTP status."""
    return error.response.get("Error", {}).get("Code", "")


def _describe_answer(store: object, error: "ClientError") -> str:
    code = error_code(error)
    if code in _FORBIDDEN:
        return f"{store} refused access ({code}): check the credentials and the bucket's policy"
    if code in _NO_BUCKET:
        return f"{store} does not exist: create the bucket or set LORATREE_BLOBS"
    return f"{store} answered {code or 'with an error'}: try again, or check that server"


def _describe_failure(store: object, error: "BotoCoreError") -> str:
    from botocore.exceptions import NoCredentialsError, PartialCredentialsError

    if isinstance(error, (NoCredentialsError, PartialCredentialsError)):
        return f"{store} has no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    reason = " ".join(str(error).split())
    return f"{store} cannot be used ({reason}): check LORATREE_BLOBS, LORATREE_S3_ENDPOINT and the network"
