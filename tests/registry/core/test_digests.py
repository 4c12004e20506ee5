"""Canonical JSON, held to RFC 8785 by its own examples and by another implementation."""

import hashlib
import io
import random
import struct
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from loratree_registry.core.digests import canonical_json, digest_json, digest_stream
from tests.registry.core.ecmascript import written

LARGEST = 2**53 - 1
characters = st.characters(exclude_categories=["Cs"])  # a lone surrogate has no UTF-8
numbers = st.integers(-LARGEST, LARGEST) | st.floats(allow_nan=False, allow_infinity=False)
documents = st.recursive(
    st.none() | st.booleans() | numbers | st.text(characters),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(characters), inner),
    max_leaves=30,
)


@given(documents)
def test_every_document_has_the_bytes_that_another_implementation_gives(document: Any) -> None:
    assert canonical_json(document) == written(document)


def test_a_hundred_thousand_random_documents_have_the_bytes_that_another_implementation_gives() -> None:
    draw = random.Random(0)
    alphabet = [chr(code) for code in (*range(0x20), 0x22, 0x5C, 0x7F, 0x80, 0xE9, 0x2028, 0xFB33, 0x1F600)] + list(
        "abc"
    )

    def text() -> str:
        return "".join(draw.choices(alphabet, k=draw.randrange(6)))

    def value(depth: int) -> Any:
        match draw.randrange(9 if depth else 7):
            case 0:
                return draw.choice([None, True, False])
            case 1:
                return draw.randint(-LARGEST, LARGEST)
            case 2:
                return draw.randint(-100, 100) / 8
            case 3 | 4:
                (number,) = struct.unpack("<d", draw.randbytes(8))
                return number if number - number == 0 else 0.0
            case 5 | 6:
                return text()
            case 7:
                return [value(depth - 1) for _ in range(draw.randrange(4))]
            case _:
                return {text(): value(depth - 1) for _ in range(draw.randrange(4))}

    for _ in range(100_000):
        document = {text(): value(2), "": [value(1)]}
        assert canonical_json(document) == written(document)


@given(st.integers(0, 2**64 - 1))
@example(0x8000000000000001)  # the smallest negative
@example(0x7FEFFFFFFFFFFFFF)  # the largest
def test_every_finite_float_by_its_bits_is_printed_as_another_implementation_does(bits: int) -> None:
    (value,) = struct.unpack("<d", struct.pack("<Q", bits))
    if value - value == 0:
        assert canonical_json(value) == written(value)
        assert float(canonical_json(value)) == value


@pytest.mark.parametrize(
    ("bits", "expected"),  # RFC 8785, appendix B
    [
        (0x0000000000000000, "0"),
        (0x8000000000000000, "0"),
        (0x0000000000000001, "5e-324"),
        (0x7FEFFFFFFFFFFFFF, "1.7976931348623157e+308"),
        (0x4340000000000000, "9007199254740992"),
        (0x4430000000000000, "295147905179352830000"),
        (0x44B52D02C7E14AF5, "9.999999999999997e+22"),
        (0x44B52D02C7E14AF6, "1e+23"),
        (0x44B52D02C7E14AF7, "1.0000000000000001e+23"),
        (0x444B1AE4D6E2EF4E, "999999999999999700000"),
        (0x444B1AE4D6E2EF4F, "999999999999999900000"),
        (0x444B1AE4D6E2EF50, "1e+21"),
        (0x3EB0C6F7A0B5ED8C, "9.999999999999997e-7"),
        (0x3EB0C6F7A0B5ED8D, "0.000001"),
        (0x41B3DE4355555553, "333333333.3333332"),
        (0x41B3DE4355555557, "333333333.33333343"),
        (0xBECBF647612F3696, "-0.0000033333333333333333"),
        (0x43143FF3C1CB0959, "1424953923781206.2"),
    ],
)
def test_numbers_are_printed_as_the_rfc_lists_them(bits: int, expected: str) -> None:
    (value,) = struct.unpack("<d", struct.pack("<Q", bits))
    assert canonical_json(value).decode() == expected


def test_keys_are_sorted_by_their_utf_16_code_units() -> None:
    document = {"\u20ac": 1, "\r": 2, "\ufb33": 3, "1": 4, "\U0001f600": 5, "\u0080": 6, "\u00f6": 7}
    assert list(written(document).decode()) == list(canonical_json(document).decode())
    assert canonical_json(document).decode().index("\U0001f600") < canonical_json(document).decode().index("\ufb33")


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), -float("inf"), 2**53, -(2**53), "\ud800", {"\udfff": 1}, {1: 2}, b"bytes", {1, 2}],
)
def test_what_has_no_canonical_form_is_a_value_error(value: Any) -> None:
    with pytest.raises(ValueError, match=r"canonical JSON|surrogates"):
        canonical_json([value])


@given(documents)
def test_a_digest_is_the_sha256_of_the_canonical_bytes(document: Any) -> None:
    assert digest_json(document) == "sha256:" + hashlib.sha256(written(document)).hexdigest()


@given(st.binary(max_size=100), st.integers(0, 3))
def test_a_stream_is_digested_whole_whatever_its_size(content: bytes, mebibytes: int) -> None:
    content *= 1 + mebibytes * 2**20 // max(1, len(content))
    expected = "sha256:" + hashlib.sha256(content).hexdigest()
    assert digest_stream(io.BytesIO(content)) == (expected, len(content))
