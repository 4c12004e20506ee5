"""Every kind of adapter that PEFT writes: its spec alone composes what PEFT's forward computes, or it is refused."""

import copy
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from loratree_composer.base.manifest import manifest_of_module
from loratree_registry.core.manifest import BaseManifest
from loratree_registry.errors import Invalid
from loratree_registry.peft_format.classify import canonical_config, classify
from loratree_registry.peft_format.spec import AdapterSpec, ModuleSpec
from loratree_registry.peft_format.tensors import FACTORS
from loratree_registry.tensor_files.finite import check_finite
from loratree_registry.tensor_files.header import read_header
from tests.peft_adapters import ACCEPTED, Row
from tests.peft_bases import bert, mixtral, qwen3_moe
from tests.refused_adapters import REFUSED

PREFIX = "base_model.model."
Saved = tuple[dict[str, Any], dict[str, Tensor]]


def read(directory: Path) -> Saved:
    """Read the config and the tensors of an adapter."""
    config = json.loads((directory / "adapter_config.json").read_text())
    return config, safetensors.torch.load_file(directory / "adapter_model.safetensors")


def spec_of(saved: Saved, manifest: BaseManifest) -> AdapterSpec:
    """Return the adapter's spec; check that the canonical config without digests gives the same spec."""
    config, tensors = saved
    data = safetensors.torch.save(tensors)
    stream = io.BytesIO(data)
    header = read_header(stream, len(data))
    spec = classify(config, header, manifest, digests=check_finite(stream, header, undigested=FACTORS))
    assert classify(canonical_config(config), header, manifest) == spec
    return spec


def refusal(saved: Saved, manifest: BaseManifest) -> str:
    """Return the one sentence that refuses an adapter, and its details."""
    with pytest.raises(Invalid) as refused:
        spec_of(saved, manifest)
    assert "\n" not in str(refused.value)
    return "; ".join([str(refused.value), *refused.value.details])


def named(rows: tuple[Row, ...]) -> list[Any]:
    """Return the rows as test parameters, each with its name as id."""
    return [pytest.param(row, id=row.name) for row in rows]


@dataclass(frozen=True)
class Written:
    """The files that PEFT wrote for a row over its base, in float32, and the base's manifest."""

    directory: Path
    manifest: BaseManifest

    @property
    def saved(self) -> Saved:
        return read(self.directory)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Written]:
    """Return a function that writes the adapter of an accepted row, by name, once."""

    @cache
    def write(name: str) -> Written:
        row = next(row for row in ACCEPTED if row.name == name)
        base = row.base()
        return Written(row.adapt(base, tmp_path_factory.mktemp(name)), manifest_of_module(base))

    return write


def edited(adapter: Written, **config: Any) -> tuple[Saved, BaseManifest]:
    """Return the adapter with other fields in its config, and the base's manifest."""
    written, tensors = adapter.saved
    return (written | config, tensors), adapter.manifest


# A minimal composer in float64 that reads only the spec and the file: it defines the meaning of a spec.


def composed(base: nn.Module, spec: AdapterSpec, tensors: dict[str, Tensor]) -> nn.Module:
    """Return a copy of `base` with every part of the adapter. Changed tensors share no memory, not even tied ones."""
    model = copy.deepcopy(base)
    parts = [*spec.modules, *spec.values, *spec.rows]
    changed = {part.parameter for part in parts} | {f"{module.name}.bias" for module in spec.modules if module.bias}
    own = {name: _untie(model, name) for name in sorted(changed)}
    with torch.no_grad():
        for value in spec.values:
            own[value.parameter].copy_(tensors[value.key])
        for rows in spec.rows:
            own[rows.parameter][list(rows.rows)] = tensors[rows.key].to(own[rows.parameter].dtype)
        for module in spec.modules:
            _add(own[module.parameter], module, {key: tensor.double() for key, tensor in tensors.items()})
            if module.bias is not None:
                own[f"{module.name}.bias"].add_(module.scale * tensors[module.bias])
    return model


def _untie(model: nn.Module, name: str) -> Tensor:
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    tied: Tensor = getattr(module, leaf)
    own = tied.detach().clone()
    setattr(module, leaf, nn.Parameter(own) if isinstance(tied, nn.Parameter) else own)
    return own


def _add(weight: Tensor, module: ModuleSpec, tensors: dict[str, Tensor]) -> None:
    a, b = tensors[module.a].flatten(1), tensors[module.b].flatten(1)
    a = a.reshape(module.experts, module.rank, -1)  # [experts, rank, in]
    b = b.reshape(len(b), module.rank, module.experts).permute(2, 0, 1)  # [experts, out, rank]
    matrices = weight.detach().reshape(module.experts, *_matrix(weight, module))
    total = (matrices.mT if module.transposed else matrices) + module.scale * (b @ a)
    if module.magnitude is not None:
        total *= tensors[module.magnitude].reshape(-1, 1) / total.norm(dim=-1, keepdim=True)
    weight.copy_((total.mT if module.transposed else total).reshape(weight.shape))


def _matrix(weight: Tensor, module: ModuleSpec) -> tuple[int, int]:
    shape = module.out_features, module.in_features
    assert weight.numel() == module.experts * module.in_features * module.out_features
    return (shape[1], shape[0]) if module.transposed else shape


@pytest.mark.parametrize("row", named(ACCEPTED))
def test_the_spec_and_the_file_alone_compose_what_peft_computes(row: Row, written: Callable[[str], Written]) -> None:
    adapter, base = written(row.name), row.base(dtype=torch.float64)
    spec, (_, tensors) = spec_of(adapter.saved, adapter.manifest), adapter.saved
    with torch.no_grad():
        plain, expected = row.run(base), row.run(row.load(base, adapter.directory))
        assert (expected - plain).abs().max() > 0.1 * plain.abs().max()
        actual = row.run(composed(base, spec, tensors) if row.merges else grouped(base, spec, tensors))
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))


def grouped(base: nn.Module, spec: AdapterSpec, tensors: dict[str, Tensor]) -> nn.Module:
    """Return a copy of `base` with a hook on each convolution: A takes all inputs, B is grouped."""
    model = copy.deepcopy(base)
    for module in spec.modules:
        layer = model.get_submodule(module.name)
        assert isinstance(layer, nn.Conv2d)
        assert module.groups == layer.groups

        def beside(layer: nn.Conv2d, args: tuple[Tensor], y: Tensor, module: ModuleSpec = module) -> Tensor:
            a, b = (tensors[key].double() for key in (module.a, module.b))
            inner = torch.conv2d(*args, a, None, layer.stride, layer.padding)
            return y + module.scale * torch.conv2d(inner, b, groups=module.groups)

        layer.register_forward_hook(beside)  # type: ignore[arg-type]
    return model


@pytest.mark.parametrize("row", named(ACCEPTED))
def test_every_tensor_is_a_part_or_a_copy_and_counted_by_its_rule(row: Row, written: Callable[[str], Written]) -> None:
    adapter = written(row.name)
    spec, (_, tensors) = spec_of(adapter.saved, adapter.manifest), adapter.saved
    read_by = {key for module in spec.modules for key in (module.a, module.b, module.magnitude, module.bias) if key}
    read_by |= {value.key for value in spec.values} | {rows.key for rows in spec.rows}
    assert not read_by & {*spec.copies, *spec.unread}
    assert read_by | {*spec.copies, *spec.unread} == set(tensors)
    summary = spec.summary()
    assert tuple(sorted(summary.rules)) == tuple(sorted(row.rules))
    assert sum(summary.rules.values()) == len(spec.modules) + len(spec.values) + len(spec.rows)
    assert summary.parameters == sum(tensors[key].numel() for key in read_by)
    assert set(summary.dtypes) - {"I64"} == {"F32"}  # a BatchNorm's counter is I64


@pytest.mark.parametrize("row", named(REFUSED))
def test_what_is_not_composed_is_refused_by_name_and_nothing_else_is_said(row: Row, tmp_path: Path) -> None:
    base = row.base()
    message = refusal(read(row.adapt(base, tmp_path)), manifest_of_module(base))
    assert row.reason in message
    assert "unknown" not in message
    assert "expected" not in message  # a consequence of the refused feature is not another problem


def test_peft_adds_the_delta_of_an_attention_s_out_proj_twice(written: Callable[[str], Written]) -> None:
    spec = spec_of(written("attention").saved, written("attention").manifest)
    assert {module.parameter: module.scale for module in spec.modules} == {
        "attn.in_proj_weight": 1.5,
        "attn.out_proj.weight": 3.0,
        "proj.weight": 1.5,
    }


@pytest.mark.parametrize(("name", "transposed"), [("experts-gpt-oss", True), ("experts-qwen3", False)])
def test_the_last_parameter_of_a_module_is_the_outermost_in_the_file(
    name: str, transposed: bool, written: Callable[[str], Written]
) -> None:
    saved, manifest = edited(written(name))
    experts = "model.layers.0.mlp.experts"
    specs = {module.parameter: module for module in spec_of(saved, manifest).modules if module.name == experts}
    assert specs[f"{experts}.down_proj"].a == f"{PREFIX}{experts}.lora_A.weight"
    assert specs[f"{experts}.gate_up_proj"].b == f"{PREFIX}{experts}.base_layer.lora_B.weight"
    assert {(module.experts, module.transposed) for module in specs.values()} == {(4, transposed)}


def test_patterns_of_target_parameters_are_matched_on_the_parameter_s_name(written: Callable[[str], Written]) -> None:
    saved, manifest = edited(written("experts-ranks"))
    scales = {module.parameter: (module.rank, module.scale) for module in spec_of(saved, manifest).modules}
    assert scales["model.layers.0.mlp.experts.down_proj"] == (2, 3.0)
    assert scales["model.layers.0.mlp.experts.gate_up_proj"] == (4, 1.5)
    assert scales["model.layers.1.mlp.experts.gate_up_proj"] == (4, 1.25)


@pytest.mark.parametrize(
    ("names", "phrase"),
    [
        (None, "module model.layers.0.mlp.experts has 2 LoRAs, and target_parameters chooses no parameter"),
        (["gate_up_proj"], "has 2 LoRAs, and target_parameters chooses model.layers.0.mlp.experts.gate_up_proj"),
        (["experts"], "chooses no parameter"),
    ],
)
def test_experts_whose_parameters_the_config_does_not_name_are_refused(
    names: list[str] | None, phrase: str, written: Callable[[str], Written]
) -> None:
    saved, manifest = edited(written("experts-qwen3"), target_parameters=names)
    assert phrase in refusal(saved, manifest)


def test_loras_on_parameters_of_one_shape_are_refused_as_nothing_tells_whose_is_whose(
    written: Callable[[str], Written],
) -> None:
    saved, manifest = edited(written("experts-mixtral"))
    down = {p.name: p for p in manifest.parameters if p.name.endswith("experts.down_proj")}
    turned = [
        # as if gate_up had down's shape
        type(p)(
            **{slot: getattr(p, slot) for slot in p.__slots__}
            | {"shape": down[p.name.replace("gate_up", "down")].shape}
        )
        if p.name.endswith("experts.gate_up_proj")
        else p
        for p in manifest.parameters
    ]
    config, tensors = saved
    for key in [key for key in tensors if ".base_layer." in key]:
        tensors[key] = tensors[key.replace(".base_layer", "")].clone()
    message = refusal((config, tensors), BaseManifest(parameters=tuple(turned)))
    assert (
        "target_parameters on parameters of one shape is not composed (model.layers.0.mlp.experts.down_proj" in message
    )


@pytest.mark.parametrize("make", [qwen3_moe, mixtral])
def test_experts_of_another_size_are_refused_in_every_order(make: Any, written: Callable[[str], Written]) -> None:
    saved, _ = edited(written("experts-gpt-oss"))
    message = refusal(saved, manifest_of_module(make()))
    assert "have shapes that fit these parameters in no order" in message


@pytest.mark.parametrize(
    ("ids", "phrase"),
    [
        ([3, 1, 96], "trainable_token_indices has 96, and model.embed_tokens.weight has the rows 0 to 95"),
        ([3, 1, -1], "trainable_token_indices has -1, and model.embed_tokens.weight has the rows 0 to 95"),
        ([3, 1, 3], "trainable_token_indices has 3 more than once, and one row would win"),
        ([3, 1], "has shape [3, 32], expected [2, 32]: a row for each token id"),
        ([3, 1, True], "trainable_token_indices is [3, 1, true], expected a list of token ids"),
        ({"embed_tokens": [3, 1, 90], "tokens": [4, 5, 6]}, "has several lists of ids for model.embed_tokens"),
        ({"lm_head": [3, 1, 90]}, "trainable_token_indices has no list of ids for model.embed_tokens"),
        (
            {"embed_tokens": [3, 1, 90], "wte": [1]},
            "trainable_token_indices names wte, and the file holds none of them",
        ),
        (None, "trainable_token_indices has no list of ids for model.embed_tokens"),
    ],
)
def test_token_ids_that_are_no_rows_of_the_file_are_refused(
    ids: Any, phrase: str, written: Callable[[str], Written]
) -> None:
    saved, manifest = edited(written("tokens"), trainable_token_indices=ids)
    assert phrase in refusal(saved, manifest)


def test_token_rows_of_a_saved_embedding_are_refused(written: Callable[[str], Written]) -> None:
    (config, tensors), manifest = edited(written("tokens"), modules_to_save=["embed_tokens"])
    tensors[f"{PREFIX}model.embed_tokens.weight"] = torch.ones(96, 32)
    assert "on a layer that is trained otherwise too is not composed (model.embed_tokens)" in refusal(
        (config, tensors), manifest
    )


@pytest.mark.parametrize(
    ("name", "config", "phrase"),
    [
        (
            "dora",
            {"use_dora": False},
            "q_proj.lora_magnitude_vector would not be loaded, as its config does not say use_dora",
        ),
        (
            "lora-bias",
            {"lora_bias": None},
            "c_attn.lora_B.bias would not be loaded, as its config does not say lora_bias",
        ),
        (
            "bias-all",
            {"bias": "none"},
            "with other values is not composed (base_model.model.transformer.h.0.attn.c_attn.b",
        ),
        (
            "bias-all",
            {"bias": "lora_only"},
            "with other values is not composed (base_model.model.transformer.h.0.attn.c_p",
        ),
        (
            "saved-modules",
            {"modules_to_save": None},
            "with other values is not composed (base_model.model.lm_head.weight",
        ),
        (
            "saved-tied-both",
            {"ensure_weight_tying": False},
            "with other values is not composed (base_model.model.lm_head",
        ),
        ("tied-both", {"ensure_weight_tying": False}, "its config does not choose lm_head"),
        ("embedding", {"target_modules": "all-linear"}, "its config does not choose model.embed_tokens"),
        ("attention", {"target_modules": ["proj"]}, "its config does not choose attn "),
    ],
)
def test_a_part_that_the_config_no_longer_speaks_of_is_refused_as_peft_would_not_load_it(
    name: str, config: dict[str, Any], phrase: str, written: Callable[[str], Written]
) -> None:
    saved, manifest = edited(written(name), **config)
    assert phrase in refusal(saved, manifest)


@pytest.mark.parametrize(
    ("name", "ending", "phrase"),
    [
        ("dora", "q_proj.lora_magnitude_vector", "q_proj has no lora_magnitude_vector, and its config says use_dora"),
        ("lora-bias", "lora_B.bias", "c_attn has no lora_B.bias, and its config says lora_bias"),
        ("saved-modules", "lm_head.weight", "modules_to_save chooses lm_head.weight, and the file does not hold it"),
        ("attention", "out_proj.lora_A.weight", "module attn.out_proj has no lora_A, both A and B are needed"),
        ("embedding", "lora_embedding_B", "module model.embed_tokens has no lora_B, both A and B are needed"),
        ("experts-qwen3", "base_layer.lora_A.weight", "experts has no lora_A, both A and B are needed"),
    ],
)
def test_a_part_that_the_file_lacks_is_named(
    name: str, ending: str, phrase: str, written: Callable[[str], Written]
) -> None:
    (config, tensors), manifest = edited(written(name))
    assert phrase in refusal((config, {k: t for k, t in tensors.items() if not k.endswith(ending)}), manifest)


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        ("dora-conv2d", "lora_magnitude_vector"),
        ("lora-bias", "lora_B.bias"),
        ("conv3d", "lora_A.weight"),
        ("conv-groups", "second.lora_B.weight"),
        ("embedding", "lora_embedding_A"),
        ("experts-gpt-oss", "lora_B.weight"),
        ("bias-all", "ln_1.bias"),
        ("tokens", "trainable_tokens_delta"),
    ],
)
def test_a_part_of_another_shape_is_refused_by_its_key(
    name: str, ending: str, written: Callable[[str], Written]
) -> None:
    (config, tensors), manifest = edited(written(name))
    key = next(key for key in tensors if key.endswith(ending))
    wider = torch.cat([tensors[key], tensors[key]], dim=-1)
    message = refusal((config, tensors | {key: wider}), manifest)
    assert key in message or "in no order" in message


@pytest.mark.parametrize(
    ("name", "place", "other", "phrase"),
    [
        (
            "linear",
            "layers.0.self_attn.q_proj",
            "layers.0.self_attn.q_proj.base_layer",
            "LoRA stands at model.layers.0",
        ),
        (
            "linear",
            "layers.0.self_attn.q_proj",
            "layers.0.base_layer.self_attn.q_proj",
            "LoRA stands at model.layers.0",
        ),
        ("linear", "layers.0.self_attn.q_proj", "layers.0.self_attn.q_proj.token_adapter", "LoRA stands at model.laye"),
        (
            "attention",
            "attn.base_layer.out_proj",
            "attn.out_proj",
            "LoRA stands at attn.out_proj, where PEFT reads none",
        ),
        (
            "experts-qwen3",
            "mlp.experts.base_layer",
            "mlp.experts.base_layer.base_layer",
            "LoRA stands at model.layers.0",
        ),
        (
            "bias-all",
            "c_attn.base_layer.bias",
            "c_attn.bias",
            "with other values is not composed (base_model.model.transf",
        ),
        (
            "bias-all",
            "ln_f.bias",
            "ln_f.base_layer.bias",
            "with other values is not composed (base_model.model.transform",
        ),
        ("tokens", "model.embed_tokens.token", "model.base_layer.embed_tokens.token", "which is not in the base"),
        (
            "saved-modules",
            "model.norm.weight",
            "model.norm.base_layer.weight",
            "modules_to_save chooses model.norm.weight",
        ),
    ],
)
def test_a_tensor_at_a_place_where_peft_reads_none_is_refused(
    name: str, place: str, other: str, phrase: str, written: Callable[[str], Written]
) -> None:
    (config, tensors), manifest = edited(written(name))
    moved = {key.replace(place, other): tensor for key, tensor in tensors.items()}
    assert set(moved) != set(tensors)
    assert phrase in refusal((config, moved), manifest)


def test_two_tensors_for_one_place_are_refused_and_neither_is_dropped(written: Callable[[str], Written]) -> None:
    (config, tensors), manifest = edited(written("linear"))
    more = {key.replace("layers.0.self_attn", "layers.0.base_layer.self_attn"): t + 1 for key, t in tensors.items()}
    assert "LoRA stands at model.layers.0.self_attn.q_proj, model.layers.0.base_layer" in refusal(
        (config, tensors | more), manifest
    )


def test_an_unchanged_copy_is_told_from_a_trained_value(written: Callable[[str], Written]) -> None:
    spec = spec_of(written("mixed").saved, written("mixed").manifest)
    assert spec.copies == tuple(
        f"{PREFIX}transformer.ln_f.{copy}.bias" for copy in ("modules_to_save", "original_module")
    )
    assert {value.parameter: value.key for value in spec.values}["transformer.ln_f.bias"] == (
        f"{PREFIX}transformer.ln_f.bias"
    )


def test_a_trained_bias_is_that_of_all_it_is_tied_to(tmp_path: Path) -> None:
    row = Row(name="", meaning="", make=bert, config={"target_modules": ["decoder"], "bias": "lora_only"})
    base = row.base()
    spec = spec_of(read(row.adapt(base, tmp_path)), manifest_of_module(base))
    key = f"{PREFIX}cls.predictions.decoder.base_layer.bias"
    assert {value.parameter: value.key for value in spec.values} == {
        "cls.predictions.bias": key,
        "cls.predictions.decoder.bias": key,
    }
