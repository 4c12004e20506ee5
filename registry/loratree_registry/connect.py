"""The one place that chooses between a registry in this process and one over HTTP."""

from loratree_registry.core.registry import Registry
from loratree_registry.settings import Settings


def connect(url: str | None = None) -> Registry:
    """The registry at `url`, else at LORATREE_URL, else the embedded one under LORATREE_HOME.

    Raises Invalid where a setting is wrong, Unavailable where the embedded registry cannot be opened; a server is first
    asked by the first call. What each needs is imported only here, so that listing loads no HTTP client.
    """
    settings = Settings.from_environment()
    if address := url or settings.url:
        from loratree_registry.remote.registry import RemoteRegistry

        return RemoteRegistry(address)
    from loratree_registry.embedded.registry import open_embedded

    return open_embedded(settings)
