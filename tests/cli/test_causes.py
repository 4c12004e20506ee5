"""Adapters and bases as people have them by mistake: the real command names the cause in one sentence."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests import tiny
from tests.cli.conftest import Filled, Shell
from tests.hub_layouts import LAYOUTS
from tests.peft_bases import quiet

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
Change = Callable[[Path, Path], object]  # the adapter's folder, and the base's


def keys(rename: Callable[[str], str]) -> Change:
    """Renames every key of the file."""

    def change(directory: Path, _: Path) -> None:
        tensors = {rename(key): value for key, value in load_file(directory / WEIGHTS).items()}
        save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})

    return change


def written(content: bytes) -> Change:
    return lambda directory, _: (directory / WEIGHTS).write_bytes(content)


def of(**settings: Any) -> Change:
    """Trained on another Llama."""

    def change(directory: Path, _: Path) -> None:
        other = tiny.llama(directory.parent / "other", **settings)
        tiny.adapter(other, directory, rank=4)

    return change


def resized(rows: int) -> Change:
    """Trained with a head and an embedding of another vocabulary."""

    def change(directory: Path, base: Path) -> None:
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(base)
        model.resize_token_embeddings(rows)
        model.save_pretrained(directory.parent / "resized")
        tiny.adapter(
            directory.parent / "resized", directory, modules_to_save=["lm_head", "embed_tokens"], targets=["q_proj"]
        )

    return change


def diverged(directory: Path, _: Path) -> None:
    tensors = {key: torch.full_like(value, float("nan")) for key, value in load_file(directory / WEIGHTS).items()}
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})


def empty(directory: Path, _: Path) -> None:
    tensors = {key: value[:0] for key, value in load_file(directory / WEIGHTS).items()}
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})


def dangle(directory: Path, _: Path) -> None:
    (directory / WEIGHTS).unlink()
    (directory / WEIGHTS).symlink_to("../../blobs/0123abcd")


def as_hub_cache(directory: Path, _: Path) -> None:
    snapshot = directory / "snapshots" / "0123abcd"
    (directory / "blobs").mkdir()
    snapshot.mkdir(parents=True)
    for name in (WEIGHTS, "adapter_config.json"):
        (directory / name).rename(snapshot / name)


def torchtune(key: str) -> str:
    key = key.removeprefix(f"{PREFIX}model.").replace("self_attn.", "attn.").replace("o_proj", "output_proj")
    return key.replace("lora_A", "lora_a").replace("lora_B", "lora_b")


def mlx(key: str) -> str:
    return key.removeprefix(PREFIX).replace("lora_A.weight", "lora_a").replace("lora_B.weight", "lora_b")


def as_mlx(directory: Path, _: Path) -> None:
    """MLX stores A as [in, rank] and B as [rank, out]."""
    tensors = {mlx(key): value.T.contiguous() for key, value in load_file(directory / WEIGHTS).items()}
    save_file(tensors, directory / WEIGHTS)


def turned(directory: Path, _: Path) -> None:
    tensors = {key: value.T.contiguous() for key, value in load_file(directory / WEIGHTS).items()}
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})


def mistral(key: str) -> str:
    names = {"q_proj": "wq", "k_proj": "wk", "v_proj": "wv", "o_proj": "wo", "gate_proj": "w1", "up_proj": "w3"}
    for old, new in (names | {"down_proj": "w2", "self_attn": "attention", "mlp": "feed_forward"}).items():
        key = key.replace(old, new)
    return key.removeprefix(f"{PREFIX}model.")


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + 64 * b"0" + b"\nsize 123\n"
EMPTY_FILE = (32).to_bytes(8, "little") + b'{"__metadata__":{"format":"pt"}}'

CAUSES: dict[str, tuple[Change, str]] = {
    "torch.compile": (
        keys(lambda key: key.replace(PREFIX, f"{PREFIX}_orig_mod.")),
        "have `_orig_mod.` in their names; torch.compile puts it there: save the model inside",
    ),
    "DataParallel": (
        keys(lambda key: key.replace(PREFIX, f"{PREFIX}module.")),
        "have `module.` in their names; a parallel model puts it there",
    ),
    "FSDP": (
        keys(lambda key: key.replace("layers.", "layers._fsdp_wrapped_module.")),
        "have `_fsdp_wrapped_module.` in their names; FSDP puts it there",
    ),
    "the adapter's name": (
        keys(lambda key: key.replace(".weight", ".default.weight")),
        "remove `.default` from the keys",
    ),
    "no prefix": (
        keys(lambda key: key.removeprefix(PREFIX)),
        "do not start with base_model.model., as save_pretrained writes them: put it before each",
    ),
    "a PeftModel in a PeftModel": (
        keys(lambda key: PREFIX + key),
        "are of a PeftModel inside a PeftModel: give get_peft_model the plain model",
    ),
    "AutoModel": (
        keys(lambda key: key.replace(f"{PREFIX}model.", PREFIX)),
        "it was trained on the model without its head (AutoModel), and the base is LlamaForCausalLM",
    ),
    "a model around the base": (
        keys(lambda key: key.replace(f"{PREFIX}model.", f"{PREFIX}model.language_model.")),
        "it was trained on a model that has LlamaForCausalLM inside",
    ),
    "a part that is compiled": (
        keys(lambda key: key.replace("layers.0.mlp.", "layers.0.mlp._orig_mod.")),
        "have `_orig_mod.` in their names; torch.compile puts it there",
    ),
    "a name with a dash": (
        keys(lambda key: key.replace(".weight", ".sql-v2.weight")),
        "remove `.sql-v2` from the keys",
    ),
    "A and B turned": (turned, "have the base's size on the other side: A is [rank, inputs] and B is [outputs, rank]"),
    "other heads": (
        of(num_key_value_heads=4),
        "factors have other sizes than the base's layers: most were trained for the size 32 where this base has 16",
    ),
    "an error page": (
        written(b"<!DOCTYPE html><html><body>Access to model is restricted</body></html>" * 9),
        "is not a safetensors file, it looks like a page of HTML or XML, such as an error of a download",
    ),
    "torchtune": (keys(torchtune), "have torchtune's own keys, not PEFT's: convert it with"),
    "MLX": (as_mlx, "have MLX's keys, not PEFT's: fuse it with mlx_lm.fuse"),
    "mistral-finetune": (keys(mistral), "have mistral-finetune's keys, not PEFT's"),
    "another hidden size": (
        of(hidden_size=64, intermediate_size=112),
        "most were trained for the size 64 where this base has 32; publish to the tree of the base",
    ),
    "more layers": (
        of(num_hidden_layers=3),
        "it was trained on a model of 3 layers, and this base has 2: publish to the tree",
    ),
    "a vocabulary that grew": (resized(104), "save it as a base of its own"),
    "a vocabulary that shrank": (resized(80), "save it as a base of its own"),
    "git-LFS": (written(POINTER), "is a pointer of git-LFS, not the file itself: run git lfs pull"),
    "a file without tensors": (
        written(EMPTY_FILE),
        "holds no tensors, as a process writes it that holds no part of a sharded model",
    ),
    "DeepSpeed ZeRO-3": (empty, "DeepSpeed ZeRO-3 leaves empty tensors if one process saves its own part"),
    "a training that diverged": (diverged, "holds values that are not finite"),
    "half a download": (dangle, "is a link to ../../blobs/0123abcd, which is not there: download the files again"),
    "the hub's cache": (as_hub_cache, "is a folder of the hub's cache: give the snapshot in it, "),
}


@pytest.mark.parametrize("cause", CAUSES)
def test_the_cause_is_named_in_one_sentence_and_nothing_is_written(
    cause: str, filled: Filled, shell: Shell, tmp_path: Path
) -> None:
    change, sentence = CAUSES[cause]
    directory = tmp_path / "adapter"
    with quiet():
        tiny.adapter(filled.base, directory, rank=4)
        change(directory, filled.base)
    state = shell.state()
    done = shell("publish", directory, "tiny/mistaken", "--parent", "base", check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert sentence in done.stderr
    assert len(done.stderr) < 600
    assert done.stderr.count("\n") == 1
    assert shell.state() == state
    listed = shell("publish", directory, "tiny/mistaken", "--parent", "base", "--verbose", "--json", check=False)
    answer = json.loads(listed.stdout)
    assert sentence in answer["error"]
    assert listed.stderr.count("\n") == 1 + len(answer["details"])
    hint = re.search(r"--verbose lists all (\d+) problems", done.stderr)
    assert (int(hint[1]) if hint else 0) == len(answer["details"])


@pytest.mark.parametrize("settings", [{"hidden_size": 64, "intermediate_size": 112}, {"num_hidden_layers": 3}])
def test_an_adapter_of_another_size_is_refused_with_the_base_that_its_config_names(
    settings: dict[str, int], filled: Filled, shell: Shell, tmp_path: Path
) -> None:
    of(**settings)(tmp_path / "adapter", filled.base)
    for named, says in (("acme-ai/Other-7B", ": its config names acme-ai/Other-7B"), (None, "")):
        config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
        (tmp_path / "adapter" / "adapter_config.json").write_text(
            json.dumps(config | {"base_model_name_or_path": named})
        )
        done = shell("publish", tmp_path / "adapter", "tiny/law", "--parent", "base", check=False)
        assert done.returncode == 1
        assert f"publish to the tree of the base that it was trained on{says} (--verbose lists" in done.stderr


def test_a_base_in_the_hubs_cache_is_named_by_its_snapshot(filled: Filled, shell: Shell, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--tiny" / "snapshots" / "0123abcd"
    (tmp_path / "models--tiny" / "blobs").mkdir(parents=True)
    shutil.copytree(filled.base, snapshot)
    done = shell("base", "add", "hub", snapshot.parents[1], check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"is a folder of the hub's cache: give the snapshot in it, {snapshot}\n" in done.stderr
    shell("base", "add", "hub", snapshot)  # the remedy
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to("../../blobs/4567")
    done = shell("base", "add", "hub", snapshot, check=False)
    assert (
        "model.safetensors is a link to ../../blobs/4567, which is not there: download the files again" in done.stderr
    )


def test_a_base_that_is_resized_and_saved_takes_the_adapter_that_was_trained_on_it(
    filled: Filled, shell: Shell, tmp_path: Path
) -> None:
    """The remedy for a vocabulary that grew."""
    resized(104)(tmp_path / "adapter", filled.base)
    shell("base", "add", "resized", tmp_path / "resized")
    shell("publish", tmp_path / "adapter", "resized/medicine")
    shell("compose", "resized/medicine", "--mode", "merge", "--out", tmp_path / "merged")
    merged: dict[str, Tensor] = load_file(tmp_path / "merged" / "model.safetensors")
    assert merged["lm_head.weight"].shape == (104, 32)
    assert torch.equal(merged["lm_head.weight"], load_file(tmp_path / "adapter" / WEIGHTS)[f"{PREFIX}lm_head.weight"])


def test_what_a_checkpoint_holds_beside_the_model_is_listed(shell: Shell, tmp_path: Path) -> None:
    done = shell("base", "add", "gpt2", LAYOUTS["gpt2"].save(tmp_path / "gpt2"))
    said = "left out, because the model has no place for them: h.0.attn.bias; h.1.attn.bias; h.1.attn.masked_bias"
    assert f"{said}\n" in done.stderr


def test_the_same_weights_under_a_second_name_are_told(filled: Filled, shell: Shell) -> None:
    assert "the same weights" not in shell("base", "add", "tiny", filled.base).stderr
    assert "the same weights are recorded as tiny too: " in shell("base", "add", "again", filled.base).stderr


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "module.", "base_model.model."])
def test_a_base_that_was_saved_in_a_wrapper_is_named_so(
    wrapper: str, filled: Filled, shell: Shell, tmp_path: Path
) -> None:
    """Loading it with transformers and saving it again would store random weights."""
    base = Path(shutil.copytree(filled.base, tmp_path / "wrapped"))
    tensors = {wrapper + key: value for key, value in load_file(base / "model.safetensors").items()}
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    state = shell.state()
    done = shell("base", "add", "wrapped", base, check=False)
    assert (done.returncode, f"has such with `{wrapper}` in their names: save the model" in done.stderr) == (1, True)
    assert "load the model with transformers" not in done.stderr
    assert shell.state() == state


def test_a_config_that_git_lfs_keeps_is_named_so(filled: Filled, shell: Shell, tmp_path: Path) -> None:
    adapter = tiny.adapter(filled.base, tmp_path / "adapter", rank=4)
    (adapter / "adapter_config.json").write_bytes(POINTER)
    done = shell("publish", adapter, "tiny/law", "--parent", "base", check=False)
    assert "adapter_config.json is a pointer of git-LFS, not the file itself: run git lfs pull" in done.stderr


def test_new_tokens_beyond_the_base_name_the_resized_base(filled: Filled, shell: Shell, tmp_path: Path) -> None:
    adapter = tiny.adapter(filled.base, tmp_path / "adapter", targets=["q_proj"], trainable_token_indices=[1, 2])
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"trainable_token_indices": [100, 101]}))
    done = shell("publish", adapter, "tiny/law", "--parent", "base", check=False)
    assert "if the vocabulary was resized for the training, save the resized base, add it" in done.stderr
