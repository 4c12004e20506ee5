"""A log that tells each kind of trouble once, and then how often it came again."""

import logging
import time
from typing import Final

_PAUSE_S: Final = 60.0
_KINDS: Final = 1000  # kinds that are remembered; more are a flood of their own
_LOGGERS: Final = ("uvicorn.error", "asyncio")


class OncePerKind(logging.Filter):
    """A filter that passes one record a kind in `pause_s` seconds; the next one tells how many were held back.

    Records are of one kind if they have the same message before its values are put in, up to its first line's end, and
    the same exception from the same line of code. So a client that causes trouble a thousand times a second cannot fill
    the disk.
    """

    def __init__(self, pause_s: float = _PAUSE_S) -> None:
        super().__init__()
        self._pause_s = pause_s
        self._told: dict[object, tuple[float, int]] = {}  # when a kind was told, and how often it came since

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to write the record."""
        kind, now = _kind_of(record), time.monotonic()
        told, held = self._told.get(kind, (None, 0))
        if told is not None and now - told < self._pause_s:
            self._told[kind] = (told, held + 1)
            return False
        if len(self._told) >= _KINDS:
            self._told.clear()
        self._told[kind] = (now, 0)
        if held:
            record.msg = f"{str(record.msg).rstrip()} (and {held} more like this since it was last told)"
        return True


def quieten() -> None:
    """Filter the logs of the server and of its event loop, once in a process."""
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(known, OncePerKind) for known in logger.filters):
            logger.addFilter(OncePerKind())


def _kind_of(record: logging.LogRecord) -> object:
    error = record.exc_info[1] if record.exc_info else None
    place, trace = None, error.__traceback__ if error else None
    while trace is not None:
        place, trace = (trace.tb_frame.f_code.co_filename, trace.tb_lineno), trace.tb_next
    return record.name, str(record.msg).strip().partition("\n")[0], type(error), place
