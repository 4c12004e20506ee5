"""The registry that a command speaks to, opened and closed around it."""

from collections.abc import Iterator
from contextlib import contextmanager

from loratree_registry.core.registry import Registry


@contextmanager
def registry() -> Iterator[Registry]:
    """Opens the registry of LORATREE_URL, or the embedded one under LORATREE_HOME."""
    from loratree_registry.connect import connect

    opened = connect()
    try:
        yield opened
    finally:
        opened.close()
