"""Canonical JSON (RFC 8785, JCS) and the digests made of it; standard library only."""

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, BinaryIO, Final

DIGEST_PREFIX = "sha256:"

_MAX_SAFE_INTEGER = 2**53 - 1

_CHUNK = 1024 * 1024


def canonical_json(value: Any) -> bytes:
    """Serialises `value` by RFC 8785: sorted keys, no white space, ECMAScript numbers, UTF-8.

    Raises ValueError for what JCS has no form for: NaN, infinities, integers beyond 2**53 - 1, lone surrogates.
    """
    return _write(value).encode("utf-8")


def digest_json(value: Any) -> str:
    """The digest `sha256:<64 hex digits>` of `value`'s canonical JSON."""
    return DIGEST_PREFIX + hashlib.sha256(canonical_json(value)).hexdigest()


def digest_stream(stream: BinaryIO) -> tuple[str, int]:
    """Reads `stream` to its end and returns its digest and its size in bytes."""
    hasher, size = hashlib.sha256(), 0
    while chunk := stream.read(_CHUNK):
        hasher.update(chunk)
        size += len(chunk)
    return DIGEST_PREFIX + hasher.hexdigest(), size


def _write(value: Any) -> str:
    if value is None or isinstance(value, (bool, str)):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, int):
        return _integer(value)
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(_write(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{_write(key)}:{_write(value[key])}" for key in _ordered(value)) + "}"
    raise ValueError(f"canonical JSON has no form for {type(value).__name__}")


def _ordered(mapping: dict[Any, Any]) -> list[str]:
    if not all(isinstance(key, str) for key in mapping):
        raise ValueError("canonical JSON takes strings alone as keys")
    return sorted(mapping, key=lambda key: key.encode("utf-16-be"))


def _integer(value: int) -> str:
    if abs(value) > _MAX_SAFE_INTEGER:
        raise ValueError(f"canonical JSON holds integers to 2**53 - 1 exactly, got {value}")
    return str(value)


def _number(value: float) -> str:
    """A float as ECMAScript's Number::toString prints it (RFC 8785, section 3.2.2.3)."""
    if not math.isfinite(value):
        raise ValueError(f"canonical JSON has no form for {value}")
    if value == 0:
        return "0"
    sign, digit_tuple, exponent = Decimal(repr(value)).normalize().as_tuple()
    digits = "".join(map(str, digit_tuple))
    point = len(digits) + int(exponent)  # where the decimal point stands, counted from the first digit
    return ("-" if sign else "") + _place(digits, point)


def _place(digits: str, point: int) -> str:
    if len(digits) <= point <= 21:
        return digits + "0" * (point - len(digits))
    if 0 < point <= 21:
        return f"{digits[:point]}.{digits[point:]}"
    if -6 < point <= 0:
        return "0." + "0" * -point + digits
    mantissa = digits[0] + (f".{digits[1:]}" if len(digits) > 1 else "")
    return f"{mantissa}e{'+' if point > 0 else '-'}{abs(point - 1)}"


VERSION_SCHEMA: Final = "loratree/version/1"


@dataclass(frozen=True, slots=True, order=True)
class FileDigest:
    """A file's name, its size in bytes and the digest of its content."""

    name: str
    size: int
    sha256: str


def version_digest(
    *, base_digest: str, pin_digest: str | None, config: dict[str, Any], files: Iterable[FileDigest]
) -> str:
    """Names a version: its base, the version it was trained on, its canonical config and its files.

    Path, number, time and notes stay outside, so a leaf's digest names its whole pinned chain.
    """
    return digest_json(
        {
            "schema": VERSION_SCHEMA,
            "base": base_digest,
            "pin": pin_digest,
            "config": config,
            "files": file_list(files),
        }
    )


def content_digest(config: dict[str, Any], files: Iterable[FileDigest]) -> str:
    """Names an adapter's own content, whatever it was trained on."""
    return digest_json({"config": config, "files": file_list(files)})


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
    """What of a version is not as its digests say, a clause each that names it by `ref`; none where all is well."""
    try:
        own = content_digest(config, files)
        named = version_digest(base_digest=base_digest, pin_digest=pin_digest, config=config, files=files)
    except ValueError as error:
        return [f"{ref} has a config without a canonical form: {error}"]
    found = []
    if own != content:
        found.append(f"{ref} has the content digest {content}, its config and files give {own}")
    if named != digest:
        found.append(f"{ref} has the digest {digest}, its base, pin, config and files give {named}")
    return found


def file_list(files: Iterable[FileDigest]) -> list[list[str | int]]:
    """The sorted [name, size, sha256] lists that every digest uses."""
    return [[file.name, file.size, file.sha256] for file in sorted(files)]
