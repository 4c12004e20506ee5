import json
import os
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import safetensors.torch
import torch
import transformers

from loratree_composer.base.manifest import read_base
from loratree_registry.core.digests import digest_stream
from loratree_registry.errors import Invalid, LoratreeError, NotFound
from loratree_registry.workspace.adapter_directory import read_adapter_directory
from tests import tiny


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.llama(tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="module")
def written(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.adapter(base, tmp_path_factory.mktemp("written") / "adapter")


@pytest.fixture
def adapter(written: Path, tmp_path: Path) -> Path:
    """A fresh copy of an adapter that PEFT wrote."""
    return shutil.copytree(written, tmp_path / "adapter")


def refusal(path: Path, kind: type[LoratreeError] = Invalid) -> str:
    with pytest.raises(kind) as refused:
        read_adapter_directory(path)
    message = str(refused.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_a_folder_that_peft_wrote_is_read_hashed_and_classified(adapter: Path, base: Path) -> None:
    found = read_adapter_directory(adapter)
    with (adapter / "adapter_model.safetensors").open("rb") as stream:
        assert (found.file.sha256, found.file.size) == digest_stream(stream)
    assert found.file.name == "adapter_model.safetensors"
    assert found.base_name == str(base)
    assert found.canonical["r"] == 4
    assert (list(found.documents), found.not_published) == (["README.md"], [])
    assert len(found.spec(read_base(base)).modules) == 14


def test_a_folder_that_a_trainer_wrote_is_read_and_the_rest_is_not_published(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    model = peft.get_peft_model(
        transformers.AutoModelForCausalLM.from_pretrained(base),
        peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"),
    )
    data = [{"input_ids": row, "labels": row} for row in tiny.tokens(batch=2)]
    settings = transformers.TrainingArguments(
        output_dir=str(out), max_steps=2, save_steps=1, report_to=[], use_cpu=True, disable_tqdm=True
    )
    trainer = transformers.Trainer(model=model, args=settings, train_dataset=data)  # type: ignore[arg-type]
    trainer.train()
    assert f"publish {out / 'checkpoint-2'}, the last one" in refusal(out)
    checkpoint = read_adapter_directory(out / "checkpoint-2")
    assert {"optimizer.pt", "training_args.bin"} <= set(checkpoint.not_published)
    assert list(checkpoint.documents) == ["README.md", "trainer_state.json"]
    trainer.save_model()
    found = read_adapter_directory(out)
    assert {"checkpoint-1", "checkpoint-2", "training_args.bin"} <= set(found.not_published)
    assert found.content == checkpoint.content
    assert len(found.spec(read_base(base)).modules) == 2


def test_what_is_not_a_folder_of_an_adapter_says_what_it_is(adapter: Path, base: Path, tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "nowhere", NotFound)
    assert "is a file" in refusal(adapter / "README.md")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "is empty" in refusal(empty)
    assert "a whole model and no adapter" in refusal(base)
    (empty / "notes.txt").touch()
    assert "holds no adapter_config.json" in refusal(empty)


@pytest.mark.parametrize(
    ("name", "what", "remedy"),
    [
        ("adapters.safetensors", "an adapter of MLX", "mlx_lm.fuse"),
        ("0000100_adapters.safetensors", "an adapter of MLX", "mlx_lm.fuse"),
        ("adapter_0.pt", "an adapter of torchtune", "tune_to_peft_adapter_weights"),
        ("pytorch_lora_weights.safetensors", "a LoRA of diffusers", "are not composed"),
        ("lora.safetensors", "an adapter of mistral-finetune", "rename its keys"),
        ("medicine-f16.gguf", "weights of llama.cpp", "that they were converted from"),
        ("global_step500", "a checkpoint of DeepSpeed", "zero_to_fp32.py"),
        ("pytorch_model_fsdp_0", "a checkpoint of FSDP", "accelerate merge-weights"),
        ("__0_0.distcp", "a checkpoint of FSDP", "accelerate merge-weights"),
        ("adapter_model-00001-of-00002.safetensors", "split into several files", "PeftModel.from_pretrained"),
        ("mp_rank_00", "a checkpoint of NeMo", "export the adapter to the form of PEFT"),
    ],
)
@pytest.mark.parametrize("has_config", [False, True])
def test_the_files_of_another_tool_are_named_with_the_way_out(
    name: str, what: str, remedy: str, *, has_config: bool, adapter: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / name).touch()
    if has_config:
        shutil.copy(adapter / "adapter_config.json", folder)
    message = refusal(folder)
    assert f"({name}) and no adapter_model.safetensors of PEFT: " in message
    assert what in message
    assert remedy in message


def test_weights_without_a_config_are_named(adapter: Path) -> None:
    (adapter / "adapter_config.json").unlink()
    assert "holds adapter_model.safetensors and no adapter_config.json" in refusal(adapter)


def test_weights_of_another_name_are_named(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "final.safetensors")
    assert "holds no adapter_model.safetensors, only final.safetensors: save it again" in refusal(adapter)


def test_of_several_snapshots_in_the_hubs_cache_refs_main_decides(adapter: Path, tmp_path: Path) -> None:
    repository = tmp_path / "cache" / "hub" / "models--me--mine"
    (repository / "blobs").mkdir(parents=True)
    for name in ("0123", "4567", "89ab"):
        shutil.copytree(adapter, repository / "snapshots" / name)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("4567")
    assert refusal(repository).endswith(f"give the snapshot in it, {repository / 'snapshots' / '4567'}")
    snapshot = repository / "snapshots" / "4567"
    for cache in (tmp_path / "cache", tmp_path / "cache" / "hub"):
        assert refusal(cache).endswith(f"is the hub's cache: give the snapshot of one of its models, {snapshot}")
    (repository / "refs" / "main").write_text("../../../snapshots")  # believed only as a plain name
    os.utime(repository / "snapshots" / "0123", (2e9, 2e9))
    assert refusal(repository).endswith(f"give the snapshot in it, {repository / 'snapshots' / '0123'}")


def test_a_folder_of_named_adapters_tells_which_to_publish(adapter: Path, tmp_path: Path) -> None:
    folder = tmp_path / "named"
    for name in ("mine", "other"):
        shutil.copytree(adapter, folder / name)
    assert f"{folder / 'mine'}; {folder / 'other'}: publish one" in refusal(folder)


def test_the_last_checkpoint_is_the_one_of_the_highest_step(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        (tmp_path / f"checkpoint-{step}").mkdir()
    assert f"{tmp_path / 'checkpoint-100'}, the last one" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        (b"", "not usable JSON"),
        (b"{", "not usable JSON"),
        (b"[]", "is not a JSON object"),
        (b"\xff\xfe", "not usable JSON"),
        (b'{"r": 1, "r": 2}', "'r' stands twice"),
        (b'{"rank_pattern": {"q": 1, "q": 2}}', "'q' stands twice"),
        (b'{"r": NaN}', "NaN is not JSON"),
        (b'{"lora_alpha": 1e999}', "1e999' is larger than any float"),
        (b'{"lora_alpha": ' + b"9" * 30 + b"}", "more than 19 digits"),
        (rb'{"task_type": "\ud800"}', "half a character"),
        (b"[" * 200_000, "not usable JSON"),
        (b" " * (4 * 2**20 + 1), "larger than 4194304 bytes"),
        (b'{"r": ' + b"9" * 5000 + b"}", "not usable JSON"),
        (b'{"target_modules": [1, "a"]}', "not a list of names"),
    ],
)
def test_a_config_that_is_not_usable_is_refused(text: bytes, phrase: str, adapter: Path) -> None:
    (adapter / "adapter_config.json").write_bytes(text)
    assert phrase in refusal(adapter)


def test_pickled_weights_alone_are_refused_with_the_way_out(adapter: Path) -> None:
    weights = adapter / "adapter_model.safetensors"
    torch.save(safetensors.torch.load_file(weights), adapter / "adapter_model.bin")
    assert read_adapter_directory(adapter).not_published == ["adapter_model.bin"]
    weights.unlink()
    message = refusal(adapter)
    assert "pickled weights (adapter_model.bin)" in message
    assert "safe_serialization=True" in message
    (adapter / "adapter_model.bin").unlink()
    assert "holds no adapter_model.safetensors" in refusal(adapter)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_what_is_no_file_is_refused_and_never_waited_for(name: str, adapter: Path) -> None:
    path = adapter / name
    path.unlink()
    os.mkfifo(path)
    assert "is not a file" in refusal(adapter)
    path.unlink()
    path.mkdir()
    assert "is not a file" in refusal(adapter)
    path.rmdir()
    path.symlink_to(adapter / "gone")
    assert "gone, which is not there: download the files again" in refusal(adapter)


def test_links_to_files_are_followed_as_a_hub_s_cache_has_them(adapter: Path, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    linked.mkdir()
    for file in adapter.iterdir():
        (linked / file.name).symlink_to(file)
    assert read_adapter_directory(linked).content == read_adapter_directory(adapter).content


def test_weights_that_are_broken_are_refused_by_their_path(adapter: Path) -> None:
    weights = adapter / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    assert f"{weights} is truncated" in refusal(adapter)
    weights.write_bytes(b"")
    assert f"{weights} is truncated" in refusal(adapter)
    weights.write_bytes(whole[:-4] + b"\x00\x00\xc0\x7f")
    assert "holds 1 NaN and 0 Inf" in refusal(adapter)


def test_what_does_not_fit_the_base_names_the_folder(adapter: Path, tmp_path: Path) -> None:
    other = read_base(tiny.llama(tmp_path / "other", hidden_size=48))
    with pytest.raises(Invalid, match=f"^{adapter}: the adapter cannot be published: 22 of 28 factors "):
        read_adapter_directory(adapter).spec(other)


@pytest.mark.parametrize("value", [None, "", "  ", 3])
def test_a_config_that_names_no_base_has_no_base_name(value: Any, adapter: Path) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": value}))
    assert read_adapter_directory(adapter).base_name is None
