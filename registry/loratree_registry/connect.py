"""The choice between a registry in this process and a registry over HTTP; no other module makes it."""

from collections.abc import Iterator
from contextlib import contextmanager

from loratree_registry.core.registry import Registry
from loratree_registry.settings import Settings


def connect(url: str | None = None, *, begin: bool = True) -> Registry:
    """Return the registry at `url`, or else at LORATREE_URL, or else the embedded one under LORATREE_HOME.

    Without `begin`, a HOME without an embedded registry counts as an empty one and stays as it is.

    Raises Invalid if a setting is wrong, Unavailable if the embedded registry cannot be opened. A server is contacted
    only by the first call. The imports stand in this function, so that an embedded listing loads no HTTP client.
    """
    settings = Settings.from_environment()
    if address := url or settings.url:
        from loratree_registry.remote.registry import RemoteRegistry

        return RemoteRegistry(address)
    from loratree_registry.embedded.registry import open_embedded

    return open_embedded(settings, begin=begin)


@contextmanager
def connected(registry: Registry | None = None, *, begin: bool = False) -> Iterator[Registry]:
    """Yield `registry`, or one that `connect` opens and that is closed at the end of the block.

    Only what adds a base begins a registry: all else needs a base, and must leave nothing where LORATREE_HOME is wrong.
    """
    if registry is not None:
        yield registry
        return
    opened = connect(begin=begin)
    try:
        yield opened
    finally:
        opened.close()
