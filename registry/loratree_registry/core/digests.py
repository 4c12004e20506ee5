"""Canonical JSON (RFC 8785, JCS) and the digests made of it."""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

from loratree_registry.core.progress import Tick, uncounted

DIGEST_PREFIX: Final = "sha256:"
VERSION_SCHEMA: Final = "loratree/version/1"
_CHUNK: Final = 1024 * 1024


def canonical_json(value: Any) -> bytes:
    """Serialise `value` by RFC 8785: sorted keys, no white space, ECMAScript numbers, UTF-8.

    Raises ValueError for what RFC 8785 cannot write: NaN, infinities, integers beyond 2**53 - 1, lone surrogates.
    """
    import rfc8785  # here, because the composer's arithmetic runs where it is not installed

    try:
        return rfc8785.dumps(value)
    except rfc8785.CanonicalizationError as error:
        raise ValueError(f"canonical JSON cannot hold it: {error}") from error


def digest_json(value: Any) -> str:
    """Return `sha256:` and 64 hexadecimal digits: the SHA-256 of `value` as canonical JSON."""
    return DIGEST_PREFIX + hashlib.sha256(canonical_json(value)).hexdigest()


def digest_stream(stream: BinaryIO, on_read: Tick = uncounted) -> tuple[str, int]:
    """Read `stream` to its end; return its digest and its size in bytes."""
    hasher, size = hashlib.sha256(), 0
    while chunk := stream.read(_CHUNK):
        hasher.update(chunk)
        size += len(chunk)
        on_read(len(chunk))
    return DIGEST_PREFIX + hasher.hexdigest(), size


@dataclass(frozen=True, slots=True, order=True)
class FileDigest:
    """A file's name, its size in bytes and the digest of its content."""

    name: str
    size: int
    sha256: str


def holds(stream: BinaryIO, file: FileDigest, on_read: Tick = uncounted) -> bool:
    """Return whether an open file of this machine has the size and the digest; one of another size is not read."""
    if os.fstat(stream.fileno()).st_size != file.size:
        return False
    return digest_stream(stream, on_read) == (file.sha256, file.size)


def version_digest(
    *, base_digest: str, pin_digest: str | None, config: dict[str, Any], files: Iterable[FileDigest]
) -> str:
    """Return the digest of a version: of its base, its pin, its canonical config and its files.

    The pin's digest covers its own pin in turn, so the digest of a leaf names its whole chain, as a commit names its
    history. Path, number, time and note are not covered.
    """
    return version_digest_of(canonical_json(config), base_digest=base_digest, pin_digest=pin_digest, files=files)


def version_digest_of(config: bytes, *, base_digest: str, pin_digest: str | None, files: Iterable[FileDigest]) -> str:
    """Return the digest of a version whose config is already canonical JSON, which takes far longer to write."""
    parts = [base_digest, file_list(files), pin_digest, VERSION_SCHEMA]
    base, listing, pin, schema = map(canonical_json, parts)
    document = b'{"base":%b,"config":%b,"files":%b,"pin":%b,"schema":%b}' % (base, config, listing, pin, schema)
    return DIGEST_PREFIX + hashlib.sha256(document).hexdigest()


def content_digest(config: dict[str, Any], files: Iterable[FileDigest]) -> str:
    """Return the digest of an adapter's config and files alone, the same whatever it was trained on."""
    return content_digest_of(canonical_json(config), files)


def content_digest_of(config: bytes, files: Iterable[FileDigest]) -> str:
    """Return the content digest of an adapter whose config is already canonical JSON."""
    document = b'{"config":%b,"files":%b}' % (config, canonical_json(file_list(files)))
    return DIGEST_PREFIX + hashlib.sha256(document).hexdigest()


def digest_problems(
    ref: str,
    *,
    digest: str,
    content: str,
    base_digest: str,
    pin_digest: str | None,
    config: dict[str, Any],
    files: list[FileDigest],
) -> list[str]:
    """Return a clause for each digest of the version `ref` that its record does not give; none if all match."""
    try:
        own = content_digest(config, files)
        named = version_digest(base_digest=base_digest, pin_digest=pin_digest, config=config, files=files)
    except ValueError as error:
        return [f"{ref} has a config without a canonical form: {error}"]
    problems = []
    if own != content:
        problems.append(f"{ref} has the content digest {content}, its config and files give {own}")
    if named != digest:
        problems.append(f"{ref} has the digest {digest}, its base, pin, config and files give {named}")
    return problems


def file_list(files: Iterable[FileDigest]) -> list[list[str | int]]:
    """Return the sorted [name, size, sha256] lists that the digests are made of."""
    return [[file.name, file.size, file.sha256] for file in sorted(files)]
