"""What each sentence of test_causes.py tells to do is done here to the letter, and the adapter is then published."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from tests import tiny
from tests.cli.conftest import Filled, Shell
from tests.cli.test_causes import CAUSES, PREFIX, WEIGHTS, Change
from tests.peft_bases import quiet


class Case(NamedTuple):
    """A mistaken adapter, a right one of the same training, and where both lie."""

    shell: Shell
    base: Path
    mistaken: Path
    right: Path
    folder: Path

    def tuned(self) -> Any:
        """PEFT's model of the right adapter."""
        return peft.PeftModel.from_pretrained(tiny_model(self.base), self.right, is_trainable=True)  # type: ignore[arg-type]

    def rename(self, rename: Callable[[str], str]) -> None:
        """Rename the keys of the mistaken file."""
        tensors = {rename(key): value for key, value in load_file(self.mistaken / WEIGHTS).items()}
        save_file(tensors, self.mistaken / WEIGHTS, metadata={"format": "pt"})

    def publish_below(self, model: Path) -> tuple[Path, str]:
        """Add `model` as a base, to publish to its tree."""
        self.shell("base", "add", "other", model)
        return self.mistaken, "other/medicine"


Remedy = Callable[[Case], tuple[Path, str] | None]  # the adapter to publish now, and where; None: the mistaken one


def tiny_model(directory: Path) -> nn.Module:
    model: nn.Module = transformers.AutoModelForCausalLM.from_pretrained(directory)
    return model


def inside_compiled(case: Case) -> None:
    compiled: Any = torch.compile(case.tuned())
    compiled._orig_mod.save_pretrained(case.mistaken)


def inside_parallel(case: Case) -> None:
    nn.DataParallel(case.tuned()).module.save_pretrained(case.mistaken)


def with_full_state(case: Case) -> None:
    """What a full state dict of FSDP holds: the names without the wrapper."""
    state = {name.replace("_fsdp_wrapped_module.", ""): value for name, value in case.tuned().state_dict().items()}
    case.tuned().save_pretrained(case.mistaken, state_dict=state)


def on_composed_model(case: Case) -> tuple[Path, str]:
    """The first adapter is published, and the second trained on its composition."""
    case.shell("publish", case.right, "tiny/first")
    case.shell("compose", "tiny/first", "--mode", "merge", "--out", case.folder / "composed")
    tiny.adapter(case.folder / "composed", case.mistaken, rank=4)
    return case.mistaken, "tiny/first/second"


def on_whole_model(case: Case) -> None:
    tiny.adapter(case.base, case.mistaken, rank=4)  # tiny.adapter trains on LlamaForCausalLM


def around(case: Case) -> tuple[Path, str]:
    """The model that has the base inside is a base of its own."""
    text = transformers.AutoConfig.from_pretrained(case.base).to_dict()
    vision = {"model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 4, "image_size": 28, "patch_size": 14}
    config = transformers.LlavaConfig(text_config=text, vision_config=vision, image_token_index=95)  # type: ignore[arg-type]
    transformers.LlavaForConditionalGeneration(config).save_pretrained(case.folder / "around")
    config = json.loads((case.mistaken / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(case.folder / "around")  # where such an adapter was trained
    (case.mistaken / "adapter_config.json").write_text(json.dumps(config))
    return case.publish_below(case.folder / "around")


def from_torchtune(key: str) -> str:
    """As tune_to_peft_adapter_weights renames them."""
    key = key.replace("attn.", "self_attn.").replace("output_proj", "o_proj")
    return f"{PREFIX}model.{key}".replace("lora_a", "lora_A").replace("lora_b", "lora_B")


def from_mistral(key: str) -> str:
    names = {"attention.wq": "self_attn.q_proj", "attention.wk": "self_attn.k_proj", "attention.wv": "self_attn.v_proj"}
    names |= {
        "attention.wo": "self_attn.o_proj",
        "feed_forward.w1": "mlp.gate_proj",
        "feed_forward.w2": "mlp.down_proj",
    }
    for old, new in (names | {"feed_forward.w3": "mlp.up_proj"}).items():
        key = key.replace(old, new)
    return f"{PREFIX}model.{key}"


def from_mlx(case: Case) -> None:
    tensors = load_file(case.mistaken / WEIGHTS)
    renamed = {key.replace("lora_a", "lora_A.weight").replace("lora_b", "lora_B.weight"): key for key in tensors}
    transposed = {PREFIX + key: tensors[old].T.contiguous() for key, old in renamed.items()}
    save_file(transposed, case.mistaken / WEIGHTS, metadata={"format": "pt"})


def turn(case: Case) -> None:
    tensors = {key: value.T.contiguous() for key, value in load_file(case.mistaken / WEIGHTS).items()}
    save_file(tensors, case.mistaken / WEIGHTS, metadata={"format": "pt"})


def real_file(case: Case) -> None:
    (case.mistaken / WEIGHTS).unlink()
    shutil.copy(case.right / WEIGHTS, case.mistaken / WEIGHTS)


def snapshot(case: Case) -> tuple[Path, str]:
    return next((case.mistaken / "snapshots").iterdir()), "tiny/mistaken"


REMEDIES: dict[str, Remedy] = {
    "torch.compile": inside_compiled,
    "DataParallel": inside_parallel,
    "FSDP": with_full_state,
    "the adapter's name": lambda case: case.rename(lambda key: key.replace(".default", "")),
    "no prefix": lambda case: case.rename(lambda key: PREFIX + key),
    "a PeftModel in a PeftModel": on_composed_model,
    "AutoModel": on_whole_model,
    "a model around the base": around,
    "a part that is compiled": lambda case: case.rename(lambda key: key.replace("_orig_mod.", "")),
    "a name with a dash": lambda case: case.rename(lambda key: key.replace(".sql-v2", "")),
    "A and B turned": turn,
    "other heads": lambda case: case.publish_below(case.folder / "other"),
    "an error page": real_file,
    "torchtune": lambda case: case.rename(from_torchtune),
    "MLX": from_mlx,
    "mistral-finetune": lambda case: case.rename(from_mistral),
    "another hidden size": lambda case: case.publish_below(case.folder / "other"),
    "more layers": lambda case: case.publish_below(case.folder / "other"),
    "a vocabulary that grew": lambda case: case.publish_below(case.folder / "resized"),
    "a vocabulary that shrank": lambda case: case.publish_below(case.folder / "resized"),
    "git-LFS": real_file,
    "a file without tensors": real_file,
    "DeepSpeed ZeRO-3": real_file,
    "a training that diverged": on_whole_model,
    "half a download": real_file,
    "the hub's cache": snapshot,
}


@pytest.mark.parametrize("cause", CAUSES)
def test_the_adapter_is_published_once_the_remedy_is_followed(
    cause: str, filled: Filled, shell: Shell, tmp_path: Path
) -> None:
    change: Change = CAUSES[cause][0]
    case = Case(shell, filled.base, tmp_path / "adapter", tmp_path / "right", tmp_path)
    with quiet():
        tiny.adapter(filled.base, case.mistaken, rank=4)
        tiny.adapter(filled.base, case.right, rank=4)
        change(case.mistaken, filled.base)
        adapter, path = REMEDIES[cause](case) or (case.mistaken, "tiny/mistaken")
    shell("publish", adapter, path, *(() if "first" in path else ("--parent", "base")))
    shell("compose", path, "--mode", "merge", "--out", tmp_path / "merged")
