"""The composer: reads chains of adapters and merges, stacks or flattens them onto a base.

`Composer` applies a path to a live model, `compose` writes a path as files, `read_base` describes a checkpoint.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loratree_composer.base.manifest import manifest_of_module, read_base
    from loratree_composer.compose_files import compose
    from loratree_composer.composer import Composer

__all__ = ["Composer", "compose", "manifest_of_module", "read_base"]

_HOMES = {
    "Composer": "composer",
    "compose": "compose_files",
    "manifest_of_module": "base.manifest",
    "read_base": "base.manifest",
}


def __getattr__(name: str) -> Any:
    """Import a name when it is used, so that the arithmetic alone needs only torch and safetensors."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
