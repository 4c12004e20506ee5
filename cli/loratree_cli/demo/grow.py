"""The growth of the demo's tree: train, add, publish and compose each level, with the commands that a user types."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from loratree_cli.demo.cache import Cache
from loratree_cli.demo.recipe import RUNGS, Recipe
from loratree_cli.demo.shell import Shell
from loratree_registry.core.digests import digest_json, digest_stream
from loratree_registry.core.registry import Registry
from loratree_registry.embedded.registry import open_embedded
from loratree_registry.errors import LoratreeError
from loratree_registry.settings import Settings
from loratree_registry.workspace.base_locations import base_directory

HOME = "home"
BASE = "base"
FLATTENED = "flattened"
BASE_DIGEST = "base-digest.txt"


class Growth:
    """The tree of the demo in `cache`'s folder: parts that are whole stay, and the others are made."""

    def __init__(self, cache: Cache, recipe: Recipe) -> None:
        self.cache = cache
        self.recipe = recipe
        self.home = (cache.root / HOME).absolute()
        self.shell = Shell(self.home)
        self.refs = [RUNGS[0].path]  # PATH@NUMBER of each level published so far

    def grow(self) -> None:
        """Make every level, each trained on the merged composition of the level above."""
        self._make(BASE, self._list_inputs(0), self._train_base)
        self._register()
        self._compose(0)
        for depth in range(1, len(RUNGS)):
            self._make(adapter(depth), self._list_inputs(depth), partial(self._train_adapter, depth))
            self._publish(depth)
            self._compose(depth)
        self._flatten()

    @contextmanager
    def registry(self) -> Iterator[Registry]:
        """Open the demo's own registry, in this process."""
        opened = open_embedded(Settings.from_environment({"LORATREE_HOME": str(self.home)}))
        try:
            yield opened
        finally:
            opened.close()

    def path(self, part: str) -> Path:
        """Return the path of a part."""
        return self.cache.root / part

    # Training

    def _train_base(self, path: Path) -> None:
        from loratree_cli.demo.training import train_base

        with self._progress(0) as on_step:
            train_base(self.recipe, path, on_step)

    def _train_adapter(self, depth: int, path: Path) -> None:
        from loratree_cli.demo.training import train_adapter

        rank = RUNGS[depth].rank
        assert rank is not None
        with self._progress(depth) as on_step:
            train_adapter(self.recipe, depth, rank, self.path(composed(depth - 1)).absolute(), path, on_step)

    def _list_inputs(self, depth: int) -> dict[str, Any]:
        inputs: dict[str, Any] = {
            "recipe": asdict(self.recipe),
            "lesson": digest_json(self.recipe.lesson(depth)),
            "code": [code("loratree_cli.demo.training"), code("loratree_cli.demo.tokenizer")],
        }
        if depth:
            parent = composed(depth - 1)
            inputs |= {
                "rank": RUNGS[depth].rank,
                "parent": [str(self.path(parent).absolute()), self.cache.digest(parent)],
            }
        return inputs

    @contextmanager
    def _progress(self, depth: int) -> Iterator[Callable[[float], None]]:
        """Show the steps on stderr, at a terminal only; afterwards, print a line with the losses."""
        from rich.console import Console
        from rich.progress import Progress

        rung, steps, losses, start = RUNGS[depth], self.recipe.steps(depth), [], time.monotonic()
        rank = "from scratch" if rung.rank is None else f"a LoRA adapter of rank {rung.rank}"
        click.echo(f"\ntraining {rung.path}, {rank}, on {rung.name} text")
        console = Console(stderr=True)
        with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
            task = progress.add_task(rung.folder, total=steps)

            def on_step(loss: float) -> None:
                losses.append(loss)
                progress.update(task, advance=1, description=f"{rung.folder} {loss:.2f}")

            yield on_step
        click.echo(
            f"{steps} steps, loss {losses[0]:.2f} → {losses[-1]:.2f} nats a byte, {time.monotonic() - start:.0f} s"
        )

    # The registry

    def _register(self) -> None:
        inputs = self.cache.digest(BASE)
        if not (self.cache.holds(BASE_DIGEST, inputs) and self._is_home_whole()):
            if self.home.exists():
                click.echo(f"the registry in {self.home} is damaged or holds another base: starting a new one")
            self.cache.drop(HOME)
            self.cache.drop(BASE_DIGEST)
        self._make(BASE_DIGEST, inputs, self._add_base)

    def _add_base(self, path: Path) -> None:
        path.write_text(self.shell.read("base", "add", RUNGS[0].path, self.path(BASE)))

    def _is_home_whole(self) -> bool:
        """Return whether the registry has our base and returns every byte that was published below it."""
        digest = self.path(BASE_DIGEST).read_text().strip()
        try:
            with self.registry() as registry:
                recorded = registry.base(RUNGS[0].path).digest
                for node in registry.descendants(RUNGS[0].path).items:
                    _check_bytes(registry, node.path)
            return recorded == digest and base_directory(self.home, digest) == self.path(BASE).resolve()
        except LoratreeError:
            return False

    def _publish(self, depth: int) -> None:
        path = RUNGS[depth].path
        digest = self.shell.read("publish", self.path(adapter(depth)), path).strip()
        with self.registry() as registry:
            self.refs.append(f"{path}@{registry.version(f'{path}@{digest}').number}")

    def _compose(self, depth: int) -> None:
        self._compose_as("merge", depth, composed(depth))

    def _flatten(self) -> None:
        self._compose_as("flatten", len(RUNGS) - 1, FLATTENED)

    def _compose_as(self, mode: str, depth: int, part: str) -> None:
        ref = self.refs[depth]
        inputs = [mode, self._resolve_digest(ref), code("loratree_composer")]
        self._make(part, inputs, lambda path: self.shell.run("compose", ref, "--mode", mode, "--out", path))

    def _resolve_digest(self, ref: str) -> str:
        with self.registry() as registry:
            return registry.resolve(ref).composition

    def _make(self, part: str, inputs: Any, build: Callable[[Path], None]) -> None:
        if not self.cache.make(part, inputs, build):
            click.echo(f"kept from an earlier run: {self.path(part)}")


def adapter(depth: int) -> str:
    """Return the name of the part that holds a level's adapter."""
    return f"adapters/{RUNGS[depth].folder}"


def composed(depth: int) -> str:
    """Return the name of the part that holds the merged composition down to a level."""
    return f"composed/{RUNGS[depth].folder}"


def code(module: str) -> str:
    """Return the digest of a module's or a package's source, without importing it."""
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    origin = Path(spec.origin)
    files = sorted(origin.parent.rglob("*.py")) if spec.submodule_search_locations else [origin]
    return digest_json([file.read_text(encoding="utf-8") for file in files])


def _check_bytes(registry: Registry, path: str) -> None:
    for version in registry.versions(path).items:
        for file in version.files:
            with registry.open_file(f"{path}@{version.number}", file.name) as stream:
                if digest_stream(stream) != (file.sha256, file.size):
                    raise LoratreeError(f"{path}@{version.number} is damaged in the registry's store")
