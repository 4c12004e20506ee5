"""What a refusal tells to do is done here, and the adapter is then accepted."""

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn

from loratree_composer.base.manifest import manifest_of_module
from tests.peft_adapters import Q, Row, fill
from tests.peft_bases import quiet
from tests.refused_adapters import REFUSED
from tests.registry.peft_format.test_peft_adapters import read, spec_of

ITS_BASE = "the base that it was trained on"
CONVERTED = "a conversion when it is saved"
WITHOUT_COPIES = "save_embedding_layers=False"
LINEAR: dict[str, Any] = {"target_modules": ["linear"]}

# Name of the row → what its refusal tells to do: to train with other settings, or something else.
REMEDIES: dict[str, dict[str, Any] | str] = {
    "bd-lora": {"use_bdlora": None},
    "qalora": {"use_qalora": False},
    "kasa": {"kasa_config": None},
    "alora": {"alora_invocation_tokens": None},
    "layer-replication": {"layer_replication": None},
    "monteclora": {"monteclora_config": None},
    "pissa": CONVERTED,
    "olora": CONVERTED,
    "lora-ga": CONVERTED,
    "lora-bias-biasless": {"lora_bias": False},
    "lora-bias-attention": {"lora_bias": False},
    "attention-out-proj": LINEAR,
    "encoder-layer": {"target_modules": ["last"]},
    "encoder-attention": {"target_modules": ["last"]},
    "conv-dilation": LINEAR | {"modules_to_save": ["dilated"]},
    "conv-weight-norm": LINEAR | {"modules_to_save": ["normed"]},
    "conv-padding-mode": LINEAR | {"modules_to_save": ["reflected"]},
    "dora-groups": {"use_dora": False},
    "embedding-max-norm": LINEAR | {"modules_to_save": ["renormed"]},
    "embedding-other": LINEAR | {"modules_to_save": ["offset"]},
    "parameters-other": LINEAR | {"target_parameters": None},
    "lora-in-saved": {"target_parameters": ["k_proj.weight"], "modules_to_save": ["mlp"]},
    "saved-missing": ITS_BASE,
    "resized": ITS_BASE,
    "other-copy": WITHOUT_COPIES,
    "tokens-biased-head": {"trainable_token_indices": None, "modules_to_save": ["word_embeddings"]},
    "tokens-other": {"trainable_token_indices": None, "modules_to_save": ["embed_positions"]},
    "saved-other-shape": ITS_BASE,
    "experts-single": {"target_parameters": None, "target_modules": Q},
    "experts-single-plain": {"target_parameters": None, "target_modules": Q},
}


@pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in REFUSED])
def test_a_refused_adapter_is_accepted_once_its_remedy_is_followed(row: Row, tmp_path: Path) -> None:
    base, remedy = row.base(), REMEDIES[row.name]
    manifest = manifest_of_module(base)
    if isinstance(remedy, dict):
        saved = row.adapt(base, tmp_path / "adapter", **remedy)
    elif remedy == ITS_BASE:
        assert row.trained_on is not None
        torch.manual_seed(1)  # as adapt does before it makes the model
        manifest = manifest_of_module(row.trained_on(copy.deepcopy(base)))
        saved = row.adapt(base, tmp_path / "adapter")
    elif remedy == CONVERTED:
        saved = converted(base, row, tmp_path)
    else:
        saved = without_copies(base, row, tmp_path)
    spec = spec_of(read(saved), manifest)
    assert spec.modules or spec.values


def converted(base: nn.Module, row: Row, folder: Path) -> Path:
    """Trained, and saved as an adapter of the base as it was: PEFT subtracts what the initialisation took out."""
    with quiet():
        tuned: Any = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(r=4, lora_alpha=6, **row.config))  # type: ignore[arg-type]
        tuned.peft_config["default"].init_lora_weights = True  # as PEFT's guide saves the initial adapter
        tuned.save_pretrained(folder / "initial")
        tuned.peft_config["default"].init_lora_weights = row.config["init_lora_weights"]
        fill(tuned)
        tuned.save_pretrained(folder / "adapter", path_initial_model_for_weight_conversion=folder / "initial")
    return folder / "adapter"


def without_copies(base: nn.Module, row: Row, folder: Path) -> Path:
    with quiet():
        tuned: Any = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(r=4, **row.config))  # type: ignore[arg-type]
        fill(tuned)
        tuned.save_pretrained(folder / "adapter", save_embedding_layers=False)
    return folder / "adapter"
