"""compression.json: the rank and the share of each module that truncation left of a flattened chain."""

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
    """A truncated module: its rank before and after, the remaining share of ‖ΔW‖² (energy), and ‖ΔW‖ before (norm)."""

    name: str
    rank_before: int
    rank: int
    energy: float
    norm: float


@dataclass(frozen=True, slots=True)
class Compression:
    """The limit that a chain was truncated to, and the result for each module."""

    limit: Limit
    modules: tuple[Kept, ...]

    @property
    def energy(self) -> float:
        """The remaining share of Σ‖ΔW‖² over all modules; 1 if all of them are zero."""
        largest = max((module.norm for module in self.modules), default=0.0)
        if largest == 0:
            return 1.0
        squares = [(module.norm / largest) ** 2 for module in self.modules]
        remaining = fsum(module.energy * square for module, square in zip(self.modules, squares, strict=True))
        return remaining / fsum(squares)

    @property
    def least(self) -> Kept | None:
        """The module with the smallest remaining share, or None if no module has a delta."""
        return min(self.modules, key=lambda module: (module.energy, module.name), default=None)

    def to_json(self) -> dict[str, Any]:
        """Return the document as it is written."""
        modules = [asdict(module) for module in self.modules]
        return {"limit": asdict(self.limit), "energy": self.energy, "modules": modules}

    def write(self, directory: Path) -> None:
        """Write compression.json into `directory`."""
        text = json.dumps(self.to_json(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        (directory / COMPRESSION).write_text(text, encoding="utf-8")


def records_of(modules: Mapping[str, Compressed]) -> tuple[Kept, ...]:
    """Return the record of each truncated module, in the order of names."""
    return tuple(Kept(name, m.rank_before, m.delta.rank, m.energy, m.norm) for name, m in sorted(modules.items()))


def read_compression(directory: Path) -> Compression:
    """Read `directory`/compression.json. Raises Invalid."""
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
        raise Invalid(f"{path} does not say what truncation left ({error}): {COMPOSE_AGAIN}") from error
