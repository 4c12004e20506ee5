import dataclasses
import json
from pathlib import Path
from typing import Any

import peft
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loratree_registry.errors import Invalid
from loratree_registry.peft_format.config import DEFAULTS, PEFT_VERSION, canonical_config, full_config

SETTINGS: dict[str, Any] = {
    "r": 16,
    "lora_alpha": 32,
    "target_modules": ["v_proj", "q_proj", "k_proj", "o_proj", "up_proj", "down_proj", "gate_proj"],
    "exclude_modules": ["lm_head", "embed_tokens"],
    "rank_pattern": {"v_proj": 3, "q_proj": 2},
    "use_rslora": True,
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "somewhere/else",
}
CANONICAL: dict[str, Any] = {
    "exclude_modules": ["embed_tokens", "lm_head"],
    "lora_alpha": 32,
    "peft_type": "LORA",
    "r": 16,
    "rank_pattern": {"v_proj": 3, "q_proj": 2},
    "target_modules": ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"],
    "task_type": "CAUSAL_LM",
    "use_rslora": True,
}


def saved(config: peft.LoraConfig, folder: Path) -> dict[str, Any]:
    config.save_pretrained(str(folder))
    read = json.loads((folder / "adapter_config.json").read_text())
    assert isinstance(read, dict)
    return read


def test_the_table_holds_every_field_of_peft_s_lora_config_with_its_default() -> None:
    assert peft.__version__ == PEFT_VERSION, "PEFT moved on: read its LoraConfig again, then PEFT_VERSION and DEFAULTS"
    fields = {
        field.name: field.default_factory() if field.default is dataclasses.MISSING else field.default  # type: ignore[misc]
        for field in dataclasses.fields(peft.LoraConfig)
    }
    fields["runtime_config"] = None  # never saved
    assert fields == DEFAULTS


def test_a_config_keeps_what_differs_from_the_defaults_and_belongs_to_the_adapter(tmp_path: Path) -> None:
    assert canonical_config(saved(peft.LoraConfig(**SETTINGS), tmp_path)) == CANONICAL
    assert canonical_config(saved(peft.LoraConfig(target_modules="all-linear"), tmp_path)) == {
        "peft_type": "LORA",
        "target_modules": "all-linear",
    }


@given(st.permutations(["gate_up_proj", "down_proj", "q_proj.weight"]))
def test_no_order_of_target_parameters_changes_the_canonical_config(names: list[str]) -> None:
    assert canonical_config({"target_parameters": names}) == {
        "target_parameters": ["down_proj", "gate_up_proj", "q_proj.weight"]
    }


@given(st.permutations(SETTINGS["target_modules"]), st.permutations(list(SETTINGS)))
def test_no_order_in_which_a_run_saves_changes_the_canonical_config(targets: list[str], keys: list[str]) -> None:
    config = {key: SETTINGS[key] for key in keys} | {"target_modules": targets, "peft_type": "LORA"}
    assert canonical_config(config) == CANONICAL
    assert canonical_config(canonical_config(config)) == CANONICAL


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("auto_mapping", {"base_model_class": "X"}),
        ("base_model_name_or_path", "/home/someone/model"),
        ("inference_mode", True),
        ("peft_version", "9.9"),
        ("revision", "main"),
        ("runtime_config", {"ephemeral_gpu_offload": True}),
    ],
)
def test_what_names_a_place_or_a_session_is_dropped(field: str, value: object) -> None:
    assert canonical_config(CANONICAL | {field: value}) == CANONICAL


@pytest.mark.parametrize(
    ("config", "phrase"),
    [
        ([], "not a JSON object"),
        ({1: 2}, "not a JSON object"),
        ({"x": float("nan")}, "no exact form"),
        ({"x": 2**53}, "no exact form"),
        ({"x": "\ud800"}, "no exact form"),
        ({"x": "a" * 2**20}, "at most 1048576"),
        ({"target_modules": [1, "a"]}, "not a list of names or of numbers"),
        ({"target_modules": [["a"]]}, "not a list of names or of numbers"),
    ],
)
def test_what_has_no_canonical_form_is_refused(config: Any, phrase: str) -> None:
    with pytest.raises(Invalid, match=phrase):
        canonical_config(config)


def test_a_config_nested_without_end_is_refused() -> None:
    nested: dict[str, Any] = {}
    for _ in range(100_000):
        nested = {"x": nested}
    with pytest.raises(Invalid, match="no exact form"):
        canonical_config(nested)


def test_the_full_config_is_one_that_peft_reads_back(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(full_config(CANONICAL, base_model="org/base")))
    config = peft.PeftConfig.from_pretrained(str(tmp_path))
    assert isinstance(config, peft.LoraConfig)
    assert (config.r, config.lora_alpha, config.use_rslora, config.base_model_name_or_path) == (
        16,
        32,
        True,
        "org/base",
    )
    assert canonical_config(saved(config, tmp_path)) == CANONICAL
