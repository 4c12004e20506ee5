import subprocess
import sys

ARITHMETIC = [
    "arithmetic.lowrank",
    "arithmetic.merge",
    "live.merged_weights",
    "live.stack",
    "flatten.flatten",
    "arithmetic.compress",
    "flatten.compression",
    "adapters.adapter",
    "arithmetic.precision",
    "base.sharing",
    "live.fit",
    "base.stored_tensor",
    "base.manifest",
]
CHECK = """
import importlib, sys
for name in sys.argv[1].split(","):
    importlib.import_module(f"loratree_composer.{name}")
print([name for name in ("sqlalchemy", "transformers", "peft", "httpx", "pydantic") if name in sys.modules])
"""


def test_the_arithmetic_needs_no_database_no_transformers_and_no_network() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHECK, ",".join(ARITHMETIC)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
