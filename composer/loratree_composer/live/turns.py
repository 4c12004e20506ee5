"""Whose turn it is to change a live model, and what a block gives back after it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Turns:
    """Gives one call or block at a time a live model; other threads wait.

    It remembers the call that put the present composition on by its name, for the end of a block. A bound method would
    be a cycle, which would keep a lost Composer alive.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._last: tuple[str, tuple[Any, ...], dict[str, Any]] | None = None

    @contextmanager
    def put_on(self, call: str, *given: Any, **options: Any) -> Iterator[None]:
        """Have the model while a composition is put on it; `call`, with these arguments, is what does so again."""
        with self.take_off():
            yield
            self._last = call, given, options

    @contextmanager
    def take_off(self) -> Iterator[None]:
        """Have the model while what is on it is taken off."""
        with self._lock:
            self._last = None
            yield

    @contextmanager
    def block(self, owner: Any) -> Iterator[None]:
        """Have the model until the block ends; then `owner` restores it, and puts on it what was there before."""
        with self._lock:
            before = self._last
            try:
                yield
            finally:
                owner.restore()
                if before is not None:
                    call, given, options = before
                    getattr(owner, call)(*given, **options)
