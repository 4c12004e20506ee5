"""Drawn models, chains, ranks, scales, level weights and dtypes: every form is one function, the float64 one."""

import copy
import json
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from loratree_composer.adapters.adapter import Adapter, AdapterPart, Bias, Factors, Rows, Value, programs_of
from loratree_composer.base.manifest import manifest_of_module
from loratree_composer.flatten.flatten import flattened
from loratree_composer.live.merged_weights import MergedWeights
from loratree_composer.live.stack import Stack
from loratree_registry.errors import Invalid
from tests.composer import chains
from tests.composer.arithmetic.test_edits import exact
from tests.composer.reference_sums import half_ulp
from tests.examples import examples

VOCABULARY, LENGTH = 13, 5
IDS = torch.arange(2 * LENGTH).view(2, LENGTH) % VOCABULARY


class Net(nn.Module):
    """One layer of each kind that is stacked beside its weight, and a norm, which is not."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, width)
        self.up = nn.Linear(width, inner)
        self.turned = Conv1D(inner, inner)
        self.conv = nn.Conv1d(inner, width, 3, padding=1)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = torch.tanh(self.turned(torch.tanh(self.up(self.tokens(ids)))))
        x = self.conv(x.transpose(1, 2)).transpose(1, 2)
        found: Tensor = self.head(self.norm(x))
        return found


KINDS = {"tokens": "Embedding", "up": "Linear", "turned": "Conv1D", "conv": "Conv1d", "head": "Linear"}


@dataclass(frozen=True)
class Drawn:
    """A model's sizes, its dtype, the adapters' dtype, and a chain of (adapter, level weight)."""

    width: int
    inner: int
    dtype: torch.dtype
    chain: list[tuple[Adapter, float]]

    def model(self, dtype: torch.dtype | None = None) -> Net:
        torch.manual_seed(self.width * 100 + self.inner)
        return Net(self.width, self.inner).to(self.dtype).to(dtype or self.dtype).eval()


def random(draw: Any, *shape: int, std: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 2**31)))) * std


def part(draw: Any, name: str, weight: Tensor, rule: str, dtype: torch.dtype) -> tuple[str, AdapterPart]:
    """A part of an adapter for the layer `name`, whose weight is given."""
    if rule == "override":
        return f"{name}.weight", Value(random(draw, *weight.shape, std=0.3).to(dtype))
    transposed = KINDS[name] in ("Embedding", "Conv1D")
    out, inp = (weight.shape[1], weight.shape[0]) if transposed else (len(weight), weight[0].numel())
    rank, scale = draw(st.integers(1, 6)), draw(st.sampled_from([0.5, 1.0, 1.5, 2.0, -0.7, 3.3]))
    magnitude = (random(draw, out).abs() + 0.5).to(dtype) if rule == "ordered" else None
    a, b = (random(draw, *sizes, std=0.3).to(dtype) for sizes in ((rank, inp), (out, rank)))
    return f"{name}.weight", Factors(KINDS[name], scale, a, b, transposed, 1, magnitude)


@st.composite
def drawn(draw: Any, rules: tuple[str, ...], dtype: torch.dtype) -> Drawn:
    shape = Drawn(draw(st.integers(2, 9)), draw(st.integers(2, 12)), dtype, [])
    weights = dict(shape.model().named_parameters())
    for digest in range(draw(st.integers(1, 4))):
        factors = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
        names = draw(st.lists(st.sampled_from(sorted(KINDS)), min_size=1, unique=True))
        rule = {name: draw(st.sampled_from(rules)) for name in names}
        parts = dict(part(draw, name, weights[f"{name}.weight"], rule[name], factors) for name in names)
        found: dict[str, tuple[AdapterPart, ...]] = {name: (value,) for name, value in parts.items()}
        extra = draw(
            st.sampled_from(("none", *({"override": "norm rows", "additive": "bias"}.get(r, "") for r in rules)))
        )
        if extra == "bias" and rule.get("up") == "additive":
            found["up.bias"] = (Bias(found["up.weight"][0].scale, random(draw, shape.inner).to(factors)),)  # type: ignore[union-attr]
        if extra == "norm rows":
            found["norm.weight"] = (Value(random(draw, shape.width) + 0.5),)
            rows = torch.tensor(draw(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=4, unique=True)))
            if "tokens.weight" not in found:
                found["tokens.weight"] = (Rows(rows, random(draw, len(rows), shape.width).to(factors)),)
        plain = set(rule.values()) == {"additive"} and extra != "norm rows"
        weight = draw(st.sampled_from([1.0, 0.5, 0.0, -1.25])) if plain else draw(st.sampled_from([1.0, 1.0, 0.0]))
        shape.chain.append((Adapter(found, f"level {digest}"), weight))
    return shape


@torch.inference_mode()
def outputs(model: nn.Module) -> Tensor:
    found: Tensor = model(IDS)
    return found


def reference(case: Drawn) -> tuple[Tensor, dict[str, Tensor]]:
    """The model's outputs and its tensors, every edit applied one after the other in float64."""
    model = case.model(torch.float64)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for adapter, weight in case.chain:
        if weight:
            for name, edits in adapter.step(weight).edits.items():
                state[name] = exact(state[name], edits)
    model.load_state_dict(state)
    return outputs(model), state


def forms(case: Drawn) -> dict[str, Tensor]:
    """The outputs of the chain merged, stacked, and split after each level."""
    found = {}
    merged = case.model()
    MergedWeights(merged).merge(programs_of(case.chain))
    found["merged"] = outputs(merged)
    for depth in range(len(case.chain)):
        model = case.model()
        before = chains.state_digest(model)
        merges = MergedWeights(model)
        merges.merge(programs_of(case.chain[:depth]))
        stack = Stack(model, programs_of(case.chain[depth:]))
        found[f"split after {depth}"] = outputs(model)
        stack.remove()
        merges.restore()
        assert chains.state_digest(model) == before
    return found


EXAMPLES = settings(max_examples=examples(40), deadline=None, suppress_health_check=[HealthCheck.too_slow])


@EXAMPLES
@given(case=drawn(("additive", "override", "ordered"), torch.float32))
def test_merged_stacked_and_split_are_the_float64_function(case: Drawn) -> None:
    expected, state = reference(case)
    # What float32 itself costs: some drawn models cancel, and are off by as much with the exact weights.
    exactly = case.model()
    exactly.load_state_dict(state)
    rounding = chains.relative(outputs(exactly), expected)
    for name, found in forms(case).items():
        assert chains.relative(found, expected) < 2e-5 + 4 * rounding, name


@EXAMPLES
@given(case=drawn(("additive",), torch.float32))
def test_flattened_in_peft_is_the_float64_function_too(case: Drawn) -> None:
    expected, _ = reference(case)
    manifest = manifest_of_module(case.model())
    if not any(weight for _, weight in case.chain):
        with pytest.raises(Invalid, match="no adapter to flatten"):
            flattened(case.chain, manifest, base_model="net")
        return
    touched = {name for adapter, weight in case.chain if weight for name in adapter.parts}
    if "up.bias" in touched and not touched.isdisjoint({"tokens.weight", "head.weight"}):
        with pytest.raises(
            Invalid, match=r"PEFT adds to the biases of all modules of an adapter or of none \(lora_bias\)"
        ):
            flattened(case.chain, manifest, base_model="net")
        return
    flat = flattened(case.chain, manifest, base_model="net")
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT tells that a Conv1D is turned and that it does not know the base
        (Path(folder) / "adapter_config.json").write_text(json.dumps(flat.config))
        save_file(flat.tensors, Path(folder) / "adapter_model.safetensors")
        model = peft.PeftModel.from_pretrained(copy.deepcopy(case.model()), folder).eval()
    assert chains.relative(outputs(model), expected) < 2e-5


@EXAMPLES
@given(case=st.sampled_from([torch.bfloat16, torch.float16]).flatmap(lambda d: drawn(("additive", "override"), d)))
def test_a_16_bit_merge_is_the_float64_one_rounded_once(case: Drawn) -> None:
    _, expected = reference(case)
    model = case.model()
    MergedWeights(model).merge(programs_of(case.chain))
    for name, found in model.state_dict().items():
        slack = 2e-5 * (expected[name].abs() + 10)
        assert ((found.double() - expected[name]).abs() <= half_ulp(found) + slack).all(), name
