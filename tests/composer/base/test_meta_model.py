"""A base's folder comes from anywhere: nothing in it is run or fetched, and nothing in it asks for all the memory."""

import json
import os
import resource
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.integrations import hub_kernels

from loratree_composer.base import meta_model
from loratree_composer.base.manifest import manifest_of_module, read_base
from loratree_registry.errors import Invalid
from loratree_registry.tensor_files.checkpoint import open_checkpoint
from tests import peft_bases, tiny
from tests.composer import chains
from tests.composer.conftest import Tree

KERNEL = "kernels-community/flash-attn2"


@pytest.fixture
def base(llama: Tree, tmp_path: Path) -> Path:
    """A copy of the llama base that a test may spoil."""
    return Path(shutil.copytree(llama.base, tmp_path / "copy"))


@pytest.fixture
def mixtral(tmp_path: Path) -> Path:
    """A checkpoint that transformers converts: it is loaded whole."""
    torch.manual_seed(0)
    peft_bases.mixtral().save_pretrained(tmp_path / "mixtral")  # type: ignore[operator]
    return tmp_path / "mixtral"


@pytest.fixture(autouse=True)
def no_fetching(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Fail if transformers asks a hub for anything, whether `kernels` is installed here or not."""
    asked: list[str] = []

    def fetch(name: str, *_: Any, **__: Any) -> None:
        asked.append(name)
        pytest.fail(f"{name} was fetched")

    monkeypatch.setattr(hub_kernels, "get_kernel_hub", fetch, raising=False)
    monkeypatch.setattr(hub_kernels, "is_kernels_available", lambda: True)
    monkeypatch.setattr(socket.socket, "connect", lambda _, address: fetch(str(address)))
    return asked


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


REFERENCES = {
    "attention": {"attn_implementation": KERNEL},
    "attention, as it is kept": {"_attn_implementation": KERNEL, "_attn_implementation_internal": KERNEL},
    "attention by part": {"attn_implementation": {"": KERNEL}},
    "flash attention": {"attn_implementation": "flash_attention_2"},
    "experts": {"experts_implementation": "sonicmoe", "_experts_implementation": "sonicmoe"},
    "code": {"auto_map": {"AutoConfig": "giga.Config", "AutoModelForCausalLM": "other/repo--giga.Model"}},
    "other weights": {"transformers_weights": "other.safetensors"},
    "another config": {"configuration_files": ["config.4.0.0.json"]},
    "fusions": {"fusion_config": {"patch_embeddings": True}},
    "its own name": {"name_or_path": "other/repo", "_name_or_path": "other/repo", "_commit_hash": "0" * 40},
}


@pytest.mark.parametrize("changes", REFERENCES.values(), ids=REFERENCES)
@pytest.mark.parametrize("kind", ["llama", "mixtral"])
def test_what_a_config_names_on_a_hub_or_in_its_folder_is_ignored(
    request: pytest.FixtureRequest, kind: str, changes: dict[str, object]
) -> None:
    folder = request.getfixturevalue("base" if kind == "llama" else kind)
    expected = read_base(folder)
    edit_config(folder, **changes)
    (folder / "giga.py").write_text("raise SystemExit('remote code ran')")
    shutil.copy(folder / "config.json", folder / "config.4.0.0.json")
    edit_config_4 = json.loads((folder / "config.4.0.0.json").read_text()) | {"vocab_size": 4}
    (folder / "config.4.0.0.json").write_text(json.dumps(edit_config_4))
    assert read_base(folder) == expected


def test_a_model_is_built_without_kernels_in_this_thread_alone() -> None:
    with meta_model.without_kernels(), pytest.raises(ImportError, match="without kernels"):
        hub_kernels.get_kernel(KERNEL, version=1)
    with pytest.raises(pytest.fail.Exception, match=KERNEL):
        hub_kernels.get_kernel(KERNEL, version=1)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"text_config": {"quantization_config": {"quant_method": "mxfp4"}}}, "quantised"),
        ({"compression_config": {"format": "pack"}}, "quantised"),
        ({"backbone": "evil/repo", "use_timm_backbone": False}, "'evil/repo' from a hub"),
        ({"vision_config": {"backbone": "resnet50"}}, "'resnet50' from a hub"),
        ({"model_type": "timm_wrapper", "architecture": "hf-hub:evil/repo"}, "'hf-hub:evil/repo' from a hub"),
        ({"pad": "x" * meta_model.MAX_CONFIG}, "larger than 16777216 bytes"),
    ],
)
def test_a_config_that_cannot_be_read_without_a_hub_is_refused(
    base: Path, changes: dict[str, object], sentence: str
) -> None:
    edit_config(base, **changes)
    with pytest.raises(Invalid, match=sentence):
        read_base(base)


SIZES = (
    {"num_hidden_layers": 10**9},
    {"num_hidden_layers": 60_000},
    {"num_hidden_layers": 1 << 62},
    {"num_hidden_layers": 10**30},
    {"layer_types": ["full_attention"] * 60_000, "num_hidden_layers": 60_000},
    {"num_labels": 10**9},
    {"hidden_size": 10**9},
    {"intermediate_size": 10**9, "head_dim": 10**9},
    {"vocab_size": 10**12},
    {"num_attention_heads": 10**9},
    {"mlp_bias": True, "some_future_number_of_blocks": 10**9},
    {"max_position_embeddings_of_layers": 10**9},
)


@pytest.mark.parametrize("changes", SIZES, ids=str)
@pytest.mark.parametrize("kind", ["llama", "mixtral"])
def test_a_config_that_asks_for_far_more_than_its_checkpoint_holds_is_refused_before_it_is_built(
    request: pytest.FixtureRequest, kind: str, changes: dict[str, object]
) -> None:
    folder = request.getfixturevalue("base" if kind == "llama" else kind)
    edit_config(folder, **changes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(Invalid, match=r"asks for more than the checkpoint holds.* give the config\.json that belongs"):
        read_base(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # KiB


def test_sizes_of_configs_within_a_config_are_bounded_too(base: Path) -> None:
    for changes in ({"text_config": {"num_hidden_layers": 10**9}}, {"vision": [{"depths": [2, 10**9]}]}):
        edit_config(base, **changes)
        with pytest.raises(Invalid, match="asks for more than the checkpoint holds"):
            read_base(base)


def test_experts_are_bounded_by_the_values_that_the_checkpoint_holds(mixtral: Path) -> None:
    edit_config(mixtral, num_local_experts=60_000)
    with pytest.raises(Invalid, match="values, where the checkpoint has"):
        read_base(mixtral)


def test_what_positions_reach_is_not_a_size(base: Path) -> None:
    expected = read_base(base)
    edit_config(base, max_position_embeddings=10_485_760, rope_theta=45_913_600_000, sliding_window=1 << 40)
    edit_config(base, acoustic_tokenizer_chunk_size=1_440_000, max_pixels=12_845_056, max_len=1 << 20)
    assert read_base(base) == expected


def test_computed_positions_are_bounded_by_the_values_that_the_checkpoint_holds(tmp_path: Path) -> None:
    peft_bases.marian().save_pretrained(tmp_path)  # type: ignore[operator]
    edit_config(tmp_path, max_position_embeddings=10**9)
    with pytest.raises(Invalid, match="values, where the checkpoint has"):
        read_base(tmp_path)


@pytest.mark.parametrize("kind", ["llama", "mixtral"])
def test_an_adapter_beside_the_model_is_refused_by_name_even_as_a_broken_link(
    request: pytest.FixtureRequest, kind: str
) -> None:
    folder = request.getfixturevalue("base" if kind == "llama" else kind)
    tiny.adapter(folder, folder.parent / "adapter", seed=1, rank=2, alpha=2, targets=["q_proj"])
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(folder.parent / "adapter" / name, folder / name)
    with pytest.raises(Invalid, match=r"holds an adapter beside the model \(adapter_config\.json\)"):
        read_base(folder)
    # Where only the tensors are asked for, the adapter that lies beside them is not loaded.
    checkpoint = open_checkpoint(folder)
    loaded = meta_model.meta_model(folder, checkpoint)
    from loratree_composer.base.converted import load_model

    assert not any("lora" in name for name in load_model(checkpoint, loaded).state_dict())


def test_a_loaded_model_has_the_name_of_its_folder(mixtral: Path) -> None:
    from loratree_composer.base.converted import load_model

    checkpoint = open_checkpoint(mixtral)
    model: Any = load_model(checkpoint, meta_model.meta_model(mixtral, checkpoint), output_hidden_states=True)
    assert (model.name_or_path, model.config._name_or_path) == (str(mixtral), str(mixtral))
    assert model.config.output_hidden_states is True
    assert manifest_of_module(model) == manifest_of_module(chains.load(mixtral))


def special_files() -> dict[str, Callable[[Path], object]]:
    def listen(path: Path) -> None:
        here = Path.cwd()
        os.chdir(path.parent)  # a socket's address is short
        try:
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(path.name)
        finally:
            os.chdir(here)

    return {
        "a pipe": os.mkfifo,
        "a socket": listen,
        "a device": lambda path: path.symlink_to("/dev/zero"),
        "a folder": Path.mkdir,
    }


@pytest.mark.parametrize("kind", special_files())
@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "model.safetensors.index.json", "generation_config.json"]
)
def test_what_is_no_file_is_refused_and_never_waited_for(mixtral: Path, kind: str, name: str) -> None:
    if name.endswith("index.json"):
        (mixtral / "model.safetensors").unlink()
    (mixtral / name).unlink(missing_ok=True)
    special_files()[kind](mixtral / name)
    with pytest.raises(Invalid, match=r"is not a file|cannot be read|outside of its folder|holds neither"):
        read_base(mixtral)


def test_a_link_that_leads_out_of_the_folder_is_refused(base: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("{}")
    for name in ("special_tokens_map.json", "merges.txt", "README.md"):
        (base / name).symlink_to(secret)
        with pytest.raises(Invalid, match=r"is a link to .*secret, outside of its folder: put a copy"):
            read_base(base)
        (base / name).unlink()
    (base / "tokenizer.json").write_text("{}")
    (base / "same.json").symlink_to("tokenizer.json")
    read_base(base)
    (base / "loop.json").symlink_to("loop.json")
    with pytest.raises(Invalid, match="link to"):
        read_base(base)


def test_a_snapshot_of_the_hub_is_read_through_its_links(llama: Tree, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "1234"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(llama.base.iterdir())):
        shutil.copy(file, blobs / str(number))
        (snapshot / file.name).symlink_to(Path("../../blobs") / str(number))
    assert read_base(snapshot) == llama.manifest
    (tmp_path / "link").symlink_to(snapshot)  # the folder itself may be a link
    assert read_base(tmp_path / "link") == llama.manifest
    (snapshot / "extra.json").symlink_to("/etc/passwd")
    with pytest.raises(Invalid, match="outside of its folder"):
        read_base(snapshot)


def test_the_sizes_of_real_models_are_within_the_bound(tmp_path: Path) -> None:
    for name, make in (("llama", tiny.llama), ("gpt2", tiny.gpt2)):
        folder = make(tmp_path / name)
        meta_model.meta_model(folder, open_checkpoint(folder))
    config = transformers.AutoConfig.for_model("bert", hidden_size=32, num_attention_heads=4, intermediate_size=64)
    transformers.BertModel(config).save_pretrained(tmp_path / "bert")
    meta_model.meta_model(tmp_path / "bert", open_checkpoint(tmp_path / "bert"))
