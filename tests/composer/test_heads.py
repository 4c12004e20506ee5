"""Heads of classifiers: what PEFT saves with a task_type or a list, on two levels, in every form."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from loratree_composer.base.manifest import manifest_of_module
from loratree_registry.errors import Invalid
from tests import tiny
from tests.composer import chains
from tests.composer.trips import Config, start, travel
from tests.peft_adapters import Row
from tests.peft_bases import Attention, Encoder, gpt_oss, sequence

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}


def scores(model: nn.Module) -> Tensor:
    found = model(tiny.tokens(length=9))
    tensor = found.logits if hasattr(found, "logits") else found.start_logits + 2 * found.end_logits
    assert isinstance(tensor, Tensor)
    return tensor


def made(name: str, config: str, **settings: Any) -> Callable[[], nn.Module]:
    labels = {"num_labels": 2 if "QuestionAnswering" in name else 3}

    def make() -> nn.Module:
        model: nn.Module = getattr(transformers, name)(getattr(transformers, config)(**(SIZES | labels | settings)))
        return model

    return make


# A head of one layer, of several, of two modules, and without a bias.
MODELS = {
    "roberta": (made("RobertaForSequenceClassification", "RobertaConfig"), "SEQ_CLS", ["query"], ["classifier"]),
    "xlm-roberta": (
        made("XLMRobertaForSequenceClassification", "XLMRobertaConfig"),
        "SEQ_CLS",
        ["query"],
        ["classifier"],
    ),
    "bert": (made("BertForSequenceClassification", "BertConfig"), "SEQ_CLS", ["query"], ["classifier"]),
    "bert-tokens": (made("BertForTokenClassification", "BertConfig"), "TOKEN_CLS", ["query"], ["classifier"]),
    "bert-answers": (made("BertForQuestionAnswering", "BertConfig"), "QUESTION_ANS", ["query"], ["qa_outputs"]),
    "distilbert": (
        made("DistilBertForSequenceClassification", "DistilBertConfig", dim=32, n_layers=1, n_heads=4, hidden_dim=40),
        "SEQ_CLS",
        ["q_lin"],
        ["classifier"],
    ),
    "llama": (made("LlamaForSequenceClassification", "LlamaConfig"), "SEQ_CLS", ["q_proj"], ["score"]),
}
CONFIGS: dict[str, Config] = {
    "task": {},
    "task, all biases": {"bias": "all"},
    "task, the targets' biases": {"bias": "lora_only"},
    "listed": {"task_type": None},
}


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("model", MODELS)
def test_a_head_on_two_levels_is_pefts_and_is_flattened(model: str, config: str, tmp_path: Path) -> None:
    make, task, targets, head = MODELS[model]
    settings = {"task_type": task, "target_modules": targets} | CONFIGS[config]
    if settings["task_type"] is None:
        settings["modules_to_save"] = head
    found = dict(travel(start(make(), tmp_path, run=scores), [settings, settings]))
    assert "level 2, flattened" in found
    assert max(found.values()) < 1e-9, found


def test_a_task_whose_head_no_level_has_is_not_written(tmp_path: Path) -> None:
    """Levels without a task, flattened: PEFT would ask for a trained classifier if the config named the task."""
    make, _, targets, _ = MODELS["roberta"]
    trip = start(make(), tmp_path, run=scores)
    found = dict(travel(trip, [{"target_modules": targets}, {"target_modules": targets}]))
    assert max(found.values()) < 1e-9, found


@pytest.mark.parametrize("rank", [1, 2])
def test_experts_of_any_rank_are_flattened(rank: int, tmp_path: Path) -> None:
    config: Config = {"r": rank, "target_modules": [], "target_parameters": ["gate_up_proj", "down_proj"]}
    found = dict(travel(start(gpt_oss(), tmp_path), [config, config]))
    assert max(found.values()) < 1e-9, found
    assert "level 2, flattened" in found


# A LoRA on a layer that the model never calls: without effect while its B is zero


def _adapted(
    make: Callable[[], nn.Module], targets: list[str], folder: Path, *, trained: bool
) -> tuple[nn.Module, Path]:
    row = Row(name="", meaning="", make=make, config={"target_modules": targets}, run=sequence)
    base = row.base()
    directory = row.adapt(base, folder / "adapter")
    if not trained:
        from safetensors.torch import load_file, save_file

        tensors = load_file(directory / chains.WEIGHTS)
        for key in tensors:
            if key.endswith("lora_B.weight") and ("linear1" in key or "out_proj" in key):
                tensors[key].zero_()
        save_file(tensors, directory / chains.WEIGHTS)
    return base, directory


def test_a_lora_that_was_never_trained_where_none_is_read_is_left_out(tmp_path: Path) -> None:
    base, directory = _adapted(Encoder, ["linear1"], tmp_path, trained=False)
    manifest = manifest_of_module(base)
    with pytest.raises(Invalid, match=r"holds no lora_A and lora_B, and nothing else that was trained"):
        chains.check(directory, manifest, untied=False, on_base=True)
    base, directory = _adapted(Mixed, ["linear1", "proj"], tmp_path / "mixed", trained=False)
    manifest = manifest_of_module(base)
    chains.check(directory, manifest, untied=False, on_base=True)
    adapter = chains.read(directory, manifest)
    assert list(adapter.parts) == ["proj.weight"]
    expected = Row(name="", meaning="", make=Mixed, config={}).load(base, directory)
    model = Mixed().eval()
    model.load_state_dict(base.state_dict())
    from loratree_composer.adapters.adapter import programs_of
    from loratree_composer.live.merged_weights import MergedWeights

    MergedWeights(model).merge(programs_of([(adapter, 1.0)]))
    with torch.no_grad():
        assert chains.relative(sequence(model), sequence(expected)) < 1e-5


def test_a_trained_lora_where_none_is_read_is_refused(tmp_path: Path) -> None:
    base, directory = _adapted(Mixed, ["linear1", "proj"], tmp_path, trained=True)
    with pytest.raises(
        Invalid, match=r"LoRA on a weight that the model reads past its layer .* \(encoder\.layers\.0\.linear1"
    ):
        chains.check(directory, manifest_of_module(base), untied=False, on_base=True)


def test_the_out_proj_of_an_attention_alone_is_accepted_while_it_is_zero(tmp_path: Path) -> None:
    base, directory = _adapted(Attention, ["proj", "out_proj"], tmp_path, trained=False)
    manifest = manifest_of_module(base)
    chains.check(directory, manifest, untied=False, on_base=True)
    assert list(chains.read(directory, manifest).parts) == ["proj.weight"]


class Mixed(nn.Module):
    """A layer that is called, before torch's encoder, whose layers are not."""

    def __init__(self) -> None:
        super().__init__()
        self.proj, self.encoder = nn.Linear(8, 8), Encoder()

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, length, 8]"""
        y: Tensor = self.encoder(torch.tanh(self.proj(x)))
        return y
