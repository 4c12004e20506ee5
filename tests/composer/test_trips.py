"""Drawn trips of up to three levels over tied and untied models: every form is PEFT's in-memory forward.

`LORATREE_TEST_TRIPS=N python -m pytest tests/composer/test_trips.py` draws N trips of each model instead of a few;
`python -m tests.composer.test_trips MINUTES` draws until the time is over, and prints the counts.
"""

import os
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from loratree_registry.errors import Invalid
from tests import peft_bases
from tests.composer.test_ties import bart, t5, translated
from tests.composer.trips import Config, NotTrained, Trip, start
from tests.long import LONG
from tests.peft_bases import Run, logits

EXAMPLES = int(os.environ.get("LORATREE_TEST_TRIPS", "6" if LONG else "1"))
CLOSE = 1e-8


@dataclass(frozen=True)
class Kind:
    """A model, its output, and the names that configs are drawn from."""

    make: Callable[[], nn.Module]
    linears: tuple[str, ...]
    embedding: str
    head: str = "lm_head"
    norm: str = "norm"
    run: Run = logits
    experts: bool = False


GPT2 = Kind(peft_bases.gpt2, ("c_attn", "c_proj"), "wte", norm="ln_f")
KINDS = {
    "llama": Kind(peft_bases.llama, ("q_proj", "down_proj"), "embed_tokens"),
    "llama tied": Kind(peft_bases.tied_llama, ("q_proj", "down_proj"), "embed_tokens"),
    "gpt2": GPT2,
    "gemma3": Kind(peft_bases.gemma3, ("q_proj", "up_proj"), "embed_tokens"),
    "opt": Kind(peft_bases.opt, ("q_proj", "fc1"), "embed_tokens", norm="final_layer_norm"),
    "bert": Kind(
        peft_bases.bert, ("query", "dense"), "word_embeddings", head="cls.predictions.decoder", norm="LayerNorm"
    ),
    "bart": Kind(bart, ("q_proj", "fc1"), "shared", norm="final_layer_norm", run=translated),
    "t5": Kind(t5, ("q", "wo"), "shared", norm="final_layer_norm", run=translated),
    "qwen3-moe": Kind(peft_bases.qwen3_moe, ("q_proj",), "embed_tokens", experts=True),
    "qwen3-moe tied": Kind(
        lambda: peft_bases.qwen3_moe(tie_word_embeddings=True), ("q_proj",), "embed_tokens", experts=True
    ),
}


@st.composite
def configs(draw: Any, kind: Kind) -> Config:
    """A LoraConfig of any mixture of kinds; PEFT refuses some."""
    targets = draw(st.lists(st.sampled_from([*kind.linears, kind.embedding, kind.head]), max_size=3, unique=True))
    config: Config = {"r": draw(st.integers(1, 4)), "lora_alpha": draw(st.sampled_from([1, 3, 8]))}
    config["target_modules"] = targets or "dummy-target-modules"
    saved = draw(st.lists(st.sampled_from([kind.norm, kind.head, kind.embedding]), max_size=2, unique=True))
    if draw(st.booleans()) and saved:
        config["modules_to_save"] = saved
    rows = draw(st.lists(st.integers(0, 95), min_size=1, max_size=3, unique=True))
    others = draw(st.lists(st.integers(0, 95), min_size=1, max_size=3, unique=True))
    tokens: list[Any] = [
        None,
        None,
        {kind.embedding: rows},
        {kind.head: rows},
        {kind.embedding: rows, kind.head: rows},
        {kind.embedding: rows, kind.head: others},
    ]
    if (chosen := draw(st.sampled_from(tokens))) is not None:
        config["trainable_token_indices"] = chosen
    config["use_dora"] = draw(st.sampled_from([False, False, False, True]))
    config["bias"] = draw(st.sampled_from(["none", "none", "all", "lora_only"]))
    config["ensure_weight_tying"] = draw(st.sampled_from([False, False, True]))
    if kind.experts and draw(st.booleans()):
        config["target_parameters"] = draw(
            st.sampled_from(
                [["experts.gate_up_proj"], ["experts.down_proj"], ["experts.gate_up_proj", "experts.down_proj"]]
            )
        )
    if not (targets or saved or chosen or "target_parameters" in config):
        config["target_modules"] = [kind.linears[0]]  # a level without anything trained shows nothing
    return config


Outcomes = Counter[str]


def check(kind: Kind, levels: list[Config], seed: int, outcomes: Outcomes) -> None:
    """Travel until PEFT or publishing refuses a level; every form of every level must be PEFT's function."""
    with tempfile.TemporaryDirectory() as folder:
        trip = start(kind.make(), Path(folder), run=kind.run, seed=seed)
        for number, config in enumerate(levels, 1):
            try:
                trip.train(config, seed=seed + number)
            except NotTrained:
                outcomes["not trained by PEFT"] += 1
                return
            except Invalid as error:
                outcomes[f"refused by publish: {_short(error)}"] += 1
                return
            _compare(trip, levels[:number], outcomes)
            try:
                trip.compose()
            except Invalid as error:
                outcomes[f"refused by compose: {_short(error)}"] += 1
                return
            found = dict(trip.written())
            outcomes["forms"] += len(found)
            assert max(found.values()) < CLOSE, (levels[:number], found)


def _compare(trip: Trip, levels: list[Config], outcomes: Outcomes) -> None:
    found = dict(trip.differences())
    outcomes["levels"] += 1
    outcomes["forms"] += len(found)
    if "flattened" not in found:
        outcomes[f"refused by flatten: {_short(trip.refused)}"] += 1
    wrong = {name: difference for name, difference in found.items() if not difference < CLOSE}
    assert not wrong, (levels, wrong)


def _short(error: object) -> str:
    return re.sub(r"\(.*?\)", "(…)", str(error).removeprefix("the adapter cannot be published: "))[:110]


EVERY = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


@pytest.mark.parametrize("name", KINDS)
def test_every_form_of_a_trip_is_pefts_function(name: str) -> None:
    kind = KINDS[name]

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=EVERY)
    @given(levels=st.lists(configs(kind), min_size=1, max_size=3), seed=st.integers(0, 10**6))
    def travelled(levels: list[Config], seed: int) -> None:
        check(kind, levels, seed, Counter())

    travelled()


def main(minutes: float) -> None:
    """Draw trips until the time is over, over all models in turn; print the counts and every wrong trip."""
    outcomes, end, wrong = Counter[str](), time.monotonic() + 60 * minutes, 0
    while time.monotonic() < end:
        for name, kind in KINDS.items():
            try:
                _draw(name, kind, outcomes)
            except AssertionError as error:
                wrong += 1
                print("WRONG", name, str(error)[:2000], flush=True)
    print(f"{wrong} wrong")
    for outcome, count in sorted(outcomes.items()):
        print(f"{count:7} {outcome}")


def _draw(name: str, kind: Kind, outcomes: Outcomes) -> None:
    """Draw ten trips of one model, and shrink a wrong one."""

    @settings(max_examples=10, deadline=None, suppress_health_check=EVERY, database=None)
    @given(levels=st.lists(configs(kind), min_size=1, max_size=3), seed=st.integers(0, 10**6))
    def travelled(levels: list[Config], seed: int) -> None:
        outcomes[f"trips of {name}"] += 1
        check(kind, levels, seed, outcomes)

    travelled()


if __name__ == "__main__":
    main(float(sys.argv[1]))
