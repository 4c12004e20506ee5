"""Safetensors files that a reader must refuse: each a name, the bytes, and a phrase of the refusal."""

import json
from typing import Any

ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def file(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A file of a header (an object, or its bytes) and the tensors' bytes; `length` lies about the header's size."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(**changes: Any) -> dict[str, Any]:
    """A valid entry of one tensor of 8 bytes, with changes."""
    return ONE | changes


EIGHT = bytes(8)
VALID = file({"a": ONE}, EIGHT)

ATTACKS: dict[str, tuple[bytes, str]] = {
    "nothing at all": (b"", "0 bytes"),
    "half a length": (b"\x10\x00\x00", "3 bytes"),
    "a length beyond the file": (file({"a": ONE}, length=10_000), "truncated"),
    "a length of 2**63": (file({"a": ONE}, length=2**63), "looks like another format"),
    "a length of zero": (file(b""), "no JSON object"),
    "a header that is a list": (file(b"[1]", EIGHT), "no JSON object"),
    "a header that is a string": (file(b'"{}"', EIGHT), "no JSON object"),
    "white space in front": (file(b' {"a":{}}', EIGHT), "nothing but spaces"),
    "padding of zeros": (file(json.dumps({"a": ONE}).encode() + b"\0\0", EIGHT), "nothing but spaces"),
    "padding of new lines": (file(json.dumps({"a": ONE}).encode() + b"\n", EIGHT), "nothing but spaces"),
    "a byte-order mark": (file(b"\xef\xbb\xbf" + json.dumps({"a": ONE}).encode(), EIGHT), "nothing but spaces"),
    "two objects": (file(b"{}{}", EIGHT), "not usable JSON"),
    "bytes that are not UTF-8": (file(b'{"\xff":1}', EIGHT), "not usable JSON"),
    "NaN in the header": (file(b'{"a":NaN}', EIGHT), "NaN is not JSON"),
    "Infinity in the header": (file(b'{"a":-Infinity}', EIGHT), "-Infinity is not JSON"),
    "deep lists": (file(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "nested"),
    "deep objects": (file(b'{"a":' * 100_000 + b"1" + b"}" * 100_000), "nested"),
    "no tensors": (file({}), "no tensors"),
    "metadata alone": (file({"__metadata__": {"format": "pt"}}), "no tensors"),
    "metadata that is a list": (file({"__metadata__": [], "a": ONE}, EIGHT), "__metadata__"),
    "metadata of numbers": (file({"__metadata__": {"x": 1}, "a": ONE}, EIGHT), "__metadata__"),
    "metadata with a lone surrogate": (file({"__metadata__": {"x": "\ud800"}, "a": ONE}, EIGHT), "half a character"),
    "two tensors of one name": (
        file(b'{"a":%b,"a":%b}' % ((json.dumps(ONE).encode(),) * 2), EIGHT),
        "'a' stands twice",
    ),
    "two shapes of one tensor": (
        file(b'{"a":{"dtype":"F32","shape":[2],"shape":[1],"data_offsets":[0,8]}}', EIGHT),
        "'shape' stands twice",
    ),
    "an empty name": (file({"": ONE}, EIGHT), "joined by dots"),
    "a name that climbs": (file({"../../x": ONE}, EIGHT), "joined by dots"),
    "a name with a line break": (file({"a\n": ONE}, EIGHT), "joined by dots"),
    "a name that turns the text around": (file({"a\u202eb": ONE}, EIGHT), "joined by dots"),
    "a name with a terminal's escape": (file({"a\x1b[2J": ONE}, EIGHT), "joined by dots"),
    "a name with two dots": (file({"a..b": ONE}, EIGHT), "joined by dots"),
    "a name of 600 characters": (file({"a" * 600: ONE}, EIGHT), "600 characters"),
    "an entry that is a number": (file({"a": 1}, EIGHT), "exactly dtype, shape and data_offsets"),
    "an entry without a shape": (file({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, EIGHT), "exactly dtype"),
    "an entry with more": (file({"a": entry(uri="http://x")}, EIGHT), "exactly dtype"),
    "a dtype that nobody knows": (file({"a": entry(dtype="F7")}, EIGHT), "unknown dtype 'F7'"),
    "a dtype that is a number": (file({"a": entry(dtype=4)}, EIGHT), "unknown dtype"),
    "a negative shape": (file({"a": entry(shape=[-2])}, EIGHT), "has the shape [-2]"),
    "a fractional shape": (file({"a": entry(shape=[2.0])}, EIGHT), "has the shape [2.0]"),
    "a shape of true": (file({"a": entry(shape=[True, 2])}, EIGHT), "has the shape [True, 2]"),
    "a shape of 100 digits": (file({"a": entry(shape=[10**99])}, EIGHT), "more than 19 digits"),
    "a shape of a million digits": (file(b'{"a":' + b"9" * 1_000_000 + b"}", EIGHT), "more than 19 digits"),
    "a shape whose product overflows": (file({"a": entry(shape=[2**32, 2**32])}, EIGHT), "takes 73786976294838206464"),
    "a shape of nine dimensions": (file({"a": entry(shape=[1] * 8 + [2])}, EIGHT), "at most 8"),
    "a shape as a string": (file({"a": entry(shape="2")}, EIGHT), "has the shape '2'"),
    "an empty tensor": (file({"a": entry(shape=[0], data_offsets=[0, 0]), "b": ONE}, EIGHT), "is empty"),
    "one offset": (file({"a": entry(data_offsets=[0])}, EIGHT), "data_offsets [0]"),
    "offsets that run backwards": (file({"a": entry(data_offsets=[8, 0])}, EIGHT), "has -8 bytes"),
    "fewer bytes than the shape": (file({"a": entry(data_offsets=[0, 4])}, bytes(4)), "has 4 bytes"),
    "more bytes than the shape": (file({"a": entry(data_offsets=[0, 12])}, bytes(12)), "has 12 bytes"),
    "tensors that overlap": (file({"a": ONE, "b": entry(data_offsets=[4, 12])}, bytes(12)), "overlaps"),
    "two tensors of the same bytes": (file({"a": ONE, "b": ONE}, EIGHT), "overlaps"),
    "a hole between tensors": (file({"a": ONE, "b": entry(data_offsets=[12, 20])}, bytes(20)), "a hole"),
    "a hole before the first": (file({"a": entry(data_offsets=[4, 12])}, bytes(12)), "a hole"),
    "a missing last byte": (VALID[:-1], "truncated"),
    "a byte behind the last": (VALID + b"\0", "1 bytes behind its last tensor"),
    "a pickle": (b"\x80\x02}q\x00X\x05\x00\x00\x00modelq\x01K\x01s.", "it looks like a pickle"),
    "a zip, as torch.save writes": (b"PK\x03\x04\x00\x00\x08\x08" + bytes(64), "it looks like a zip archive"),
}
