import io
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import example, given
from hypothesis import strategies as st

from loratree_registry.errors import Invalid
from loratree_registry.tensor_files.header import MAX_HEADER, MAX_TENSORS, Header, Tensor, read_header
from tests.registry.attacks.safetensors_files import ATTACKS, EIGHT, ONE, VALID, file

NAMES = st.from_regex(r"\A[A-Za-z0-9_]{1,6}(\.[A-Za-z0-9_-]{1,6}){0,3}\Z").filter(lambda name: name != "__metadata__")
DTYPES = st.sampled_from([np.float16, np.float32, np.float64, np.int64, np.uint8, np.bool_])
ARRAYS = st.builds(np.zeros, st.lists(st.integers(1, 5), max_size=4).map(tuple), DTYPES)


def read(data: bytes) -> Header:
    return read_header(io.BytesIO(data), len(data), name="x.safetensors")


class Dribble(io.RawIOBase):
    """A stream that returns at most three bytes for each read, as a network may."""

    def __init__(self, data: bytes) -> None:
        self._inner = io.BytesIO(data)

    def read(self, size: int = -1) -> bytes:
        return self._inner.read(min(size, 3))


@pytest.mark.parametrize("name", ATTACKS)
def test_a_malformed_file_is_refused_in_one_sentence_that_names_the_problem(name: str) -> None:
    data, phrase = ATTACKS[name]
    with pytest.raises(Invalid) as refusal:
        read(data)
    message = str(refusal.value)
    assert phrase in message
    assert message.startswith("x.safetensors ")
    assert "\n" not in message
    assert len(message) < 600


def test_every_wrong_tensor_is_named_at_once() -> None:
    wrong = {f"t{number}": ONE | {"dtype": "F7"} for number in range(30)}
    with pytest.raises(Invalid, match=r"'t0' .*and 29 more") as caught:
        read(file(wrong, EIGHT))
    assert [detail.split()[1] for detail in caught.value.details] == [f"'t{number}'" for number in range(30)]


@given(
    st.dictionaries(NAMES, ARRAYS, min_size=1, max_size=6), st.dictionaries(st.text(max_size=5), st.text(max_size=5))
)
def test_a_file_that_safetensors_wrote_reads_as_safetensors_reads_it(
    arrays: dict[str, np.ndarray], metadata: dict[str, str]
) -> None:
    data = safetensors.numpy.save(arrays, metadata)
    header = read(data)
    assert header.metadata == metadata
    assert header.size == len(data)
    assert {
        name: (tensor.dtype, list(tensor.shape), data[tensor.start : tensor.end])
        for name, tensor in header.tensors.items()
    } == {name: (entry["dtype"], entry["shape"], bytes(entry["data"])) for name, entry in safetensors.deserialize(data)}


@given(
    st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), max_size=4),
    st.integers(0, len(VALID)),
    st.binary(max_size=4),
)
@example([], len(VALID), b"")
def test_mutated_bytes_are_read_or_refused_and_nothing_else(
    changes: list[tuple[int, int]], length: int, tail: bytes
) -> None:
    data = bytearray(VALID)
    for position, value in changes:
        data[position] = value
    mutated = bytes(data[:length]) + tail
    try:
        header = read(mutated)
    except Invalid:
        return
    (tensor,) = header.tensors.values()  # safetensors accepts it too, with the same bytes
    ((_, entry),) = safetensors.deserialize(mutated)
    assert bytes(entry["data"]) == mutated[tensor.start : tensor.end]


@given(st.binary(max_size=200))
def test_any_header_is_read_or_refused_and_nothing_else(header: bytes) -> None:
    with pytest.raises(Invalid):
        read(file(b'{"a":' + header + b"}", EIGHT))


def test_the_header_is_read_forward_from_a_stream_that_gives_it_in_parts() -> None:
    stream = Dribble(VALID)
    header = read_header(stream, len(VALID))  # type: ignore[arg-type]
    assert header.tensors == {"a": Tensor("F32", (2,), len(VALID) - 8, len(VALID))}
    assert header.data_start == len(VALID) - 8
    assert stream.read(3) == bytes(3)  # the first tensor's first bytes


def test_the_tensors_stand_in_the_order_of_their_bytes() -> None:
    header = read(file({"b": ONE | {"data_offsets": [8, 16]}, "a": ONE}, bytes(16)))
    assert list(header.tensors) == ["a", "b"]


def test_a_scalar_has_one_value() -> None:
    assert read(file({"a": {"dtype": "F64", "shape": [], "data_offsets": [0, 8]}}, EIGHT)).tensors["a"].shape == ()


def test_as_many_tensors_as_the_largest_adapters_hold_are_read_in_seconds() -> None:
    tensors = {
        f"base_model.model.model.layers.{number}.lora_A.weight": ONE | {"data_offsets": [8 * number, 8 * number + 8]}
        for number in range(36_864)
    }
    start = time.perf_counter()
    assert len(read(file(tensors, bytes(8 * len(tensors)))).tensors) == 36_864
    assert time.perf_counter() - start < 5


WORST = """
import io, resource
from loratree_registry.errors import Invalid
from loratree_registry.tensor_files.header import MAX_HEADER, read_header

resource.setrlimit(resource.RLIMIT_AS, (512 * 2**20,) * 2)
for filler in (b"[]", b"{}"):
    text = b'{"a":[' + b",".join([filler] * ((MAX_HEADER - 16) // (len(filler) + 1))) + b"]}"
    try:
        read_header(io.BytesIO(len(text).to_bytes(8, "little") + text), len(text) + 8)
    except Invalid:
        print("refused")
"""


def test_a_header_of_the_largest_size_is_refused_within_half_a_gibibyte_and_in_seconds() -> None:
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", WORST], capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout.split() == ["refused"] * 2, done.stderr
    assert time.perf_counter() - start < 30


def test_one_tensor_too_many_is_refused() -> None:
    tensors = {f"t{number}": 0 for number in range(MAX_TENSORS + 1)}
    with pytest.raises(Invalid, match="at most 65536"):
        read(file(json.dumps(tensors).encode()))


def test_a_header_one_byte_too_long_is_refused_without_reading_it(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes((MAX_HEADER + 1).to_bytes(8, "little"))
    with path.open("rb") as stream, pytest.raises(Invalid, match="at most 8388608"):
        read_header(stream, 2**40)


def test_thousands_of_mutated_files_are_read_as_the_reference_reads_them_or_refused_in_bounded_memory(
    record_property: Callable[[str, object], None],
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.header_inputs", "--inputs", "20000"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    record_property("measured", done.stdout.strip())
