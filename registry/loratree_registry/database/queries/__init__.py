"""All SQL of the registry, one noun or one use case per file. A query takes a connection and never commits."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loratree_registry.database.queries import (
        aliases,
        bases,
        blobs,
        collecting,
        diagnostics,
        events,
        exporting,
        importing,
        many_rows,
        nodes,
        publishing,
        removing,
        shared,
        tombstones,
        uploads,
        verifying,
        versions,
    )

__all__ = [
    "aliases",
    "bases",
    "blobs",
    "collecting",
    "diagnostics",
    "events",
    "exporting",
    "importing",
    "many_rows",
    "nodes",
    "publishing",
    "removing",
    "shared",
    "tombstones",
    "uploads",
    "verifying",
    "versions",
]


def __getattr__(name: str) -> Any:
    """Import a module of queries when it is first used: a listing needs four of them."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.{name}")
