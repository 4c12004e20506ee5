"""A new registry in milliseconds: its SQLite file is a copy of a migrated one, as migrating takes sixty."""

import tempfile
from functools import cache
from pathlib import Path

from loratree_registry.database.engine import upgrade_database
from loratree_registry.embedded.registry import EmbeddedRegistry, open_embedded
from loratree_registry.settings import Settings


def open_fresh(settings: Settings) -> EmbeddedRegistry:
    """Open the registry that `settings` name, as open_embedded does."""
    file = settings.database
    if isinstance(file, Path) and not file.exists():
        settings.make_home()
        file.touch(mode=0o600)
        file.write_bytes(_migrated())
    return open_embedded(settings)


@cache
def _migrated() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "loratree.db"
        upgrade_database(file)
        return file.read_bytes()
