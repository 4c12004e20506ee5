"""Our reading of target_modules against PEFT's own check_target_module_exists, and against what PEFT writes."""

import copy
import io
import json
import re
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import safetensors.torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.tuners.tuners_utils import check_target_module_exists

from loratree_composer.base.manifest import manifest_of_module
from loratree_registry.errors import Invalid
from loratree_registry.peft_format.classify import classify
from loratree_registry.peft_format.classify import warnings as warnings_of
from loratree_registry.peft_format.name_regex import widened
from loratree_registry.peft_format.targets import TargetModules
from loratree_registry.tensor_files.header import read_header
from tests import tiny
from tests.examples import examples

LINEAR = [f"{part}.{name}" for part, name in zip(["self_attn"] * 4 + ["mlp"] * 3, tiny.LINEARS, strict=True)]
MODULES = [f"model.layers.{layer}.{name}" for layer in (0, 1) for name in LINEAR]
ODD = ["lm_head", "q_proj", "h.0.q_proj", "a.h.0.mlp.experts.1.up_proj", "layers.1.x", "a.layers.layers.1.2.q_proj"]
NAMES = st.sampled_from([*LINEAR, *MODULES, *tiny.LINEARS, *ODD, "proj", "0", "", ".", "1.self_attn.q_proj"])
REGEXES = st.sampled_from(
    [
        r".*\.(q|v)_proj",
        r".*proj",
        r"model\.layers\.1\..*",
        r"q_proj",
        r"(.*q_proj)|(.*\.[12]\.mlp.*)",
        r"^model.*_proj$",
        r".*[^q]_proj",
        r"\w+",
    ]
)
CHOICES = st.lists(NAMES, max_size=4) | REGEXES
LAYERS = st.none() | st.integers(0, 2) | st.lists(st.integers(0, 2), max_size=2)
PATTERNS = st.sampled_from(
    [None, "layers", "h", ["layers"], ["h", "layers"], [], "", "model.layers", "l.yers", "experts"]
)


class Config:
    """The fields of a LoraConfig that check_target_module_exists reads."""

    def __init__(self, **fields: Any) -> None:
        self.modules_to_save = None
        self.__dict__ |= fields


@given(CHOICES, st.none() | CHOICES, LAYERS, PATTERNS, st.sampled_from([*MODULES, *ODD]))
@settings(max_examples=examples(400))
def test_a_module_is_chosen_exactly_when_peft_chooses_it(
    chosen: Any, excluded: Any, layers: Any, pattern: Any, module: str
) -> None:
    config = {
        "target_modules": chosen,
        "exclude_modules": excluded,
        "layers_to_transform": layers,
        "layers_pattern": pattern,
    }
    targets = TargetModules(config)
    assert targets.includes(module) == bool(check_target_module_exists(Config(**config), module))
    assert targets.unchecked == []


MODEL = transformers.LlamaForCausalLM(tiny.llama_config())
MANIFEST = manifest_of_module(MODEL)


def saved(folder: Path, **fields: Any) -> tuple[dict[str, Any], bytes]:
    """Return the config and the weights that PEFT saves for a LoRA with these fields."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuned = peft.get_peft_model(copy.deepcopy(MODEL), peft.LoraConfig(r=2, **fields))
        tuned.save_pretrained(folder, save_embedding_layers=False)
    weights = (folder / "adapter_model.safetensors").read_bytes()
    return json.loads((folder / "adapter_config.json").read_text()), weights


def modules_of(config: dict[str, Any], weights: bytes) -> list[str]:
    spec = classify(config, read_header(io.BytesIO(weights), len(weights)), MANIFEST)
    assert warnings_of(config, spec) == []
    return [module.name for module in spec.modules]


TARGETS = st.one_of(
    st.lists(st.sampled_from([*tiny.LINEARS, *LINEAR, *MODULES, "lm_head"]), min_size=1, max_size=6, unique=True),
    st.just("all-linear"),
    st.sampled_from([r".*\.(q|v)_proj", r".*layers\.[01]\.mlp\..*", r"(lm_head|.*k_proj)"]),
)


@given(TARGETS, st.none() | st.lists(st.sampled_from(tiny.LINEARS), max_size=2) | st.just(r".*\.1\..*q_proj"), LAYERS)
@settings(max_examples=examples(40), deadline=None)
def test_what_peft_wrote_is_never_refused_for_its_targets(
    tmp_path_factory: pytest.TempPathFactory, chosen: Any, excluded: Any, layers: Any
) -> None:
    fields = {"target_modules": chosen, "exclude_modules": excluded}
    if isinstance(chosen, list):
        fields["layers_to_transform"] = layers
    folder = tmp_path_factory.mktemp("saved")
    try:
        config, weights = saved(folder, **fields)
    except ValueError:  # PEFT refuses a config that chooses no module
        return
    written = {key.split(".lora_")[0].removeprefix("base_model.model.") for key in safetensors.torch.load(weights)}
    assert set(modules_of(config, weights)) == written


@pytest.mark.parametrize(
    ("edit", "left_out"),
    [
        ({"target_modules": ["q_proj"]}, "v_proj"),
        ({"target_modules": r".*\.q_proj"}, "v_proj"),
        ({"target_modules": "q_proj"}, "q_proj"),
        ({"target_modules": []}, "q_proj"),
        ({"exclude_modules": ["v_proj"]}, "v_proj"),
        ({"exclude_modules": r".*\.v_proj"}, "v_proj"),
        ({"layers_to_transform": [0]}, r"layers\.1\.self_attn\.q_proj"),
        ({"layers_to_transform": 1, "layers_pattern": "layers"}, r"layers\.0\.self_attn\.q_proj"),
        ({"layers_to_transform": 1, "layers_pattern": "h"}, r"layers\.1\.self_attn\.q_proj"),
    ],
)
def test_tensors_that_peft_would_leave_out_are_refused_by_their_module(
    edit: dict[str, Any], left_out: str, tmp_path: Path
) -> None:
    config, weights = saved(tmp_path, target_modules=["q_proj", "v_proj"])
    assert len(modules_of(config, weights)) == 4
    with pytest.raises(Invalid, match=rf"does not choose .*{left_out}.* so PEFT would leave their tensors out"):
        modules_of(config | edit, weights)


def test_all_linear_leaves_the_output_head_out(tmp_path: Path) -> None:
    config, weights = saved(tmp_path, target_modules=["q_proj", "lm_head"])
    with pytest.raises(Invalid, match="does not choose lm_head"):
        modules_of(config | {"target_modules": "All-Linear"}, weights)


@pytest.mark.parametrize(
    "edit",
    [
        {"target_modules": r"(?i).*Q_PROJ"},
        {"exclude_modules": r"(a)\1"},
        {"layers_to_transform": [0], "layers_pattern": "(a+)+"},
        {"target_modules": "|".join([".*" * 20 + str(n) for n in range(60)])},
    ],
)
def test_what_is_not_matched_in_linear_time_gives_a_warning(edit: dict[str, Any], tmp_path: Path) -> None:
    config, weights = saved(tmp_path, target_modules=["q_proj"])
    config |= edit
    spec = classify(config, read_header(io.BytesIO(weights), len(weights)), MANIFEST)
    (warning,) = warnings_of(config, spec)
    assert re.search(r"is not matched here \(.*whether PEFT would leave out", warning)


def test_a_config_without_target_modules_gives_a_warning(tmp_path: Path) -> None:
    config, weights = saved(tmp_path, target_modules=["q_proj"])
    config["target_modules"] = None
    spec = classify(config, read_header(io.BytesIO(weights), len(weights)), MANIFEST)
    assert "names no target_modules" in warnings_of(config, spec)[0]


@pytest.mark.parametrize(
    "edit",
    [
        {"target_modules": 3},
        {"target_modules": [3]},
        {"exclude_modules": {"a": 1}},
        {"layers_to_transform": "1"},
        {"layers_to_transform": [True]},
        {"layers_pattern": 3},
    ],
)
def test_a_field_that_peft_could_not_read_is_refused(edit: dict[str, Any], tmp_path: Path) -> None:
    config, weights = saved(tmp_path, target_modules=["q_proj"])
    with pytest.raises(Invalid, match=f"{next(iter(edit))} is .*, expected"):
        modules_of(config | edit, weights)


UNSLOTH = (
    r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?(?:q_proj|v_proj).*?)|"
    r"(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attention|attn|mlp)\.(?:(?:q_proj|v_proj)))"
)
MS_SWIFT = r"^(model(?=\.).*\.(q_proj|v_proj))$"


@pytest.mark.parametrize(
    "pattern", [UNSLOTH, MS_SWIFT, r"(?!.*lm_head).*(?:q_proj|v_proj)", r".*\bq_proj\b|.*\bv_proj\b"]
)
def test_expressions_of_other_tools_are_matched_without_a_warning(pattern: str, tmp_path: Path) -> None:
    """PEFT reads them with Python's re; RE2 has no lookarounds and no word boundaries."""
    config, weights = saved(tmp_path, target_modules=pattern)
    assert len(modules_of(config, weights)) == 4
    spec = classify(config, read_header(io.BytesIO(weights), len(weights)), MANIFEST)
    assert warnings_of(config, spec) == []
    with pytest.raises(Invalid, match="does not choose"):
        modules_of(config | {"target_modules": pattern.replace("v_proj", "k_proj")}, weights)


@given(
    st.text(alphabet="ab", max_size=6),
    st.sampled_from([r"(?=a)a.*", r"(?!b).*", r"a\b.*|.*b", r".*(?<=a)b", r"(?<!a)b.*"]),
)
def test_a_widened_expression_matches_all_that_the_expression_does(name: str, pattern: str) -> None:
    if re.fullmatch(pattern, name):
        assert re.fullmatch(widened(pattern), name)
