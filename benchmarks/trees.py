"""The trees that the registry is measured on, and adapters small or large enough for what is measured."""

import hashlib
import itertools
import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.loading import FirstVersion, LoadedNode
from loratree_registry.core.digests import DIGEST_PREFIX, FileDigest
from loratree_registry.core.manifest import BaseManifest, Parameter
from loratree_registry.core.paths import Level
from loratree_registry.core.records import ADAPTER_WEIGHTS
from loratree_registry.peft_format.classify import canonical_config

TREES = ("balanced", "seed")
USERS = 10_000  # of one of the seed's tasks
ALIAS = "stable"
_HIDDEN, _LAYERS = 4096, 32
_MODULES = ("q_proj", "v_proj")
_BATCH = 10_000  # nodes that are loaded at once


def base() -> BaseManifest:
    """Two projections a layer of a model of 8 billion parameters: what the adapters here are checked against."""
    return BaseManifest(parameters=tuple(_projection(*place) for place in _places()), architecture="LlamaForCausalLM")


def batches(tree: str, leaves: int) -> Iterator[list[LoadedNode]]:
    """The tree's nodes below its base, parents first, as they are loaded."""
    grown = (_node(path, level) for path, level in (_balanced(leaves) if tree == "balanced" else _seed(leaves)))
    while batch := list(itertools.islice(grown, _BATCH)):
        yield batch


def branching(leaves: int) -> int:
    """The children of each node of a balanced tree whose users are four levels below the base."""
    return math.ceil(leaves**0.25 - 1e-9)


def leaf(tree: str, leaves: int, index: int) -> str:
    """The path of one user."""
    if tree == "seed":
        return f"seed/t{index // USERS:03}/u{index % USERS:05}"
    width = branching(leaves)
    places = [index // width**power % width for power in (3, 2, 1, 0)]
    return "/".join(["balanced", *(f"{letter}{place:02}" for letter, place in zip("dstu", places, strict=True))])


def _balanced(leaves: int) -> Iterator[tuple[str, Level]]:
    above: dict[str, None] = {}
    levels: tuple[Level, ...] = ("domain", "subdomain", "task")
    for index in range(leaves):
        path = leaf("balanced", leaves, index)
        segments = path.split("/")
        for count, level in enumerate(levels, start=2):
            parent = "/".join(segments[:count])
            if parent not in above:
                above[parent] = None
                yield parent, level
        yield path, "user"


def _seed(leaves: int) -> Iterator[tuple[str, Level]]:
    for index in range(leaves):
        path = leaf("seed", leaves, index)
        if index % USERS == 0:
            yield path.rpartition("/")[0], "task"
        yield path, "user"


def _node(path: str, level: Level) -> LoadedNode:
    """A node whose version is no adapter's: digests of its path, and rows as long as a small adapter's."""
    weights = FileDigest(ADAPTER_WEIGHTS, 84_000, _digest(f"weights of {path}"))
    version = FirstVersion(
        digest=_digest(path),
        content=_digest(f"content of {path}"),
        config=_CONFIG,
        summary=_SUMMARY,
        files=(weights,),
        found="lockfile",
        aliases=(ALIAS,),
    )
    return LoadedNode(path=path, level=level, version=version)


def _digest(text: str) -> str:
    return DIGEST_PREFIX + hashlib.sha256(text.encode()).hexdigest()


def config(rank: int) -> dict[str, Any]:
    """A PEFT config; those after target_modules say what PEFT says where nothing was asked for."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": list(_MODULES),
        "base_model_name_or_path": None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_version": "0.21.2",
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_dora": False,
        "use_rslora": False,
    }


def adapter(rank: int, *, layers: int = _LAYERS, seed: int = 0) -> bytes:
    """An adapter's weights in float32, random: rank 16 on all layers has 33.5 MB."""
    random = np.random.default_rng(seed)
    shapes = {
        f"base_model.model.{name}.lora_{factor}.weight": shape
        for name in (place[0] for place in itertools.islice(_places(), layers * len(_MODULES)))
        for factor, shape in (("A", (rank, _HIDDEN)), ("B", (_HIDDEN, rank)))
    }
    header, end = {}, 0
    for key, shape in shapes.items():
        start, end = end, end + 4 * math.prod(shape)
        header[key] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + random.standard_normal(end // 4, dtype=np.float32).tobytes()


def _places() -> Iterator[tuple[str]]:
    for layer, module in itertools.product(range(_LAYERS), _MODULES):
        yield (f"model.layers.{layer}.self_attn.{module}",)


def _projection(name: str) -> Parameter:
    return Parameter(name=f"{name}.weight", shape=(_HIDDEN, _HIDDEN), dtype="BF16", kind="Linear", sha256=_digest(name))


_CONFIG = canonical_config(config(8))
_SUMMARY = {
    "ranks": [8],
    "scales": [2.0],
    "modules": 64,
    "parameters": 4_194_304,
    "dtypes": ["F32"],
    "rules": {"additive": 64},
}
