"""`loratree compose` with adapters that do more than add to linear layers, and with input that cannot be composed."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests import tiny
from tests.cli.conftest import Filled, Shell
from tests.cli.test_bad_input import refused
from tests.composer.chains import logits, relative
from tests.peft_adapters import ACCEPTED, Row
from tests.peft_bases import quiet

ROWS = {row.name: row for row in ACCEPTED}
WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class Published:
    """A base and a level of some kind over it, published as kind/level."""

    row: Row
    base: Path
    adapter: Path
    shell: Shell

    def model(self, directory: Path) -> torch.nn.Module:
        """What transformers loads from `directory`."""
        return transformers.AutoModelForCausalLM.from_pretrained(directory).eval()

    def by_peft(self, directory: Path) -> torch.Tensor:
        """The logits of the base with the PEFT adapter in `directory`."""
        return logits(self.row.load(self.model(self.base), directory))


Publish = Callable[..., Published]


@pytest.fixture
def publish(tmp_path: Path) -> Publish:
    def made(name: str, **config: object) -> Published:
        row, shell = ROWS[name], Shell(tmp_path / "home")
        model = row.base()
        with quiet():
            model.save_pretrained(tmp_path / "base")  # type: ignore[operator]
        adapter = row.adapt(model, tmp_path / "adapter", **config)
        shell("base", "add", "kind", tmp_path / "base")
        shell("publish", adapter, "kind/level", "--parent", "base")
        return Published(row, tmp_path / "base", adapter, shell)

    return made


def test_a_tied_head_is_merged_and_the_next_level_is_trained_on_it(publish: Publish, tmp_path: Path) -> None:
    published = publish("tied-head")
    out = tmp_path / "merged"
    published.shell("compose", "kind/level", "--mode", "merge", "--out", out)
    merged = published.model(out)
    assert relative(logits(merged), published.by_peft(published.adapter)) < 1e-5
    assert merged.get_output_embeddings().weight is not merged.get_input_embeddings().weight  # type: ignore[operator]
    child = tiny.adapter(out, tmp_path / "child", targets=["q_proj"])
    published.shell("publish", child, "kind/level/below")
    pin = json.loads(published.shell("show", "kind/level/below@1", "--json").stdout)["pin"]
    assert (pin["path"], pin["version"], pin["found"]) == ("kind/level", 1, "lockfile")
    published.shell("compose", "kind/level/below", "--mode", "merge", "--out", tmp_path / "both")
    tuned = peft.PeftModel.from_pretrained(merged, child).eval()
    assert relative(logits(published.model(tmp_path / "both")), logits(tuned)) < 1e-5


@pytest.mark.parametrize("name", ["lm-head", "embedding"])
def test_a_head_that_two_levels_add_to_is_published_with_the_copy_of_the_composed_one(
    publish: Publish, tmp_path: Path, name: str
) -> None:
    published = publish(name)
    shell, out = published.shell, tmp_path / "merged"
    shell("compose", "kind/level", "--mode", "merge", "--out", out)
    merged = published.model(out)
    child = published.row.adapt(merged, tmp_path / "child", seed=2)
    key = next(key for key in load_file(child / WEIGHTS) if key.endswith(".base_layer.weight"))
    said = shell("publish", child, "kind/level/below").stderr
    assert f"repeats weights of what it was trained on, which nothing reads or compares ({key})" in said
    shell("resolve", "kind/level/below")
    shell("compose", "kind/level/below", "--mode", "merge", "--out", tmp_path / "both")
    expected = logits(published.row.load(merged, child))
    assert relative(logits(published.model(tmp_path / "both")), expected) < 1e-5
    assert relative(logits(merged), expected) > 1e-3
    for parent in ("base", "kind"):
        state = shell.state()
        said = refused(shell, "publish", moved(child, tmp_path / f"by-{parent}"), "kind/other", "--parent", parent)
        assert f"a copy of the base's weights with other values is not composed ({key})" in said
        assert shell.state() == state


def moved(adapter: Path, directory: Path) -> Path:
    """The adapter in a folder of its own, without the name of what it was trained on."""
    shutil.copytree(adapter, directory)
    config = json.loads((directory / "adapter_config.json").read_text()) | {"base_model_name_or_path": None}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return directory


def test_what_a_chain_replaces_is_merged_and_flattened_alike(publish: Publish, tmp_path: Path) -> None:
    published = publish("mixed")
    expected = published.by_peft(published.adapter)
    for mode in ("merge", "flatten"):
        published.shell("compose", "kind/level", "--mode", mode, "--out", tmp_path / mode)
    assert relative(logits(published.model(tmp_path / "merge")), expected) < 1e-5
    assert relative(published.by_peft(tmp_path / "flatten"), expected) < 1e-5


def test_experts_that_their_checkpoint_keeps_apart_are_merged_and_flattened(publish: Publish, tmp_path: Path) -> None:
    published = publish("experts-mixtral")
    expected = published.by_peft(published.adapter)
    for mode in ("merge", "flatten"):
        published.shell("compose", "kind/level", "--mode", mode, "--out", tmp_path / mode)
    assert relative(logits(published.model(tmp_path / "merge")), expected) < 1e-5
    assert relative(published.by_peft(tmp_path / "flatten"), expected) < 1e-5
    config = json.loads((published.adapter / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(published.base)
    (published.adapter / "adapter_config.json").write_text(json.dumps(config))
    done = published.shell("publish", published.adapter, "kind/other")  # the files are those that were added
    assert "pinned to the base kind, which the adapter's config names" in done.stderr


def test_dora_is_not_flattened(publish: Publish, tmp_path: Path) -> None:
    published = publish("dora")
    said = refused(published.shell, "compose", "kind/level", "--mode", "flatten", "--out", tmp_path / "flat")
    assert "DoRA rescales what is above it in" in said
    assert "compose it by merging" in said
    assert not (tmp_path / "flat").exists()


def test_a_rank_above_the_layers_size_is_composed_exactly(publish: Publish, tmp_path: Path) -> None:
    published = publish("linear", r=70)
    said = published.shell("publish", published.adapter, "kind/other", "--parent", "base").stderr
    assert said.count("has rank 70") == 1
    assert "a rank of 32 would do the same in less memory" in said
    published.shell("compose", "kind/level", "--mode", "flatten", "--out", tmp_path / "flat")
    assert relative(published.by_peft(tmp_path / "flat"), published.by_peft(published.adapter)) < 1e-5


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_a_sum_that_overflows_the_bases_dtype_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    shell, base = Shell(tmp_path / "home"), tiny.llama(tmp_path / "base", dtype=torch.float16)
    shell("base", "add", "half", base)
    large = tiny.adapter(base, tmp_path / "large", targets=["q_proj"], alpha=3e7)
    shell("publish", large, "half/large", "--parent", "base")
    before = files(base)
    said = refused(shell, "compose", "half/large", "--mode", "merge", "--out", tmp_path / "out")
    assert "q_proj.weight would hold values that are not finite in torch.float16" in said
    assert refused(shell, "compose", "half/large", "--mode", "flatten", "--out", tmp_path / "flat") == said
    assert files(base) == before
    assert {path.name for path in tmp_path.iterdir()} == {"home", "base", "large"}


@pytest.mark.parametrize("mode", ["merge", "flatten"])
def test_a_blob_that_is_gone_is_named_and_nothing_is_written(shell: Shell, tmp_path: Path, mode: str) -> None:
    digest = json.loads(shell("show", "tiny/medicine@1", "--json").stdout)["files"][0]["sha256"].removeprefix("sha256:")
    next(file for file in shell.home.rglob(digest) if "blobs" in file.parts).unlink()
    assert digest in refused(shell, "compose", "tiny/medicine", "--mode", mode, "--out", tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"home"}


def test_a_chain_over_another_bases_weights_is_refused(shell: Shell, tmp_path: Path) -> None:
    other = tiny.llama(tmp_path / "other", seed=3)
    compose = ("compose", "tiny/medicine", "--mode", "merge", "--out", tmp_path / "out", "--base", other)
    assert "is not the base that the tree grows on" in refused(shell, *compose)
    assert {path.name for path in tmp_path.iterdir()} == {"home", "other"}


def test_a_tensor_that_nobody_consumes_is_named(shell: Shell, filled: Filled, tmp_path: Path) -> None:
    adapter = tiny.adapter(filled.base, tmp_path / "adapter", targets=["q_proj"])
    tensors = load_file(adapter / WEIGHTS)
    tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_C.weight"] = torch.ones(3)
    save_file(tensors, adapter / WEIGHTS, metadata={"format": "pt"})
    assert "q_proj.lora_C.weight" in refused(shell, "publish", adapter, "tiny/law")
