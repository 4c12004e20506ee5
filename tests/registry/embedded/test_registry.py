"""The embedded registry is quick to open: it loads nothing that a listing does not need."""

import os
import subprocess
import sys
from pathlib import Path

HEAVY = ["torch", "numpy", "alembic", "pydantic", "httpx", "fastapi", "boto3", "rich", "psycopg", "sqlalchemy.orm"]
LISTING = """
import sys
from loratree_registry.embedded.registry import open_embedded
from loratree_registry.settings import Settings

registry = open_embedded(Settings.from_environment())
registry.bases()
registry.close()
print(*sorted(sys.modules))
"""


def loaded(home: Path) -> list[str]:
    """The modules that a listing loads, in a process of its own."""
    environment = os.environ | {"LORATREE_HOME": str(home), "LORATREE_DATABASE": "", "LORATREE_BLOBS": ""}
    command = [sys.executable, "-c", LISTING]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()


def test_a_listing_loads_no_heavy_module_once_the_database_is_migrated(tmp_path: Path) -> None:
    assert "alembic" in loaded(tmp_path)  # the first time
    assert [name for name in loaded(tmp_path) if name in HEAVY] == []
