"""Full float32 arithmetic, whatever precision the process is set to."""

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
    """Compute products inside in full float32: no TF32, no bfloat16 passes, no autocast, no autograd.

    `torch.set_float32_matmul_precision` and the switches behind it belong to the process, autocast and inference mode
    to the thread. Every setting is restored on exit; the last thread inside restores the process's settings. A nested
    call costs nothing, so code that handles many tensors can enter once around all of them.
    """
    if getattr(_thread, "is_inside", False):
        yield
        return
    _enter()
    _thread.is_inside = True
    try:
        with contextlib.ExitStack() as stack:
            for device in _list_autocast_devices():
                stack.enter_context(torch.autocast(device, enabled=False))
            # A tensor made in a caller's inference mode could never be written in place outside that mode.
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
            _saved = _read_precision()
            _set_precision(["highest"] if _is_legacy() else ["ieee", "ieee"])
        _inside += 1


def _leave() -> None:
    global _inside
    with _lock:
        _inside -= 1
        if _inside == 0:
            _set_precision(_saved)


def _read_precision() -> list[Any]:
    if _is_legacy():
        return [torch.get_float32_matmul_precision()]
    return [operation.fp32_precision for operation in _list_operations()]


def _set_precision(values: list[Any]) -> None:
    if _is_legacy():
        torch.set_float32_matmul_precision(values[0])
        return
    for operation, value in zip(_list_operations(), values, strict=True):
        operation.fp32_precision = value


def _list_operations() -> list[Any]:
    # For torch 2.9 and later: the older getter raises there if a program has used both interfaces.
    backends: Any = torch.backends
    return [backends.cuda.matmul, backends.mkldnn.matmul]


def _is_legacy() -> bool:
    return not hasattr(torch.backends.cuda.matmul, "fp32_precision")


def _list_autocast_devices() -> list[str]:
    return [device for device in ("cpu", "cuda", "xpu", "mps") if torch.amp.is_autocast_available(device)]
