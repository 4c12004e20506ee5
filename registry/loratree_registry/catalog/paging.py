"""Pages of a listing, by key: each page names the key after which the next page begins."""

from collections.abc import Callable
from typing import Final, TypeVar

from loratree_registry.core.records import Page
from loratree_registry.core.registry import MAX_PAGE
from loratree_registry.errors import Invalid

MAX_BYTES: Final = 8 * 1024 * 1024  # of a page whose items may be large: versions, and nodes with many aliases

Row = TypeVar("Row")
Record = TypeVar("Record")


def check_limit(limit: int) -> int:
    """Check that a page holds at least one item and at most MAX_PAGE. Raises Invalid."""
    if not 1 <= limit <= MAX_PAGE:
        raise Invalid(f"a page holds 1 to {MAX_PAGE} items, got a limit of {limit}")
    return limit


def page(
    rows: list[Row], limit: int, *, key: Callable[[Row], str], records: Callable[[list[Row]], list[Record]]
) -> Page[Record]:
    """Make a page of `limit` rows. The caller reads one row more, which shows that there is a next page."""
    shown = rows[:limit]
    return Page(items=records(shown), next=key(shown[-1]) if len(rows) > limit else None)


def number_after(after: str | None, *, digits: int = 18) -> int | None:
    """Read `after` as a number of at most `digits` digits, so that its column can hold it. Raises Invalid."""
    if after is None:
        return None
    if not (after.isascii() and after.isdecimal() and len(after) <= digits):
        raise Invalid(f"after={after[:80]!r} is not a place in this listing: pass the `next` of a page unchanged")
    return int(after)
