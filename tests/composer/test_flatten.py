import json
from pathlib import Path

import peft
import pytest
import torch

from loratree_composer.adapter import Adapter, Factors, summed
from loratree_composer.flatten import FlatAdapter, filled, flattened, target_modules, widest
from loratree_composer.lowrank import LowRank
from loratree_registry.errors import Invalid
from loratree_registry.manifest import BaseManifest, Parameter
from tests.composer import chains
from tests.composer.arithmetic import random_delta
from tests.composer.conftest import Tree

LAYERS = [f"model.layers.{layer}" for layer in (0, 1)]


def flat(tree: Tree, deltas: dict[str, LowRank], dtype: torch.dtype = torch.float32) -> FlatAdapter:
    return flattened(deltas, tree.manifest, dtype, base_model=str(tree.base))


def modules(adapter: FlatAdapter) -> set[str]:
    return {key.removeprefix("base_model.model.").rpartition(".lora_")[0] for key in adapter.tensors}


def test_missing_layers_and_siblings_are_filled_with_zeros(llama: Tree) -> None:
    adapter = flat(llama, {f"{LAYERS[1]}.self_attn.q_proj": random_delta(32, 32, 3, seed=0)})
    assert modules(adapter) == {f"{layer}.self_attn.{side}_proj" for layer in LAYERS for side in "qkv"}
    touched = {key for key, tensor in adapter.tensors.items() if tensor.any()}
    assert touched == {f"base_model.model.{LAYERS[1]}.self_attn.q_proj.lora_{side}.weight" for side in "AB"}


def test_gate_and_up_are_siblings_and_down_is_alone(llama: Tree) -> None:
    names = [f"{layer}.mlp.{name}_proj" for layer in LAYERS for name in ("gate", "up", "down")]
    assert filled({names[1]}, names) == {name for name in names if "down" not in name}
    assert filled({names[2]}, names) == {name for name in names if "down" in name}


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


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_peft_targets_exactly_the_flattened_modules(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    tree: Tree = request.getfixturevalue(name)
    adapter = flat(tree, summed((chains.read(path, tree.manifest), 1.0) for path in tree.chain[1:2]))
    (tmp_path / "adapter_config.json").write_text(json.dumps(adapter.config))
    tuned = peft.get_peft_model(chains.load(tree.base), peft.LoraConfig.from_pretrained(tmp_path))
    targeted = {
        layer.removeprefix("base_model.model.")
        for layer, module in tuned.named_modules()
        if isinstance(module, peft.tuners.lora.LoraLayer)
    }
    assert targeted == modules(adapter)


def test_the_scale_is_folded_in_float32_before_the_cast(llama: Tree) -> None:
    name = f"{LAYERS[0]}.self_attn.o_proj"
    raw = random_delta(32, 32, 3, seed=0)
    adapter = Adapter({name: Factors("Linear", 0.3, raw.a.bfloat16(), raw.b.bfloat16())})
    found = flat(llama, summed([(adapter, 1.0)]), torch.bfloat16).tensors[f"base_model.model.{name}.lora_B.weight"]
    assert torch.equal(found, (raw.b.bfloat16().float() * 0.3).bfloat16())


def test_a_level_weight_multiplies_its_delta_and_zero_drops_the_level(llama: Tree) -> None:
    name = f"{LAYERS[0]}.self_attn.o_proj"
    raw = random_delta(32, 32, 3, seed=0)
    adapter = Adapter({name: Factors("Linear", 2.0, raw.a, raw.b)})
    torch.testing.assert_close(summed([(adapter, 0.25), (adapter, 0.0)])[name].delta(), raw.delta() * 0.5)
    assert summed([(adapter, 0.0)]) == {}


def test_the_widest_dtype_holds_every_value() -> None:
    assert widest([torch.bfloat16, torch.bfloat16]) == torch.bfloat16
    assert widest([torch.bfloat16, torch.float16]) == torch.float32
    assert widest([torch.float16, torch.float32]) == torch.float32


def test_no_delta_at_all_is_refused(llama: Tree) -> None:
    with pytest.raises(Invalid, match="the base itself"):
        flat(llama, {})


def test_deltas_that_the_base_has_no_place_for_are_listed(llama: Tree) -> None:
    deltas = {"model.nowhere": random_delta(32, 32, 1, seed=0), "lm_head": random_delta(32, 32, 1, seed=0)}
    with pytest.raises(Invalid, match=r"lm_head has a delta .*; model\.nowhere is no untied layer"):
        flat(llama, deltas)


def test_a_factor_that_overflows_the_dtype_is_named(llama: Tree) -> None:
    name = f"{LAYERS[0]}.self_attn.o_proj"
    delta = random_delta(32, 32, 1, seed=0)
    with pytest.raises(Invalid, match=r"o_proj\.lora_B"):
        flat(llama, {name: LowRank(delta.a, delta.b * 1e8)}, torch.float16)
