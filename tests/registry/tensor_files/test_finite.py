import hashlib
import io

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from loratree_registry.errors import Invalid
from loratree_registry.tensor_files.finite import CHUNK, check_finite
from loratree_registry.tensor_files.header import read_header

WIDTHS = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}


def check(data: bytes) -> dict[str, str]:
    stream = io.BytesIO(data)
    return check_finite(stream, read_header(stream, len(data)), name="x.safetensors")


@pytest.mark.parametrize("dtype", WIDTHS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_is_named_by_its_tensor(dtype: torch.dtype, value: float) -> None:
    tensor = torch.zeros(3, 5, dtype=dtype)
    tensor[2, 4] = value
    data = safetensors.torch.save({"good": torch.ones(2, dtype=dtype), "bad": tensor, "worse": tensor.clone()})
    with pytest.raises(Invalid) as refusal:
        check(data)
    counted = "1 NaN and 0 Inf" if value != value else "0 NaN and 1 Inf"
    assert f"bad holds {counted}" in str(refusal.value)
    assert f"worse holds {counted}" in str(refusal.value)
    assert "good" not in str(refusal.value)


@pytest.mark.parametrize("dtype", WIDTHS)
def test_the_largest_the_smallest_and_zero_are_finite(dtype: torch.dtype) -> None:
    info = torch.finfo(dtype)
    check(
        safetensors.torch.save(
            {"x": torch.tensor([info.max, info.min, info.tiny, info.smallest_normal, 0.0, -0.0], dtype=dtype)}
        )
    )


@given(st.sampled_from(list(WIDTHS)), st.lists(st.integers(-(2**15), 2**15 - 1), min_size=4, max_size=40))
def test_any_bit_pattern_is_judged_as_torch_judges_it(dtype: torch.dtype, words: list[int]) -> None:
    words = words[: len(words) // 4 * 4]
    tensor = torch.tensor(words, dtype=torch.int16).view(dtype)
    data = safetensors.torch.save({"x": tensor})
    if torch.isfinite(tensor).all():
        check(data)
    else:
        with pytest.raises(
            Invalid, match=f"x holds {int(tensor.isnan().sum())} NaN and {int(tensor.isinf().sum())} Inf"
        ):
            check(data)


def test_a_value_behind_the_first_chunk_is_found() -> None:
    array = np.zeros(CHUNK // 4 * 2 + 3, dtype=np.float32)
    check(safetensors.numpy.save({"x": array}))
    array[-1] = np.nan
    with pytest.raises(Invalid, match="x holds 1 NaN"):
        check(safetensors.numpy.save({"x": array}))


def test_values_that_cannot_be_checked_are_refused_by_name() -> None:
    with pytest.raises(Invalid, match=r"F16, BF16, F32, F64.*: x is F8_E5M2: cast"):
        check(safetensors.torch.save({"x": torch.zeros(2).to(torch.float8_e5m2), "y": torch.zeros(2)}))


def test_counters_and_masks_are_always_finite() -> None:
    arrays = {"n": np.array([2**62, -1]), "m": np.array([True, False]), "y": np.zeros(2, dtype=np.float32)}
    digests = check(safetensors.numpy.save(arrays))
    assert digests["n"] == "sha256:" + hashlib.sha256(arrays["n"].tobytes()).hexdigest()


def test_a_stream_that_ends_early_is_refused() -> None:
    data = safetensors.numpy.save({"x": np.zeros(4, dtype=np.float32)})
    stream = io.BytesIO(data[:-2])
    header = read_header(io.BytesIO(data), len(data))
    stream.seek(header.data_start)
    with pytest.raises(Invalid, match="ended 2 bytes early"):
        check_finite(stream, header)
