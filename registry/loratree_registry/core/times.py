"""The clock of the registry, and how times and durations are written."""

import re
from datetime import UTC, datetime, timedelta
from typing import Final

from loratree_registry.errors import Invalid

_DURATION: Final = re.compile(r"(\d{1,6})([smhd])")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_LONGEST: Final = timedelta(days=36500)  # datetime has no year 0, so `now() - duration` would fail


def now() -> datetime:
    """Return the current time in UTC."""
    return datetime.now(UTC)


def in_utc(moment: datetime) -> datetime:
    """Return a time that comes from outside in UTC. Raises ValueError if that is not in the years 1 to 9999."""
    try:
        return moment.astimezone(UTC)
    except OverflowError as error:
        raise ValueError(f"{moment.isoformat()} is not in the years 1 to 9999 in UTC") from error


def from_seconds(seconds: float) -> datetime:
    """Return the time `seconds` after 1970, as file systems keep it, or the first or last time that can be written."""
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return (datetime.max if seconds > 0 else datetime.min).replace(tzinfo=UTC)


def rfc3339(moment: datetime) -> str:
    """Return `moment` as RFC 3339 in UTC with microseconds: 2026-01-31T09:30:00.000001Z."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def parse_duration(what: str, text: str) -> timedelta:
    """Parse a number and a unit, such as 30m; `what` is what the message calls it. Raises Invalid."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise Invalid(f"{what} is {text!r}: expected a number and a unit, such as 0s, 30m, 24h or 7d")
    duration = timedelta(**{_UNITS[match[2]]: int(match[1])})
    if duration > _LONGEST:
        raise Invalid(f"{what} is {text!r}: expected at most {_LONGEST.days}d, such as 7d")
    return duration
