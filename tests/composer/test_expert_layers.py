"""Adapters with a LoRA on each expert's own layers, as transformers 4 had them: joined as PEFT joins them, or refused.

PEFT joins them for some architectures, and only if gate and up and down all have a LoRA. For others it says nothing and
computes something else; `test_where_pefts_forward_is_not_what_was_trained` shows where, so that a mend is noticed.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import peft
import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

from loratree_composer.adapters.adapter import programs_of
from loratree_composer.arithmetic.merge import merged
from loratree_composer.base.manifest import manifest_of_module, read_base
from loratree_registry.errors import Invalid
from loratree_registry.peft_format.classify import classify
from loratree_registry.workspace.base_locations import remember_base
from tests import tiny
from tests.composer import chains
from tests.composer.conftest import Tree, open_catalog
from tests.composer.every_form import every_form
from tests.peft_bases import experts, mixtral, olmoe, quiet, qwen3_moe

R, ALPHA = 2, 4
# For the page on adapters.
EXPERT_LAYERS = (
    (
        "LoRA on the Linear layers of each expert (Mixtral, MiniMax-M2, Qwen3-MoE and OLMoE of transformers 4)",
        "composed on the tensor of all experts, as PEFT loads it",
    ),
    ("the same on a router (`gate`)", "composed, as PEFT loads it"),
    ("the same without down, or without one of gate and up", "refused: PEFT loads none of it"),
    ("the same with rsLoRA, or with another alpha for some", "refused: PEFT computes another scale than was trained"),
    (
        "the same beside dense layers or shared experts of these names (DeepSeek-V3)",
        "refused: PEFT leaves these layers out",
    ),
    (
        "the same with a regular expression of their older names",
        "refused: PEFT leaves them out",
    ),
    ("the same on Qwen2-MoE", "refused: PEFT leaves out the experts"),
)


class Kind(NamedTuple):
    """A family: a small model, where transformers 4 had an expert's layers, and their names: gate, up, down."""

    create: Callable[[], nn.Module]
    where: str
    names: tuple[str, str, str]

    def make(self) -> nn.Module:
        """The model, always with the same weights."""
        torch.manual_seed(0)
        return self.create()


def minimax() -> nn.Module:
    return experts(transformers.MiniMaxM2Config, transformers.MiniMaxM2ForCausalLM)


def qwen2_moe() -> nn.Module:
    sizes = {"num_experts": 4, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24}
    return experts(transformers.Qwen2MoeConfig, transformers.Qwen2MoeForCausalLM, **sizes)


def deepseek() -> nn.Module:
    sizes = {"n_routed_experts": 4, "moe_intermediate_size": 24, "n_group": 1, "topk_group": 1}
    heads = {"kv_lora_rank": 8, "q_lora_rank": None, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
    heads["head_dim"] = heads["qk_rope_head_dim"]
    return experts(
        transformers.DeepseekV3Config, transformers.DeepseekV3ForCausalLM, first_k_dense_replace=1, **sizes, **heads
    )


OLD, NEW = ("w1", "w3", "w2"), ("gate_proj", "up_proj", "down_proj")
JOINED = {
    "mixtral": Kind(mixtral, "block_sparse_moe", OLD),
    "minimax-m2": Kind(minimax, "block_sparse_moe", OLD),
    "qwen3-moe": Kind(qwen3_moe, "mlp", NEW),
    "olmoe": Kind(olmoe, "mlp", NEW),
}
LOST = {"qwen2-moe": Kind(qwen2_moe, "mlp", NEW), "deepseek-v3": Kind(deepseek, "mlp", NEW)}


def write(kind: Kind, directory: Path, targets: Sequence[str], *, seed: int = 1, **config: Any) -> dict[str, Tensor]:
    """Write an adapter as PEFT did over transformers 4: on `targets`, of each expert and of every other layer."""
    generator, tensors = torch.Generator().manual_seed(seed), dict[str, Tensor]()
    state = kind.make().state_dict()

    def add(layer: str, out: int, into: int) -> None:
        for letter, shape in (("A", (R, into)), ("B", (out, R))):
            value = torch.randn(shape, generator=generator) * 0.1
            tensors[f"base_model.model.{layer}.lora_{letter}.weight"] = value

    for name, value in state.items():
        layer, _, parameter = name.removesuffix(".weight").rpartition(".")
        if parameter in ("gate_up_proj", "down_proj") and value.ndim == 3:
            count, out, into = value.shape
            leaves = kind.names[:2] if parameter == "gate_up_proj" else kind.names[2:]
            for leaf in [leaf for leaf in leaves if leaf in targets]:
                for number in range(count):
                    old = layer.replace("mlp.experts", f"{kind.where}.experts.{number}")
                    add(f"{old}.{leaf}", out // len(leaves), into)
        elif parameter in targets and value.ndim == 2:
            add(f"{layer.replace('mlp', kind.where)}.{parameter}", *value.shape)
    settings: dict[str, Any] = {"peft_type": "LORA", "r": R, "lora_alpha": ALPHA, "task_type": "CAUSAL_LM"}
    directory.mkdir(parents=True)
    save_file(tensors, directory / chains.WEIGHTS, metadata={"format": "pt"})
    config = settings | {"target_modules": list(targets)} | config
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return tensors


def trained(kind: Kind, levels: Sequence[dict[str, Tensor]], alphas: Mapping[str, float] | None = None) -> nn.Module:
    """The model as it was trained: each expert's deltas in its part of the tensor."""
    model = kind.make().eval()
    state = model.state_dict()
    with torch.no_grad():
        for level in levels:
            for key in [key for key in level if ".lora_A." in key]:
                alpha = (alphas or {}).get(key.split(".")[-3], ALPHA)
                delta = alpha / R * (level[key.replace("lora_A", "lora_B")].double() @ level[key].double())
                layer = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
                slice_of(kind, state, layer).add_(delta)
    return model


def slice_of(kind: Kind, state: dict[str, Tensor], layer: str) -> Tensor:
    """The rows of the present tensor that are the weight of an older layer."""
    container, _, leaf = layer.replace(kind.where, "mlp").rpartition(".")
    if ".experts." not in container:
        return state[f"{container}.{leaf}.weight"]
    container, _, number = container.rpartition(".")
    if leaf == kind.names[2]:
        return state[f"{container}.down_proj"][int(number)]
    whole = state[f"{container}.gate_up_proj"][int(number)]
    return whole.chunk(2)[kind.names.index(leaf)]


@torch.no_grad()
def output(model: nn.Module) -> Tensor:
    value = model(input_ids=tiny.tokens(vocabulary=90)).logits
    assert isinstance(value, Tensor)
    return value


def load(directory: Path) -> nn.Module:
    with quiet():
        model: nn.Module = transformers.AutoModelForCausalLM.from_pretrained(directory, experts_implementation="eager")
    return model.eval()


def by_peft(model: nn.Module, directory: Path) -> Tensor:
    with quiet():
        return output(peft.PeftModel.from_pretrained(model, directory).eval())  # type: ignore[arg-type]


def refusal(kind: Kind, directory: Path) -> str:
    header, config = chains.read_files(directory)
    with pytest.raises(Invalid) as error:
        classify(config, header, manifest_of_module(kind.make()))
    return str(error.value)


@pytest.mark.parametrize("name", JOINED)
def test_every_form_of_a_chain_is_the_trained_function(name: str, tmp_path: Path) -> None:
    kind = JOINED[name]
    with quiet():
        kind.make().save_pretrained(tmp_path / "base")  # type: ignore[operator]
    base, levels = tmp_path / "base", [tmp_path / "level1", tmp_path / "level2"]
    first = write(kind, levels[0], ["q_proj", *kind.names, "gate"])
    second = write(kind, levels[1], [kind.names[2]], seed=2)
    expected = output(trained(kind, [first, second]))
    catalog = open_catalog(tmp_path / "home", Tree(base, read_base(base), levels))
    with closing(catalog.registry):
        catalog.registry.add_base("tiny", catalog.tree.manifest)
        remember_base(catalog.home, catalog.tree.manifest.digest, base)
        for depth, directory in enumerate(levels):
            catalog.publish(directory, catalog.path(depth + 1), parent=catalog.path(depth) if depth else "base")
        forms = every_form(
            catalog.registry,
            catalog.path(2),
            base=base,
            split=catalog.path(1),
            folder=tmp_path / "forms",
            home=catalog.home,
            load=load,
            run=output,
        )
    assert chains.relative(output(load(base)), expected) > 0.01
    assert {form: chains.relative(value, expected) < 1e-5 for form, value in forms.items()} == dict.fromkeys(
        forms, True
    )


@pytest.mark.parametrize("targets", ["all", "down", "gate", "one layer", "all-linear", "a loose expression"])
@pytest.mark.parametrize("name", JOINED)
def test_pefts_forward_is_the_trained_function_where_we_compose(name: str, targets: str, tmp_path: Path) -> None:
    kind = JOINED[name]
    chosen = {"down": kind.names[2:], "gate": ("gate",)}.get(targets, kind.names)
    config: dict[str, Any] = {"target_modules": "all-linear"} if targets == "all-linear" else {}
    if targets == "a loose expression":
        config = {"target_modules": rf".*\.(q_proj|k_proj|v_proj|o_proj|{'|'.join(chosen)})"}
    config |= {"layers_to_transform": [1]} if targets == "one layer" else {}
    tensors = write(kind, tmp_path / "adapter", ["q_proj", "k_proj", "v_proj", "o_proj", *chosen], **config)
    if targets == "one layer":
        tensors = {key: value for key, value in tensors.items() if ".layers.1." in key}
        save_file(tensors, tmp_path / "adapter" / chains.WEIGHTS, metadata={"format": "pt"})
    expected = output(trained(kind, [tensors]))
    manifest = manifest_of_module(kind.make())
    model = kind.make().eval()
    weights = model.state_dict()
    for parameter, program in programs_of([(chains.read(tmp_path / "adapter", manifest), 1.0)]).items():
        weights[parameter].copy_(merged(weights[parameter], program.edits, name=parameter))
    assert chains.relative(output(model), expected) < 1e-5
    assert chains.relative(by_peft(kind.make().eval(), tmp_path / "adapter"), expected) < 1e-5


REFUSED: dict[str, tuple[str, tuple[int, ...], dict[str, Any], str]] = {
    "gate and up": ("mixtral", (0, 1), {}, "LoRA on some of the layers that a tensor of experts joins"),
    "up and down": ("qwen3-moe", (1, 2), {}, "LoRA on some of the layers that a tensor of experts joins"),
    "rslora": ("olmoe", (0, 1, 2), {"use_rslora": True}, "LoRA on experts whose scale changes when PEFT joins them"),
    "alpha": ("mixtral", (0, 1, 2), {"alpha_pattern": {"w2": 8}}, "LoRA on experts whose scale changes"),
    "dense": ("deepseek-v3", (0, 1, 2), {}, "LoRA on a layer named as the experts' own layers were"),
    "an expression of old names": (
        "mixtral",
        (0, 1, 2),
        {"target_modules": r".*\.(q_proj|block_sparse_moe\.experts\.\d+\.(w1|w2|w3))"},
        "LoRA on experts that target_modules chooses by a regular expression of their older names",
    ),
    "an expression of numbers": (
        "qwen3-moe",
        (0, 1, 2),
        {"target_modules": r"model\.layers\.\d+\.(self_attn\.q_proj|mlp\.experts\.\d+\.(gate|up|down)_proj)"},
        "LoRA on experts that target_modules chooses by a regular expression of their older names",
    ),
    "qwen2-moe": ("qwen2-moe", (0, 1, 2), {}, "LoRA on each expert's own layers is not composed"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_where_pefts_forward_is_not_what_was_trained(case: str, tmp_path: Path) -> None:
    name, chosen, config, reason = REFUSED[case]
    kind = (JOINED | LOST)[name]
    tensors = write(kind, tmp_path / "adapter", ["q_proj", *(kind.names[at] for at in chosen)], **config)
    assert reason in refusal(kind, tmp_path / "adapter")
    if "an expression" in case:  # the remedy
        written = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
        listed = written | {"target_modules": ["q_proj", *kind.names]}
        assert classify(listed, chains.read_files(tmp_path / "adapter")[0], manifest_of_module(kind.make())).modules
    try:
        found = by_peft(kind.make().eval(), tmp_path / "adapter")
    except ValueError as error:
        assert "Cannot convert PEFT target(s)" in str(error)  # noqa: PT017
    else:
        alphas = dict.fromkeys(("q_proj", *kind.names), ALPHA * R**0.5) if "use_rslora" in config else {}
        expected = output(trained(kind, [tensors], alphas | config.get("alpha_pattern", {})))
        assert chains.relative(found, expected) > 1e-3


@pytest.mark.parametrize("lost", ["an expert", "a shape", "a magnitude"])
def test_experts_that_cannot_be_joined_are_refused(lost: str, tmp_path: Path) -> None:
    kind = JOINED["mixtral"]
    tensors = write(kind, tmp_path / "adapter", kind.names)
    key = next(key for key in tensors if ".experts.3.w2.lora_A" in key)
    if lost == "an expert":
        tensors = {other: value for other, value in tensors.items() if ".experts.3.w2." not in other}
    elif lost == "a shape":
        tensors[key] = torch.cat([tensors[key]] * 2)
    else:
        tensors[key.replace("lora_A.weight", "lora_magnitude_vector")] = torch.ones(4)
    save_file(tensors, tmp_path / "adapter" / chains.WEIGHTS, metadata={"format": "pt"})
    expected = (
        "DoRA or lora_bias on each expert's own layers" if lost == "a magnitude" else "LoRA on some of the layers"
    )
    assert expected in refusal(kind, tmp_path / "adapter")


def test_a_base_that_was_recorded_before_is_to_be_added_again(tmp_path: Path) -> None:
    kind = JOINED["mixtral"]
    write(kind, tmp_path / "adapter", kind.names)
    header, config = chains.read_files(tmp_path / "adapter")
    with pytest.raises(Invalid, match=r"recorded before loratree could join them; .* `loratree base add`"):
        classify(config, header, replace(manifest_of_module(kind.make()), expert_layers=None))
