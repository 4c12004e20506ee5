"""docs/screens.md: what the commands that show the tree print at a terminal, over one small tree.

Print it with `python -m tests.screens > docs/screens.md`. The tree is published for real, with adapters whose values
are computed without random numbers, so that its digests are the same everywhere; the times are replaced.
"""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import peft
import torch
import transformers

from loratree_registry.core.registry import Registry
from loratree_registry.settings import Settings
from tests import tiny
from tests.registry.fresh import open_fresh
from tests.registry.material import Adapter, manifest, publish, read
from tests.terminals import on_terminal

COLUMNS: Final = 80
USERS: Final = 200
BASE: Final = "llama-3.1-8b"
MEDICINE, LEGAL, FINANCE = f"{BASE}/medicine", f"{BASE}/legal", f"{BASE}/finance"
DIAGNOSIS: Final = f"{MEDICINE}/cardiology/diagnosis"
LEAF: Final = f"{DIAGNOSIS}/alice"
CONTRACTS: Final = f"{LEGAL}/contracts"
SCREENS: Final[dict[str, list[str]]] = {
    "Every tree, as deep as a screen or two hold": ["tree"],
    "One tree, two levels deep": ["tree", BASE, "--depth", "2"],
    "The bases": ["ls"],
    "What is directly below a path": ["ls", MEDICINE],
    "A node and its versions": ["show", MEDICINE],
    "One version": ["show", f"{MEDICINE}@4"],
    "One base": ["show", BASE],
    "A chain": ["resolve", LEAF],
    "A chain with each ancestor at an alias": ["resolve", LEAF, "--follow", "stable"],
    "A chain with each ancestor at its head": ["resolve", LEAF, "--follow", "latest"],
    "What a version was trained on": ["lineage", LEAF],
    "A chain that is quarantined": ["lineage", f"{CONTRACTS}/review"],
    "What was trained on a version": ["dependents", f"{MEDICINE}@1"],
    "The aliases of a node": ["alias", "ls", MEDICINE],
    "What happened at a node and below": ["log", MEDICINE, "--limit", "6"],
}
_TIME: Final = re.compile(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{6})?Z")
_DATE: Final = re.compile(r"\b20\d\d-\d\d-\d\d\b")

HEAD: Final = f"""# Screens

What the commands print at a terminal of {COLUMNS} columns. A wider terminal shows more columns; a narrower one
leaves out the least important ones and says which. No word, path, number or digest is broken. What is `stale`,
`withdrawn` or `quarantined` has a colour too, unless `NO_COLOR` is set. In a pipe, tables are lines with tabs, under a
line of names; a pipe gets all that a terminal shows.

`python -m tests.screens` publishes the tree of this page and prints the page, and
`tests/cli/screens/test_screens.py` compares the two. The base and the adapters are tiny; the times are replaced.
"""


def grow(home: Path, work: Path) -> None:
    """Publish the tree into the registry of `home`."""
    base = _computed_base(work / "base")
    adapters = {rank: read(_computed_adapter(base, work / f"rank{rank}", rank)) for rank in (64, 32, 16, 8)}
    registry = open_fresh(Settings.from_environment({"LORATREE_HOME": str(home)}))
    try:
        registry.add_base(BASE, manifest(base), source="meta-llama/Llama-3.1-8B")
        registry.add_base("qwen3-4b", manifest(_computed_base(work / "other", step=7)))
        _publish_tree(registry, adapters)
    finally:
        registry.close()


def _publish_tree(registry: Registry, adapters: dict[int, Adapter]) -> None:
    publish(registry, MEDICINE, adapters[64].variant(1), "base", note="clinical notes and guidelines, 40,000 steps")
    publish(registry, f"{MEDICINE}/cardiology", adapters[32], f"{MEDICINE}@1")
    publish(registry, f"{MEDICINE}/radiology", adapters[32].variant(1), f"{MEDICINE}@1")
    publish(registry, DIAGNOSIS, adapters[16], f"{MEDICINE}/cardiology@1")
    publish(registry, f"{MEDICINE}/cardiology/triage", adapters[16].variant(1), f"{MEDICINE}/cardiology@1")
    publish(registry, LEAF, adapters[8], f"{DIAGNOSIS}@1")
    for number in range(1, USERS):
        publish(registry, f"{DIAGNOSIS}/user-{number:03}", adapters[8].variant(number), f"{DIAGNOSIS}@1")
    for number in (2, 3, 4):
        publish(registry, MEDICINE, adapters[64].variant(number), "base")
    registry.set_alias(MEDICINE, "stable", version=1, expected=None)
    registry.set_alias(MEDICINE, "canary", version=3, expected=None)
    registry.withdraw(f"{MEDICINE}@4", reason="diverges on prompts that are longer than 4,000 tokens")
    registry.withdraw(f"{MEDICINE}@2", reason="trained with the wrong tokenizer")
    publish(registry, CONTRACTS, adapters[32].variant(2), "base")
    publish(registry, f"{CONTRACTS}/review", adapters[16].variant(2), f"{CONTRACTS}@1")
    registry.quarantine(f"{CONTRACTS}@1", reason="trained on letters with the names of clients")
    publish(registry, FINANCE, adapters[64].variant(5), "base")
    registry.withdraw(f"{DIAGNOSIS}/user-123@1", reason="the user left")
    registry.delete(f"{MEDICINE}@2", reason="nobody needs it")


def captured(home: Path, *arguments: str, columns: int = COLUMNS) -> str:
    """Return what `loratree` prints at a terminal, with the same time for every time."""
    text = on_terminal(home, *arguments, columns=columns)
    return _DATE.sub("2026-01-31", _TIME.sub(_replaced, text))


def page(home: Path) -> str:
    """Return the page, with a newline at its end."""
    sections = [
        f"## {title}\n\n```console\n$ loratree {' '.join(arguments)}\n{captured(home, *arguments)}```\n"
        for title, arguments in SCREENS.items()
    ]
    return "\n".join([HEAD, *sections])


@dataclass(frozen=True)
class _Values:
    """Values in steps of 2⁻¹⁰, exact in float32, from a linear congruence: the same on every machine."""

    step: int

    def fill(self, model: torch.nn.Module, word: str = "") -> None:
        for place, (name, parameter) in enumerate(model.named_parameters()):
            if word in name:
                numbers = torch.arange(parameter.numel(), dtype=torch.int64) * 2654435761 + place * 40503 + self.step
                parameter.data = ((numbers % 509 - 254).float() / 1024).reshape(parameter.shape)


def _computed_base(folder: Path, *, step: int = 1) -> Path:
    model = transformers.LlamaForCausalLM(tiny.llama_config())
    _Values(step).fill(model)
    model.save_pretrained(folder)
    return folder


def _computed_adapter(base: Path, folder: Path, rank: int) -> Path:
    def fill(tuned: peft.PeftModel) -> None:
        _Values(rank).fill(tuned, "lora_")

    return tiny.adapter(base, folder, rank=rank, alpha=2 * rank, change=fill)


def _replaced(found: re.Match[str]) -> str:
    time: Any = "2026-01-31T09:30:00.000000Z" if "." in found[0] else "2026-01-31T09:30:00Z"
    return str(time)


@contextmanager
def grown() -> Iterator[Path]:
    """Give a home that holds the tree."""
    with tempfile.TemporaryDirectory() as folder:
        grow(Path(folder) / "home", Path(folder) / "work")
        yield Path(folder) / "home"


if __name__ == "__main__":
    with grown() as home:
        print(page(home), end="")
