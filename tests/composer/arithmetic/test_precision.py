import threading
from collections.abc import Iterator

import pytest
import torch

from loratree_composer.arithmetic.precision import full_float32

BIG = torch.randn(768, 768, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def restored_precision() -> Iterator[None]:
    backends = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    saved = [backend.fp32_precision for backend in backends]
    yield
    for backend, value in zip(backends, saved, strict=True):
        backend.fp32_precision = value


def settings() -> list[object]:
    return [
        torch.get_float32_matmul_precision(),
        torch.backends.cuda.matmul.fp32_precision,
        torch.backends.mkldnn.matmul.fp32_precision,  # type: ignore[attr-defined]
        torch.backends.cuda.matmul.allow_tf32,
    ]


@pytest.mark.parametrize("precision", ["medium", "high"])
def test_a_product_has_the_same_bits_whatever_the_process_is_set_to(precision: str) -> None:
    with full_float32():
        plain = BIG @ BIG
    torch.set_float32_matmul_precision(precision)
    with full_float32():
        assert torch.equal(BIG @ BIG, plain)
        assert torch.backends.cuda.matmul.fp32_precision == "ieee"
        assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"  # type: ignore[attr-defined]


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_every_setting_is_put_back(precision: str) -> None:
    torch.set_float32_matmul_precision(precision)
    before = settings()
    with full_float32(), full_float32():
        pass
    assert settings() == before


def test_every_setting_is_put_back_after_an_error() -> None:
    torch.set_float32_matmul_precision("medium")
    before = settings()
    with pytest.raises(ZeroDivisionError), full_float32():
        _ = 1 / 0
    assert settings() == before


def test_autocast_is_off_inside_and_on_again_outside() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with full_float32():
            assert (BIG @ BIG).dtype == torch.float32
        assert (BIG @ BIG).dtype == torch.bfloat16


def test_what_is_made_inside_may_be_written_outside_inference_mode() -> None:
    with torch.inference_mode(), full_float32():
        made = BIG @ BIG
    made.zero_()


def test_two_threads_inside_at_once_leave_the_process_as_it_was() -> None:
    torch.set_float32_matmul_precision("medium")
    before, entered, leave = settings(), threading.Event(), threading.Event()

    def first() -> None:
        with full_float32():
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=first)
    thread.start()
    assert entered.wait(10)
    with full_float32():
        leave.set()
        thread.join()
        assert torch.backends.cuda.matmul.fp32_precision == "ieee"
    assert settings() == before
