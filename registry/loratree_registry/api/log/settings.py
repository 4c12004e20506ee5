"""What the server logs, and in which form."""

import logging
from dataclasses import dataclass
from typing import Any, Literal

from loratree_registry.api.log.lines import Form

Level = Literal["debug", "info", "warning", "error"]


@dataclass(frozen=True, slots=True)
class LogSettings:
    """The form of the lines, and the level from which they are written.

    A request is `info`, a health check that succeeds `debug`, and one that fails by the server's fault `error`.
    """

    form: Form = "text"
    level: Level = "info"

    @property
    def number(self) -> int:
        """The level as `logging` numbers it."""
        return logging.getLevelNamesMapping()[self.level.upper()]

    def to_config(self) -> dict[str, Any]:
        """Return the configuration for `logging.config.dictConfig`, in this process and in each worker.

        Libraries log from `warning` only: at `debug`, botocore would write credentials and presigned URLs.
        """
        handler = {"()": "loratree_registry.api.log.lines.LineHandler", "form": self.form}
        of_uvicorn = "INFO" if self.level == "debug" else max("WARNING", self.level.upper(), key=_number)
        return {
            "version": 1,
            "disable_existing_loggers": False,
            "handlers": {"stderr": handler},
            "root": {"level": max("WARNING", self.level.upper(), key=_number), "handlers": ["stderr"]},
            "loggers": {"uvicorn": {"level": of_uvicorn}, "loratree_registry": {"level": self.level.upper()}},
        }


def _number(level: str) -> int:
    return logging.getLevelNamesMapping()[level]
