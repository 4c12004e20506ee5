"""The form of a line: text for people, or JSON for programs. No line holds a control character."""

import json
import logging
import time
from contextvars import ContextVar
from typing import Final, Literal, Protocol

from loratree_registry.api.log.sink import to_stderr
from loratree_registry.core.text import one_line

Form = Literal["text", "json"]
quote: Final = json.encoder.encode_basestring_ascii  # a text as JSON, all in ASCII


class Identified(Protocol):
    """A request with an id."""

    @property
    def id(self) -> str:
        """The id."""
        ...


REQUEST_ID: Final[ContextVar[Identified | None]] = ContextVar("REQUEST_ID", default=None)  # what a task answers


class Stamp:
    """The present time as RFC 3339 with milliseconds. Its text is made once a millisecond, its date once a second."""

    def __init__(self) -> None:
        self._second, self._date = 0, ""
        self._moment, self._text = 0, ""

    def __call__(self) -> str:
        """Return the time."""
        moment = time.time_ns() // 1_000_000
        if moment != self._moment:
            second = moment // 1000
            if second != self._second:
                self._second, self._date = second, time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(second))
            self._moment, self._text = moment, f"{self._date}{moment % 1000:03d}Z"
        return self._text


class LineFormatter(logging.Formatter):
    """A formatter of what the program logs, with the id of the request during which it does."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self._form, self._stamp = form, Stamp()

    def format(self, record: logging.LogRecord) -> str:
        """Return the line. In text, a traceback follows it, each of its lines indented."""
        level, message = record.levelname.lower(), one_line(record.getMessage()).strip()
        trace = self.formatException(record.exc_info).splitlines() if record.exc_info else []
        asked = REQUEST_ID.get()
        if self._form == "json":
            fields = {"time": self._stamp(), "level": level, "message": message}
            fields |= {"id": asked.id} if asked else {}
            return json.dumps(fields | ({"traceback": "\n".join(trace)} if trace else {}))
        text = f"{self._stamp()} {level:<7} {message}{f' id={asked.id}' if asked else ''}"
        return "\n".join([text, *(f"    {one_line(line)}" for line in trace)])


class LineHandler(logging.Handler):
    """A handler that gives lines to the sink of this process."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.setFormatter(LineFormatter(form))

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record soon."""
        try:
            to_stderr().put(self.format(record))
        except Exception:
            self.handleError(record)
