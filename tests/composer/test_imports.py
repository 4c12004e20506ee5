import pkgutil
import subprocess
import sys
from pathlib import Path

import loratree_composer

# Every module of these folders. Left out are checkpoints/, composer.py and compose_files.py: without transformers and a
# registry they have nothing to do, so their imports are not restricted.
FOLDERS = ("arithmetic", "base", "live", "batch", "flatten", "adapters")
ROOT = Path(loratree_composer.__file__).parent
MODULES = [f"{folder}.{module.name}" for folder in FOLDERS for module in pkgutil.iter_modules([str(ROOT / folder)])]
CHECK = """
import importlib, sys
for name in sys.argv[1].split(","):
    importlib.import_module(f"loratree_composer.{name}")
forbidden = ("sqlalchemy", "transformers", "peft", "httpx", "pydantic", "re2", "rfc8785")
print([name for name in forbidden if name in sys.modules])
"""


def test_the_arithmetic_needs_no_database_no_transformers_and_no_network() -> None:
    assert len(MODULES) > 30
    done = subprocess.run([sys.executable, "-c", CHECK, ",".join(MODULES)], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
