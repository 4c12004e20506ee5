"""compression.json: what a flattened chain that was truncated has kept of each module."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import fsum
from pathlib import Path
from typing import Any, Final

from loratree_composer.arithmetic.compress import Compressed
from loratree_registry.core.chain import Limit
from loratree_registry.core.strict_json import parse_json
from loratree_registry.disk.plain_files import read_plain
from loratree_registry.errors import Invalid
from loratree_registry.workspace.lockfile import COMPOSE_AGAIN

COMPRESSION: Final = "compression.json"
MAX_COMPRESSION: Final = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Kept:
    """A module's rank before and after, the share of ‖ΔW‖² that is kept, and ‖ΔW‖ before."""

    name: str
    rank_before: int
    rank: int
    energy: float
    norm: float


@dataclass(frozen=True, slots=True)
class Compression:
    """What each module of a chain was truncated to, and what of it is kept."""

    limit: Limit
    modules: tuple[Kept, ...]

    @property
    def energy(self) -> float:
        """The share that is kept of Σ‖ΔW‖² over the modules; 1 where all of them are zero."""
        largest = max((module.norm for module in self.modules), default=0.0)
        if largest == 0:
            return 1.0
        squares = [(module.norm / largest) ** 2 for module in self.modules]
        kept = fsum(module.energy * square for module, square in zip(self.modules, squares, strict=True))
        return kept / fsum(squares)

    @property
    def least(self) -> Kept | None:
        """The module that keeps the smallest share; None where no module has a delta."""
        return min(self.modules, key=lambda module: (module.energy, module.name), default=None)

    def to_json(self) -> dict[str, Any]:
        """The document as it is written."""
        modules = [asdict(module) for module in self.modules]
        return {"limit": asdict(self.limit), "energy": self.energy, "modules": modules}

    def write(self, directory: Path) -> None:
        """Writes compression.json into `directory`."""
        text = json.dumps(self.to_json(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        (directory / COMPRESSION).write_text(text, encoding="utf-8")


def kept(modules: Mapping[str, Compressed]) -> tuple[Kept, ...]:
    """What is kept of each module, by name."""
    return tuple(Kept(name, m.rank_before, m.delta.rank, m.energy, m.norm) for name, m in sorted(modules.items()))


def read_compression(directory: Path) -> Compression:
    """Reads `directory`/compression.json. Raises Invalid."""
    path = directory / COMPRESSION
    content = read_plain(path, limit=MAX_COMPRESSION, remedy=COMPOSE_AGAIN)
    try:
        document = parse_json(content)
        modules = tuple(
            Kept(str(m["name"]), int(m["rank_before"]), int(m["rank"]), float(m["energy"]), float(m["norm"]))
            for m in document["modules"]
        )
        return Compression(Limit(**document["limit"]), modules)
    except (ValueError, TypeError, KeyError, Invalid) as error:
        raise Invalid(f"{path} does not say what was kept ({error}): {COMPOSE_AGAIN}") from error
