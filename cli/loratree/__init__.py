"""loratree: a registry and composer for trees of LoRA adapters.

`connect` opens a registry, `publish`, `resolve` and `pull` work on it, `compose` writes a path as files, and `Composer`
puts any path on a live model. Each name is imported when it is first used, so `import loratree` loads neither torch nor
a database.
"""

TYPE_CHECKING = False  # as in typing, which takes longer to import than all the rest of this file

if TYPE_CHECKING:
    from loratree.functions import compose, publish, pull, resolve
    from loratree_composer.adapters.tiers import Tiers
    from loratree_composer.base.manifest import read_base
    from loratree_composer.composer import Composer
    from loratree_registry.connect import connect
    from loratree_registry.core.chain import Limit
    from loratree_registry.core.registry import Registry
    from loratree_registry.errors import CompositionWarning, LoratreeError

    __version__: str

__all__ = [
    "Composer",
    "CompositionWarning",
    "Limit",
    "LoratreeError",
    "Registry",
    "Tiers",
    "__version__",
    "compose",
    "connect",
    "publish",
    "pull",
    "read_base",
    "resolve",
]

_HOMES = {
    "Composer": "loratree_composer.composer",
    "CompositionWarning": "loratree_registry.errors",
    "Limit": "loratree_registry.core.chain",
    "LoratreeError": "loratree_registry.errors",
    "Registry": "loratree_registry.core.registry",
    "Tiers": "loratree_composer.adapters.tiers",
    "compose": "loratree.functions",
    "connect": "loratree_registry.connect",
    "publish": "loratree.functions",
    "pull": "loratree.functions",
    "read_base": "loratree_composer.base.manifest",
    "resolve": "loratree.functions",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used, and keep it."""
    if name == "__version__":
        from importlib.metadata import version

        value: object = version("loratree")
    elif name in _HOMES:
        from importlib import import_module

        value = getattr(import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, also those that are not imported yet."""
    return sorted(__all__)
