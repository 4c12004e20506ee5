"""Full float32 arithmetic, whatever the process is set to."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch

_lock = threading.Lock()
_inside = 0
_saved: list[Any] = []
_thread = threading.local()


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Products inside are float32 throughout: no TF32, no bfloat16 passes, no autocast, no autograd.

    `torch.set_float32_matmul_precision` and the switches behind it are of the process, autocast and inference mode of
    the thread. All are put back as they were, the process's by the last of the threads that are inside. Within itself
    it costs nothing, so that what handles many tensors may enter it once around them all.
    """
    if getattr(_thread, "is_inside", False):
        yield
        return
    _enter()
    _thread.is_inside = True
    try:
        with contextlib.ExitStack() as stack:
            for device in _autocast_devices():
                stack.enter_context(torch.autocast(device, enabled=False))
            # Tensors made under a caller's inference mode could never be written in place outside it.
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
            yield
    finally:
        _thread.is_inside = False
        _leave()


def _enter() -> None:
    global _inside, _saved
    with _lock:
        if _inside == 0:
            _saved = _precision()
            _set_precision(["highest"] if _is_legacy() else ["ieee", "ieee"])
        _inside += 1


def _leave() -> None:
    global _inside
    with _lock:
        _inside -= 1
        if _inside == 0:
            _set_precision(_saved)


def _precision() -> list[Any]:
    if _is_legacy():
        return [torch.get_float32_matmul_precision()]
    return [operation.fp32_precision for operation in _operations()]


def _set_precision(values: list[Any]) -> None:
    if _is_legacy():
        torch.set_float32_matmul_precision(values[0])
        return
    for operation, value in zip(_operations(), values, strict=True):
        operation.fp32_precision = value


def _operations() -> list[Any]:
    # From torch 2.9 on. The older getter raises once a program has mixed both ways, so it is not asked there.
    backends: Any = torch.backends
    return [backends.cuda.matmul, backends.mkldnn.matmul]


def _is_legacy() -> bool:
    return not hasattr(torch.backends.cuda.matmul, "fp32_precision")


def _autocast_devices() -> list[str]:
    return [device for device in ("cpu", "cuda", "xpu", "mps") if torch.amp.is_autocast_available(device)]
