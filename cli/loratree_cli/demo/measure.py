"""Measurements of the tree that the demo grew; the cache stores each one with its inputs."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from loratree_cli.demo.agreement import Agreement
from loratree_cli.demo.grow import BASE, FLATTENED, Growth, adapter, code, composed
from loratree_cli.demo.ladder import Ladder
from loratree_cli.demo.recipe import RUNGS
from loratree_registry.core.digests import digest_json

LADDER = "ladder.json"
FORMS = "forms.json"
SAMPLES = 4  # documents per level on which the forms are compared


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes of weights in bytes: of a full checkpoint, and of each level's adapter from the domain down."""

    checkpoint: int
    adapters: tuple[int, ...]


def measure_ladder(growth: Growth) -> Ladder:
    """Measure every level's model on every level's held-out text."""
    models = [growth.cache.digest(composed(depth)) for depth in range(len(RUNGS))]
    inputs = [models, digest_json(growth.recipe.held_out_text()), code("loratree_cli.demo.evaluation")]
    growth.cache.make(LADDER, inputs, lambda path: _write_losses(growth, path))
    losses = json.loads(growth.path(LADDER).read_text())
    names = tuple(rung.name for rung in RUNGS)
    return Ladder(tuple(rung.row for rung in RUNGS), names, tuple(tuple(map(tuple, row)) for row in losses))


def measure_forms(growth: Growth) -> Agreement:
    """Measure how far merged, stacked, flattened and the float64 reference are apart at the leaf."""
    parts = [BASE, FLATTENED, composed(len(RUNGS) - 1), *(adapter(depth) for depth in range(1, len(RUNGS)))]
    inputs = [
        [growth.cache.digest(part) for part in parts],
        [growth.refs[-1], digest_json(growth.recipe.held_out_text())],
        [code("loratree_composer"), code("loratree_cli.demo.forms"), code("loratree_cli.demo.reference")],
    ]
    growth.cache.make(FORMS, inputs, lambda path: _write_agreement(growth, path))
    measured = json.loads(growth.path(FORMS).read_text())
    return Agreement(tuple(map(tuple, measured["pairs"])), measured["bare"])


def measure_sizes(growth: Growth) -> Sizes:
    """Measure the bytes of the weights that each level stores."""
    adapters = (_size(growth.path(adapter(depth))) for depth in range(1, len(RUNGS)))
    return Sizes(_size(growth.path(BASE)), tuple(adapters))


def _write_losses(growth: Growth, path: Path) -> None:
    import torch

    from loratree_cli.demo.evaluation import losses
    from loratree_cli.demo.training import load_model

    torch.set_num_threads(growth.recipe.threads)
    texts = growth.recipe.held_out_text()
    models = (load_model(growth.path(composed(depth))) for depth in range(len(RUNGS)))
    path.write_text(json.dumps([[losses(model, text) for text in texts] for model in models]))


def _write_agreement(growth: Growth, path: Path) -> None:
    from loratree_cli.demo.evaluation import padded
    from loratree_cli.demo.forms import Places, compare

    documents = [document for text in growth.recipe.held_out_text() for document in text[:SAMPLES]]
    places = Places(
        ref=growth.refs[-1],
        base=growth.path(BASE),
        adapters=[growth.path(adapter(depth)) for depth in range(1, len(RUNGS))],
        merged=growth.path(composed(len(RUNGS) - 1)),
        flattened=growth.path(FLATTENED),
        home=growth.home,
    )
    with growth.registry() as registry:
        agreement = compare(places, registry, padded(documents)[0])
    path.write_text(json.dumps(asdict(agreement)))


def _size(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.glob("*.safetensors"))
