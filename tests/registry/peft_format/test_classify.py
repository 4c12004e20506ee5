"""Every kind of adapter that PEFT writes, classified from the files that PEFT itself wrote."""

import copy
import hashlib
import io
import json
import re
import warnings as python_warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import peft
import pytest
import safetensors.torch
import torch
import transformers
from torch import nn

from loratree_composer.base.manifest import manifest_of_module, read_base
from loratree_registry.core.manifest import BaseManifest
from loratree_registry.errors import Invalid
from loratree_registry.peft_format.classify import canonical_config, classify, warnings
from loratree_registry.peft_format.spec import AdapterSpec
from loratree_registry.peft_format.tensors import FACTORS
from loratree_registry.tensor_files.finite import check_finite
from loratree_registry.tensor_files.header import read_header
from tests import tiny

PREFIX = "base_model.model."
Q0 = "model.layers.0.self_attn.q_proj"


@dataclass(frozen=True)
class Base:
    """A saved model and its manifest."""

    directory: Path
    manifest: BaseManifest


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Base]:
    folder = tmp_path_factory.mktemp("bases")
    directories = {
        "llama": tiny.llama(folder / "llama"),
        "tied": tiny.llama(folder / "tied", tie_word_embeddings=True),
        "gpt2": tiny.gpt2(folder / "gpt2"),
    }
    return {name: Base(directory, read_base(directory)) for name, directory in directories.items()}


@contextmanager
def peft_warnings() -> Iterator[None]:
    """Ignore PEFT's warnings about its own work: these tests are about the files that it writes."""
    with python_warnings.catch_warnings():
        python_warnings.simplefilter("ignore")
        yield


def write(base: Base, directory: Path, **settings: Any) -> Path:
    with peft_warnings():
        return tiny.adapter(base.directory, directory, **settings)


def config_of(directory: Path) -> dict[str, Any]:
    config = json.loads((directory / "adapter_config.json").read_text())
    assert isinstance(config, dict)
    return config


def tensors_of(directory: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(directory / "adapter_model.safetensors")


def classified(directory: Path, manifest: BaseManifest) -> AdapterSpec:
    return classify_tensors(config_of(directory), tensors_of(directory), manifest)


def classify_tensors(config: dict[str, Any], tensors: dict[str, torch.Tensor], manifest: BaseManifest) -> AdapterSpec:
    data = safetensors.torch.save(tensors)
    stream = io.BytesIO(data)
    header = read_header(stream, len(data))
    return classify(config, header, manifest, digests=check_finite(stream, header, undigested=FACTORS))


def refusal(config: dict[str, Any], tensors: dict[str, torch.Tensor], manifest: BaseManifest) -> str:
    with pytest.raises(Invalid) as refused:
        classify_tensors(config, tensors, manifest)
    assert "\n" not in str(refused.value)
    return "; ".join([str(refused.value), *refused.value.details])


# Accepted adapters: name → base, settings for tiny.adapter, number of modules.
ACCEPTED: dict[str, tuple[str, dict[str, Any], int]] = {
    "all linear layers": ("llama", {}, 14),
    "no initialisation named": ("llama", {"init_lora_weights": None}, 14),
    "all-linear": ("llama", {"targets": "all-linear"}, 14),
    "a regular expression of targets": ("llama", {"targets": r".*\.(q|v)_proj"}, 4),
    "some layers": ("llama", {"layers_to_transform": [1], "layers_pattern": "layers"}, 7),
    "excluded modules": ("llama", {"exclude_modules": ["down_proj"]}, 12),
    "another scale": ("llama", {"rank": 3, "alpha": 7}, 14),
    "a fractional alpha": ("llama", {"rank": 3, "alpha": 0.1}, 14),
    "rsLoRA": ("llama", {"rank": 3, "alpha": 7, "use_rslora": True}, 14),
    "rank_pattern": ("llama", {"rank_pattern": {"q_proj": 7, r"layers\.1\.mlp\.(up|down)_proj": 2}}, 14),
    "alpha_pattern": ("llama", {"alpha_pattern": {f"^{Q0}": 5, ".*mlp.*": 3}}, 14),
    "patterns and rsLoRA": (
        "llama",
        {"rank_pattern": {"v_proj": 5}, "alpha_pattern": {"layers.1.self_attn.v_proj": 3}, "use_rslora": True},
        14,
    ),
    "patterns that overlap": (
        "llama",
        {"alpha_pattern": {"self_attn.q_proj": 3, "q_proj": 5, "layers.0.self_attn.q_proj": 7}},
        14,
    ),
    "dropout": ("llama", {"lora_dropout": 0.3}, 14),
    "gaussian": ("llama", {"init_lora_weights": "gaussian"}, 14),
    "orthogonal": ("llama", {"init_lora_weights": "orthogonal"}, 14),
    "no initialisation": ("llama", {"init_lora_weights": False}, 14),
    "eva": ("llama", {"init_lora_weights": "eva"}, 14),
    "mica": ("llama", {"init_lora_weights": "mica"}, 14),
    "a base with tied embeddings": ("tied", {}, 14),
    "Conv1D": ("gpt2", {"targets": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}, 8),
    "bfloat16": ("llama", {"dtype": torch.bfloat16}, 14),
    "float16": ("llama", {"dtype": torch.float16}, 14),
    "float64": ("llama", {"dtype": torch.float64}, 14),
    "lm_head, beside which PEFT saves the base's": ("llama", {"targets": ["lm_head", "q_proj"]}, 3),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_an_accepted_adapter_has_the_ranks_and_scales_that_peft_gives_it_to_the_last_bit(
    name: str, bases: dict[str, Base], tmp_path: Path
) -> None:
    base_name, settings, count = ACCEPTED[name]
    base = bases[base_name]
    directory = write(base, tmp_path / "adapter", **settings)
    spec = classified(directory, base.manifest)
    assert len(spec.modules) == count
    with peft_warnings():
        model = transformers.AutoModelForCausalLM.from_pretrained(base.directory)
        loaded = peft.PeftModel.from_pretrained(model, directory, low_cpu_mem_usage=True)
    layers = {
        layer_name.removeprefix(PREFIX): layer
        for layer_name, layer in loaded.named_modules()
        if isinstance(layer, peft.tuners.lora.LoraLayer)
    }
    assert {m.name: (m.rank, m.scale) for m in spec.modules} == {
        layer_name: (layer.r["default"], layer.scaling["default"]) for layer_name, layer in layers.items()
    }
    assert all(m.kind == type(layers[m.name].get_base_layer()).__name__ for m in spec.modules)
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors_of(directory).items()}
    assert {m.a: (m.rank, m.in_features) for m in spec.modules} | {
        m.b: (m.out_features, m.rank) for m in spec.modules
    } | {key: shapes[key] for key in spec.copies} == shapes  # every tensor, once


@pytest.mark.parametrize("name", ACCEPTED)
def test_an_accepted_adapter_is_the_same_by_its_canonical_config(
    name: str, bases: dict[str, Base], tmp_path: Path
) -> None:
    base_name, settings, _ = ACCEPTED[name]
    base = bases[base_name]
    directory = write(base, tmp_path / "adapter", **settings)
    config, tensors = config_of(directory), tensors_of(directory)
    assert classify_tensors(config, tensors, base.manifest) == classify_tensors(
        canonical_config(config), tensors, base.manifest
    )


# By config alone: to write some of these, PEFT needs data, a second adapter or another package.
@pytest.mark.parametrize(
    ("field", "value", "phrase"),
    [
        ("init_lora_weights", "corda", '(init_lora_weights="corda")'),
        ("init_lora_weights", "pissa_niter_2", '(init_lora_weights="pissa_niter_2")'),
        ("init_lora_weights", "loftq", '(init_lora_weights="loftq")'),
        ("arrow_config", {"top_k": 3}, "Arrow is not composed"),
        ("megatron_config", {"tensor_model_parallel_size": 2}, "Megatron is not composed"),
        ("init_lora_weights", "sorcery", 'unknown init_lora_weights="sorcery"'),
        ("init_lora_weights", 1, "unknown init_lora_weights=1"),
        ("use_sorcery", True, "sets use_sorcery=true, which PEFT 0.21.2 does not know"),
        ("sorcery_scale", 0, "sets sorcery_scale=0, which"),
        ("r", 0, "r is 0, expected a whole number from 1"),
        ("r", 4.0, "r is 4.0, expected a whole number"),
        ("r", True, "r is true, expected a whole number"),
        ("r", None, "r is null, expected a whole number"),
        ("lora_alpha", "8", 'lora_alpha is "8", expected a finite number'),
        ("lora_alpha", 10**400, "expected a finite number"),
        ("use_rslora", "yes", 'use_rslora is "yes", expected true or false'),
        ("rank_pattern", {"q_proj": 0}, "rank_pattern is"),
        ("rank_pattern", ["q_proj"], "rank_pattern is"),
        ("alpha_pattern", {"q_proj": None}, "alpha_pattern is"),
        ("alpha_pattern", {"(a+)+\\1": 3}, "alpha_pattern has the key"),
        ("lora_alpha", 1e300, "has the scale 2.5e+299, which float32 cannot hold: lower lora_alpha"),
        ("use_dora", True, f"module {Q0} has no lora_magnitude_vector, and its config says use_dora"),
        ("use_dora", 1, "use_dora is 1, expected true or false"),
        ("lora_bias", True, f"module {Q0} has no lora_B.bias, and its config says lora_bias"),
        ("bias", "some", 'bias is "some", expected one of none, all, lora_only'),
        ("modules_to_save", "norm", 'modules_to_save is "norm", expected a list of names'),
        ("modules_to_save", ["norm"], "modules_to_save chooses model.norm.weight, and the file does not hold it"),
        (
            "modules_to_save",
            ["self_attn"],
            "LoRA within modules_to_save is not composed (model.layers.0.self_attn.k_proj",
        ),
        ("target_parameters", [3], "target_parameters is [3], expected a list of names"),
        (
            "trainable_token_indices",
            [1],
            "trainable_token_indices chooses rows of model.embed_tokens, and the file does not hold them",
        ),
        ("trainable_token_indices", {"embed_tokens": ["1"]}, "expected a list of token ids"),
        ("task_type", "CAUSAL_LM_X", 'task_type is "CAUSAL_LM_X", expected one of CAUSAL_LM, FEATURE_EXTRACTION'),
        ("peft_type", None, "its peft_type is null, not LORA"),
        ("peft_type", "BOFT", 'its peft_type is "BOFT", not LORA'),
    ],
)
def test_a_config_that_says_what_is_not_composed_is_refused(
    field: str, value: Any, phrase: str, plain: Path, bases: dict[str, Base]
) -> None:
    config = config_of(plain) | {field: value}
    assert phrase in refusal(config, tensors_of(plain), bases["llama"].manifest)


@pytest.mark.parametrize("value", [None, False, [], {}])
def test_a_future_field_that_is_off_changes_nothing(value: object, plain: Path, bases: dict[str, Base]) -> None:
    config = config_of(plain)
    assert classify_tensors(config | {"use_sorcery": value}, tensors_of(plain), bases["llama"].manifest).modules
    assert canonical_config(config | {"use_sorcery": value}) == canonical_config(config)


@pytest.mark.parametrize(
    "config",
    [
        peft.IA3Config(target_modules=["q_proj"], feedforward_modules=[]),
        peft.LoHaConfig(target_modules=["q_proj"]),
        peft.VeraConfig(target_modules=["q_proj"]),
        peft.AdaLoraConfig(target_modules=["q_proj"], total_step=10),
        peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    ],
    ids=lambda config: str(config.peft_type.value),
)
def test_another_method_is_refused_by_its_name(config: peft.PeftConfig, bases: dict[str, Base], tmp_path: Path) -> None:
    with peft_warnings():
        model = transformers.AutoModelForCausalLM.from_pretrained(bases["llama"].directory)
        peft.get_peft_model(model, copy.deepcopy(config)).save_pretrained(tmp_path)
    assert f'its peft_type is "{config.peft_type.value}", not LORA' in refusal(
        config_of(tmp_path), tensors_of(tmp_path), bases["llama"].manifest
    )


COMMON = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2}
JAMBA = {"attn_layer_period": 2, "attn_layer_offset": 1, "num_attention_heads": 4, "num_key_value_heads": 2}
READ_PAST = {
    "Mamba": (transformers.MambaForCausalLM, {"state_size": 4}, "dt_proj", "x_proj"),
    "FalconMamba": (transformers.FalconMambaForCausalLM, {"state_size": 4}, "dt_proj", "x_proj"),
    "Jamba": (
        transformers.JambaForCausalLM,
        JAMBA | {"intermediate_size": 56, "mamba_d_state": 4, "use_mamba_kernels": False, "num_experts": 1},
        "dt_proj",
        "x_proj",
    ),
    "MobileBERT": (
        transformers.MobileBertForMaskedLM,
        {"embedding_size": 16, "intra_bottleneck_size": 16, "intermediate_size": 56},
        "predictions.dense",
        "value",
    ),
}


@pytest.mark.parametrize("name", READ_PAST)
def test_a_layer_whose_weight_the_model_reads_past_it_is_refused_as_lora_does_nothing_there(
    name: str, tmp_path: Path
) -> None:
    model_class, settings, past, plain = READ_PAST[name]
    torch.manual_seed(0)
    model = model_class(model_class.config_class(**COMMON, **settings)).eval()
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * 0.3  # so that every layer changes the logits
    manifest, tokens = manifest_of_module(model), tiny.tokens(batch=1, length=5)
    with torch.no_grad(), peft_warnings():
        before = model(tokens).logits
        tuned = peft.get_peft_model(model, peft.LoraConfig(target_modules=[past], init_lora_weights=False))
        torch.testing.assert_close(tuned(tokens).logits, before)  # so it is refused: LoRA changes nothing here
        tuned.save_pretrained(tmp_path / "past")
        both = peft.get_peft_model(tuned.unload(), peft.LoraConfig(target_modules=[plain], init_lora_weights=False))
        assert (both(tokens).logits - before).abs().max() > 1e-3 * before.abs().max()
        both.save_pretrained(tmp_path / "plain")
    message = refusal(config_of(tmp_path / "past"), tensors_of(tmp_path / "past"), manifest)
    assert "LoRA on a weight that the model reads past its layer is not composed (" in message
    assert past in message
    assert classified(tmp_path / "plain", manifest).modules


class Named(nn.Module):
    """A model with names of modules that torch allows and nobody expects."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleDict(
            {"base_layer": nn.Linear(8, 6), "en->fr": nn.Linear(6, 5), "größe 1": nn.Linear(5, 4)}
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.inner.values():
            x = layer(x)
        return x


@pytest.mark.parametrize("name", ["base_layer", "en->fr", "größe 1"])
def test_a_module_is_composed_whatever_its_name(name: str, tmp_path: Path) -> None:
    manifest = manifest_of_module(Named())
    with peft_warnings():
        settings = peft.LoraConfig(r=2, lora_alpha=8, target_modules=[name], rank_pattern={re.escape(name): 3})
        peft.get_peft_model(Named(), settings).save_pretrained(tmp_path)  # type: ignore[arg-type]
    (module,) = classified(tmp_path, manifest).modules
    assert (module.name, module.rank, module.scale) == (f"inner.{name}", 3, 8 / 3)


def test_a_copy_of_the_base_is_known_under_each_of_its_names_and_its_biases_too(tmp_path: Path) -> None:
    model = Named()
    with peft_warnings():
        tuned = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["base_layer"]))  # type: ignore[arg-type]
        tuned.save_pretrained(tmp_path)
    manifest, tensors, linear = manifest_of_module(Named()), tensors_of(tmp_path), model.inner["base_layer"]
    kept = {"weight": linear.base_layer.weight.detach(), "bias": linear.base_layer.bias.detach()}
    parameters = {p.name: p for p in manifest.parameters}
    for leaf, tensor in kept.items():
        own = parameters[f"inner.base_layer.{leaf}"]
        parameters[own.name] = replace(own, sha256="sha256:" + hashlib.sha256(tensor.numpy().tobytes()).hexdigest())
    manifest = replace(manifest, parameters=tuple(parameters.values()))
    for where in ("inner.base_layer.base_layer", "inner.base_layer"):
        copies = {f"{PREFIX}{where}.{leaf}": tensor.clone() for leaf, tensor in kept.items()}
        assert classify_tensors(config_of(tmp_path), tensors | copies, manifest).copies == tuple(sorted(copies))
        other = {key: tensor + 1 for key, tensor in copies.items()}
        message = refusal(config_of(tmp_path), tensors | other, manifest)
        assert all(key in message for key in other)


def test_a_bias_that_was_trained_is_a_value_even_where_it_is_the_base_s(tmp_path: Path) -> None:
    with peft_warnings():
        settings = peft.LoraConfig(r=2, target_modules=["base_layer"], bias="lora_only")  # type: ignore[arg-type]
        peft.get_peft_model(Named(), settings).save_pretrained(tmp_path)
    spec = classified(tmp_path, manifest_of_module(Named()))
    assert [(value.parameter, value.key) for value in spec.values] == [
        ("inner.base_layer.bias", f"{PREFIX}inner.base_layer.base_layer.bias")
    ]
    assert spec.copies == ()


def test_copies_of_tied_embeddings_are_known_under_both_names(bases: dict[str, Base], tmp_path: Path) -> None:
    base = bases["tied"]
    directory = write(base, tmp_path / "adapter", targets=["q_proj"])
    embeddings = safetensors.torch.load_file(base.directory / "model.safetensors")["model.embed_tokens.weight"]
    copies = {f"{PREFIX}{name}.weight": embeddings.clone() for name in ("lm_head", "model.embed_tokens")}
    tensors = tensors_of(directory)
    spec = classify_tensors(config_of(directory), tensors | copies, base.manifest)
    assert spec.copies == tuple(sorted(copies))
    for key in copies:
        assert key in refusal(config_of(directory), tensors | {key: embeddings + 1}, base.manifest)


def test_pissa_that_was_converted_is_plain_lora_of_twice_the_rank(bases: dict[str, Base], tmp_path: Path) -> None:
    base = bases["llama"]
    with peft_warnings():
        model = transformers.AutoModelForCausalLM.from_pretrained(base.directory)
        settings = peft.LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj"], init_lora_weights="pissa")
        tuned = peft.get_peft_model(model, settings)
        tuned.peft_config["default"].init_lora_weights = True
        tuned.save_pretrained(tmp_path / "initial")
        tuned.peft_config["default"].init_lora_weights = "pissa"
        tuned.save_pretrained(tmp_path / "out", path_initial_model_for_weight_conversion=str(tmp_path / "initial"))
    assert classified(tmp_path / "out", base.manifest).summary().ranks == [8]


def test_an_adapter_saved_under_another_name_reads_like_any_other(bases: dict[str, Base], tmp_path: Path) -> None:
    base = bases["llama"]
    model = transformers.AutoModelForCausalLM.from_pretrained(base.directory)
    tuned = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"]), adapter_name="mine")
    tuned.save_pretrained(tmp_path)
    assert [m.name for m in classified(tmp_path / "mine", base.manifest).modules] == [Q0, Q0.replace("0", "1")]


@pytest.fixture(scope="module")
def plain(bases: dict[str, Base], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.adapter(bases["llama"].directory, tmp_path_factory.mktemp("plain") / "adapter")


Change = Callable[[dict[str, torch.Tensor]], None]
A0, B0 = f"{PREFIX}{Q0}.lora_A.weight", f"{PREFIX}{Q0}.lora_B.weight"


def set_tensor(key: str, tensor: torch.Tensor) -> Change:
    return lambda tensors: tensors.update({key: tensor})


# Files that PEFT does not write, made from a file that PEFT wrote.
BROKEN: dict[str, tuple[Change, str]] = {
    "a lone A": (lambda tensors: (tensors.pop(B0), None)[1], f"module {Q0} has no lora_B"),
    "a lone B": (lambda tensors: (tensors.pop(A0), None)[1], f"module {Q0} has no lora_A"),
    "an A of other inputs": (set_tensor(A0, torch.ones(4, 31)), f"tensor {A0} has shape [4, 31], expected [4, 32]"),
    "an A of another rank": (set_tensor(A0, torch.ones(5, 32)), f"tensor {A0} has shape [5, 32], expected [4, 32]"),
    "a B of other outputs": (set_tensor(B0, torch.ones(30, 4)), f"tensor {B0} has shape [30, 4], expected [32, 4]"),
    "a B the other way round": (set_tensor(B0, torch.ones(4, 32)), f"tensor {B0} has shape [4, 32]"),
    "an A of three dimensions": (set_tensor(A0, torch.ones(4, 32, 1)), f"tensor {A0} has shape [4, 32, 1]"),
    "an A of whole numbers": (
        set_tensor(A0, torch.ones(4, 32).int()),
        "has A in I32 and B in F32, expected one of F16",
    ),
    "an unknown tensor": (set_tensor(f"{PREFIX}{Q0}.lora_C.weight", torch.ones(1)), "lora_C.weight is unknown"),
    "a key with its adapter's name": (
        set_tensor(f"{PREFIX}{Q0}.lora_A.default.weight", torch.ones(4, 32)),
        "lora_A.default.weight is unknown",
    ),
    "a key without the prefix": (
        set_tensor(f"{Q0}.lora_A.weight", torch.ones(4, 32)),
        "does not start with base_model",
    ),
    "an unknown module": (
        lambda tensors: tensors.update(
            {f"{PREFIX}model.layers.7.x.lora_{letter}.weight": torch.ones(4, 4) for letter in "AB"}
        ),
        "module model.layers.7.x is not in the base",
    ),
    "LoRA on a norm": (
        lambda tensors: tensors.update(
            {f"{PREFIX}model.norm.lora_{letter}.weight": torch.ones(4, 4) for letter in "AB"}
        ),
        "module model.norm is of kind LlamaRMSNorm, LoRA is composed on Linear, Conv1D, Embedding,",
    ),
    "LoRA on a whole layer": (
        lambda tensors: tensors.update({f"{PREFIX}model.lora_{letter}.weight": torch.ones(4, 4) for letter in "AB"}),
        "module model is not in the base",
    ),
    "a whole parameter of the base": (
        set_tensor(f"{PREFIX}model.norm.weight", torch.full((32,), 2.0)),
        "a copy of the base's weights with other values is not composed (base_model.model.model.norm.weight)",
    ),
    "no factors at all": (
        lambda tensors: tensors.clear() or tensors.update(x=torch.ones(1)),
        "tensor x does not start",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_does_not_fit_is_refused_by_what_is_wrong(name: str, plain: Path, bases: dict[str, Base]) -> None:
    change, phrase = BROKEN[name]
    tensors = tensors_of(plain)
    change(tensors)
    assert phrase in refusal(config_of(plain), tensors, bases["llama"].manifest)


def test_every_problem_is_listed_at_once(plain: Path, bases: dict[str, Base]) -> None:
    tensors = tensors_of(plain)
    for name in ("a lone A", "an unknown tensor", "LoRA on a norm", "a whole parameter of the base"):
        BROKEN[name][0](tensors)
    message = refusal(config_of(plain) | {"use_dora": True, "use_sorcery": 1}, tensors, bases["llama"].manifest)
    for phrase in ("use_dora", "use_sorcery", "lora_C", "LlamaRMSNorm", "has no lora_B", "model.norm.weight"):
        assert phrase in message


def test_a_rank_that_disagrees_with_rank_pattern_is_refused_with_both(plain: Path, bases: dict[str, Base]) -> None:
    config = config_of(plain) | {"rank_pattern": {"layers.0.self_attn.q_proj": 3}}
    message = refusal(config, tensors_of(plain), bases["llama"].manifest)
    assert f"tensor {A0} has shape [4, 32], expected [3, 32]: rank 3 by 32 inputs" in message


def test_an_adapter_of_a_smaller_base_is_refused_by_every_shape(plain: Path, tmp_path: Path) -> None:
    other = tiny.llama(tmp_path / "other", hidden_size=48)
    message = refusal(config_of(plain), tensors_of(plain), read_base(other))
    assert (
        "most were trained for the size 32 where this base has 48; publish to the tree of the base that it" in message
    )
    assert "expected [4, 48]" in message


def test_pattern_keys_that_overlap_and_disagree_give_a_warning(bases: dict[str, Base], tmp_path: Path) -> None:
    base = bases["llama"]
    patterns = {"self_attn.q_proj": 3, "q_proj": 5}
    directory = write(base, tmp_path / "a", alpha_pattern=patterns)
    (warning,) = warnings(config_of(directory), classified(directory, base.manifest))
    assert warning.startswith(
        "alpha_pattern has keys that disagree on model.layers.0.self_attn.q_proj: 'q_proj'; 'self"
    )
    agreeing = write(base, tmp_path / "b", alpha_pattern=dict.fromkeys(patterns, 3))
    assert warnings(config_of(agreeing), classified(agreeing, base.manifest)) == []


def test_a_rank_above_a_layers_size_gives_one_warning(bases: dict[str, Base], tmp_path: Path) -> None:
    base = bases["llama"]
    directory = write(base, tmp_path / "a", rank=32, rank_pattern={"k_proj": 70}, targets=["q_proj", "k_proj"])
    (warning,) = warnings(config_of(directory), classified(directory, base.manifest))
    assert "model.layers.0.self_attn.k_proj has rank 70, above its size, 16 × 32, and 1 more have one above" in warning
    assert "it is composed exactly, and a rank of 16 would do the same in less memory" in warning


def test_a_config_whose_meaning_a_save_would_change_is_refused(plain: Path, bases: dict[str, Base]) -> None:
    config = config_of(plain) | {"alpha_pattern": {"self_attn.q_proj": 3, "q_proj": 5}}  # PEFT would have sorted it
    message = refusal(config, tensors_of(plain), bases["llama"].manifest)
    assert "3 by 'self_attn.q_proj', but 5 by 'q_proj' once PEFT saves it" in message
