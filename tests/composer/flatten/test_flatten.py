import json
from pathlib import Path

import peft
import pytest
import torch
from torch import nn

from loratree_composer.adapters.adapter import Adapter, Factors
from loratree_composer.arithmetic.lowrank import LowRank
from loratree_composer.base.manifest import manifest_of_module
from loratree_composer.flatten.flatten import FlatAdapter, common_dtype, flattened
from loratree_composer.flatten.targets import target_modules, with_siblings
from loratree_registry.core.manifest import BaseManifest, Parameter
from loratree_registry.errors import Invalid
from loratree_registry.peft_format.targets import TargetModules
from tests.composer import chains
from tests.composer.conftest import Tree
from tests.composer.reference_sums import random_delta

LAYERS = [f"model.layers.{layer}" for layer in (0, 1)]


Chain = list[tuple[Adapter, float]]


def level(deltas: dict[str, LowRank], scale: float = 1.0, **options: str) -> tuple[Adapter, float]:
    """A level that has these factors, as they are, on Linear layers."""
    return Adapter(
        {f"{name}.weight": (Factors("Linear", scale, d.a, d.b),) for name, d in deltas.items()}, **options
    ), 1.0


def flat(tree: Tree, deltas: dict[str, LowRank] | Chain) -> FlatAdapter:
    chain = deltas if isinstance(deltas, list) else [level(deltas)]
    return flattened(chain, tree.manifest, base_model=str(tree.base))


def modules(adapter: FlatAdapter) -> set[str]:
    return {key.removeprefix("base_model.model.").rpartition(".lora_")[0] for key in adapter.tensors}


def test_missing_layers_and_siblings_are_filled_with_zeros(llama: Tree) -> None:
    adapter = flat(llama, {f"{LAYERS[1]}.self_attn.q_proj": random_delta(32, 32, 3, seed=0)})
    assert modules(adapter) == {f"{layer}.self_attn.{side}_proj" for layer in LAYERS for side in "qkv"}
    touched = {key for key, tensor in adapter.tensors.items() if tensor.any()}
    assert touched == {f"base_model.model.{LAYERS[1]}.self_attn.q_proj.lora_{side}.weight" for side in "AB"}


def test_gate_and_up_are_siblings_and_down_is_alone(llama: Tree) -> None:
    names = [f"{layer}.mlp.{name}_proj" for layer in LAYERS for name in ("gate", "up", "down")]
    assert with_siblings({names[1]}, names) == {name for name in names if "down" not in name}
    assert with_siblings({names[2]}, names) == {name for name in names if "down" in name}


def test_every_module_has_one_rank_and_no_scale_is_left(llama: Tree) -> None:
    deltas = {
        f"{LAYERS[0]}.mlp.down_proj": random_delta(32, 56, 5, seed=0),
        f"{LAYERS[0]}.self_attn.o_proj": random_delta(32, 32, 2, seed=1),
    }
    adapter = flat(llama, deltas)
    assert (adapter.config["r"], adapter.config["lora_alpha"], adapter.config["use_rslora"]) == (5, 5, False)
    assert {tensor.shape[0] for key, tensor in adapter.tensors.items() if "lora_A" in key} == {5}
    assert {tensor.shape[1] for key, tensor in adapter.tensors.items() if "lora_B" in key} == {5}


def test_short_names_are_used_only_where_they_match_nothing_else() -> None:
    names = ("a.proj.weight", "b.proj.weight", "b.other.weight", "c.other.inner.weight")
    manifest = BaseManifest(
        parameters=tuple(Parameter(name=name, shape=(2, 2), dtype="F32", kind="Linear", sha256="-") for name in names)
    )
    assert target_modules({"a.proj", "b.proj"}, manifest) == ["proj"]
    assert target_modules({"a.proj"}, manifest) == ["a.proj"]
    assert target_modules({"b.other"}, manifest) == ["b.other"]  # a container is called `other` too


class Nested(nn.Module):
    """Layers whose full names are the ends of others': proj, a.proj, b.a.proj."""

    def __init__(self) -> None:
        super().__init__()
        self.proj, self.aXproj = nn.Linear(3, 3), nn.Linear(3, 3)
        self.a, self.b = (nn.ModuleDict({"proj": nn.Linear(3, 3)}) for _ in range(2))
        self.b["a"] = nn.ModuleDict({"proj": nn.Linear(3, 3)})


@pytest.mark.parametrize(
    "names", [{"proj"}, {"a.proj"}, {"proj", "b.proj"}, {"b.a.proj"}, {"proj", "a.proj", "b.proj", "b.a.proj"}]
)
def test_peft_matches_exactly_these_names_even_where_one_ends_another(names: set[str]) -> None:
    module = Nested()
    targets = target_modules(names, manifest_of_module(module))
    tuned = peft.get_peft_model(module, peft.LoraConfig(target_modules=targets))  # type: ignore[arg-type]
    assert set(tuned.base_model.targeted_module_names) == names
    ours = TargetModules({"target_modules": targets})  # what publishing the flattened adapter goes by
    assert {name for name, _ in Nested().named_modules() if name and ours.includes(name)} == names
    assert ours.unchecked == []


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_peft_targets_exactly_the_flattened_modules(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    tree: Tree = request.getfixturevalue(name)
    adapter = flat(tree, [(chains.read(tree.chain[1], tree.manifest), 1.0)])
    (tmp_path / "adapter_config.json").write_text(json.dumps(adapter.config))
    tuned = peft.get_peft_model(chains.load(tree.base), peft.LoraConfig.from_pretrained(tmp_path))
    targeted = {
        layer.removeprefix("base_model.model.")
        for layer, module in tuned.named_modules()
        if isinstance(module, peft.tuners.lora.LoraLayer)
    }
    assert targeted == modules(adapter)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_factors_stay_so_where_folding_the_scale_is_exact_and_are_float32_elsewhere(
    llama: Tree, dtype: torch.dtype
) -> None:
    name = f"{LAYERS[0]}.self_attn.o_proj"
    delta = random_delta(32, 32, 3, seed=0).to(torch.device("cpu"), dtype)
    for scale, expected in ((2.0, dtype), (0.25, dtype), (0.3, torch.float32), (1.5, torch.float32)):
        adapter = flat(llama, [level({name: delta}, scale)])
        found = adapter.tensors[f"base_model.model.{name}.lora_B.weight"]
        assert found.dtype == adapter.dtype == expected
        assert torch.equal(found.float(), delta.b.float() * scale)


def test_one_module_whose_scale_does_not_fold_exactly_makes_all_of_them_float32(llama: Tree) -> None:
    halves = random_delta(32, 32, 3, seed=0).to(torch.device("cpu"), torch.bfloat16)
    exact, other = (level({f"{layer}.self_attn.o_proj": halves}, s) for layer, s in zip(LAYERS, (2, 0.3), strict=True))
    assert {tensor.dtype for tensor in flat(llama, [exact]).tensors.values()} == {torch.bfloat16}
    assert {tensor.dtype for tensor in flat(llama, [exact, other]).tensors.values()} == {torch.float32}


def test_float64_factors_stay_float64(llama: Tree) -> None:
    delta = random_delta(32, 32, 3, seed=0).to(torch.device("cpu"), torch.float64)
    assert flat(llama, [level({f"{LAYERS[0]}.self_attn.o_proj": delta}, 0.3)]).dtype == torch.float64


def test_the_task_is_the_one_that_all_levels_share(llama: Tree) -> None:
    deltas = {f"{LAYERS[0]}.self_attn.o_proj": random_delta(32, 32, 1, seed=0)}
    causal, classifier, none = (level(deltas, **task) for task in ({"task_type": "CAUSAL_LM"}, {"task_type": "X"}, {}))
    found = [
        flat(llama, chain).config["task_type"]
        for chain in ([causal, causal], [causal, classifier], [causal, none], [none])
    ]
    assert found == ["CAUSAL_LM", None, None, None]


def test_a_level_weight_multiplies_its_delta_and_zero_drops_the_level(llama: Tree) -> None:
    name = f"{LAYERS[0]}.self_attn.o_proj"
    raw = random_delta(32, 32, 3, seed=0)
    adapter = Adapter({f"{name}.weight": (Factors("Linear", 2.0, raw.a, raw.b),)})
    torch.testing.assert_close(chains.summed([(adapter, 0.25), (adapter, 0.0)])[name].delta(), raw.delta() * 0.5)
    assert chains.summed([(adapter, 0.0)]) == {}


def test_the_widest_dtype_holds_every_value() -> None:
    assert common_dtype([torch.bfloat16, torch.bfloat16]) == torch.bfloat16
    assert common_dtype([torch.bfloat16, torch.float16]) == torch.float32
    assert common_dtype([torch.float16, torch.float32]) == torch.float32


def test_no_delta_at_all_is_refused(llama: Tree) -> None:
    with pytest.raises(Invalid, match="the base itself"):
        flat(llama, {})


def test_deltas_that_the_base_has_no_place_for_are_listed(llama: Tree) -> None:
    deltas = {"model.nowhere": random_delta(32, 32, 1, seed=0), "lm_head": random_delta(32, 32, 1, seed=0)}
    with pytest.raises(Invalid, match=r"lm_head\.weight has a delta .*; model\.nowhere\.weight is no weight"):
        flat(llama, deltas)


def test_a_factor_that_overflows_is_named(llama: Tree) -> None:
    name = f"{LAYERS[0]}.self_attn.o_proj"
    delta = random_delta(32, 32, 1, seed=0)
    half = delta.to(torch.device("cpu"), torch.float16)
    assert flat(llama, [level({name: half}, 2.0**24)]).dtype == torch.float32
    with pytest.raises(Invalid, match=r"o_proj\.weight would hold values that are not finite in torch\.float32"):
        flat(llama, [level({name: LowRank(delta.a, delta.b * 1e20)}, 1e30)])


def test_a_large_model_whose_every_factor_overflows_gets_a_short_sentence(llama: Tree) -> None:
    names = [p.name.removesuffix(".weight") for p in llama.manifest.parameters if p.name.endswith("_proj.weight")]
    shapes = {p.name: p.shape for p in llama.manifest.parameters}
    deltas = {name: random_delta(*shapes[f"{name}.weight"], 1, seed=0) for name in names}
    huge = {name: LowRank(delta.a, delta.b * 1e20) for name, delta in deltas.items()}
    with pytest.raises(Invalid, match=r"down_proj\.weight would hold values that are not finite in torch\.float32"):
        flat(llama, [level(huge, 1e30)])
