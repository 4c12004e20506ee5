"""Adapters that were trained before transformers renamed the modules: read as PEFT reads them, or refused by name."""

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from loratree_composer import Composer, compose
from loratree_composer.base.manifest import read_base
from loratree_registry.errors import Invalid
from tests import tiny
from tests.composer import chains
from tests.composer.conftest import Tree, open_catalog
from tests.peft_bases import quiet

WEIGHTS = "adapter_model.safetensors"
# For the page on adapters: what was trained before the renaming, and what becomes of it.
OLDER_NAMES = (
    (
        "Gemma 3 and LLaVA of transformers 4: `language_model.model.…`",
        "composed under the present names, as PEFT loads it",
    ),
    (
        "Qwen2-VL and ViT of transformers 4",
        "refused with the present names: PEFT does not rename them, and loads nothing",
    ),
    ("a saved module under its older name", "refused with the present name: PEFT cannot load it"),
)
TEXT: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
VISION: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 1, "num_attention_heads": 4}
IMAGE: dict[str, Any] = {"image_size": 28, "patch_size": 14}


def gemma3() -> nn.Module:
    config = transformers.Gemma3Config(text_config=TEXT, vision_config=VISION | IMAGE, image_token_index=95)  # type: ignore[arg-type]
    return transformers.Gemma3ForConditionalGeneration(config)


def llava() -> nn.Module:
    text, vision = {"model_type": "llama", **TEXT}, {"model_type": "clip_vision_model", **VISION, **IMAGE}
    config = transformers.LlavaConfig(text_config=text, vision_config=vision, image_token_index=95)  # type: ignore[arg-type]
    return transformers.LlavaForConditionalGeneration(config)


def qwen2_vl() -> nn.Module:
    rope = {"type": "mrope", "mrope_section": [1, 1, 2], "rope_type": "default"}
    config = transformers.Qwen2VLConfig(
        text_config=TEXT | {"rope_scaling": rope},  # type: ignore[arg-type]
        vision_config={"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 4},  # type: ignore[arg-type]
    )
    return transformers.Qwen2VLForConditionalGeneration(config)


def vit() -> nn.Module:
    return transformers.ViTForImageClassification(transformers.ViTConfig(**VISION, **IMAGE))


def run(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        if model.config.model_type == "vit":
            found = model(torch.randn((2, 3, 28, 28), generator=torch.Generator().manual_seed(5)))
        else:
            found = model(input_ids=tiny.tokens(vocabulary=90))
    value = found.logits
    assert isinstance(value, torch.Tensor)
    return value


def load(directory: Path) -> nn.Module:
    [architecture] = transformers.AutoConfig.from_pretrained(directory).architectures
    with quiet():
        model: nn.Module = getattr(transformers, architecture).from_pretrained(directory)
    return model.eval()


def train(base: Path, directory: Path, targets: list[str], rename: Callable[[str], str], **options: Any) -> Path:
    """A PEFT adapter of random values, written with the older names."""
    torch.manual_seed(3)
    with quiet():
        tuned: Any = peft.get_peft_model(
            load(base), peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets, **options)
        )  # type: ignore[arg-type]
        for name, parameter in tuned.named_parameters():
            if "lora_" in name:
                parameter.data = torch.randn_like(parameter) * 0.1
        tuned.save_pretrained(directory, save_embedding_layers=False)
    tensors = {rename(key): value for key, value in load_file(directory / WEIGHTS).items()}
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    return directory


def older_language_model(key: str) -> str:
    return key.replace("model.model.language_model.", "model.language_model.model.").replace(
        "model.model.vision_tower.", "model.vision_tower.vision_model."
    )


@pytest.mark.parametrize("build", [gemma3, llava])
def test_peft_and_we_read_the_older_names(build: Callable[[], nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    build().save_pretrained(tmp_path / "base")  # type: ignore[operator]
    base = tmp_path / "base"
    manifest = read_base(base)
    directory = train(base, tmp_path / "adapter", ["q_proj", "v_proj", "down_proj"], older_language_model)
    assert any(".language_model.model.layers" in key for key in load_file(directory / WEIGHTS))
    with quiet():
        tuned = peft.PeftModel.from_pretrained(load(base), directory)  # type: ignore[arg-type]
    expected = run(tuned.eval())
    assert chains.relative(run(load(base)), expected) > 0.01
    catalog = open_catalog(tmp_path / "home", Tree(base, manifest, []))
    with closing(catalog.registry):
        catalog.registry.add_base("tiny", manifest)
        catalog.publish(directory, "tiny/domain", parent="base")
        model = load(base)
        composer = Composer(model, catalog.registry, home=catalog.home)
        composer.use("tiny/domain")
        assert chains.relative(run(model), expected) < 1e-5
        composer.merge("tiny/domain")
        assert chains.relative(run(model), expected) < 1e-5
        compose(catalog.registry, "tiny/domain", "flatten", tmp_path / "flat", home=catalog.home)
        with quiet():
            flat = peft.PeftModel.from_pretrained(load(base), tmp_path / "flat")  # type: ignore[arg-type]
        assert chains.relative(run(flat.eval()), expected) < 1e-5


def between(key: str) -> str:
    """The names of transformers 4.52 to 4.57: the language model was renamed, and the vision tower was not yet."""
    return key.replace("model.vision_tower.", "model.vision_tower.vision_model.")


@pytest.mark.parametrize("build", [gemma3, llava])
def test_the_names_between_two_renamings_are_read_as_peft_reads_them(
    build: Callable[[], nn.Module], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    build().save_pretrained(tmp_path / "base")  # type: ignore[operator]
    adapter = train(tmp_path / "base", tmp_path / "adapter", ["q_proj"], between)
    assert any(".vision_tower.vision_model." in key for key in load_file(adapter / WEIGHTS))
    with quiet():
        tuned: Any = peft.PeftModel.from_pretrained(load(tmp_path / "base"), adapter)  # type: ignore[arg-type]
    loaded: dict[str, torch.Tensor] = peft.get_peft_model_state_dict(tuned)
    read = chains.read(adapter, read_base(tmp_path / "base"))
    for name, (part,) in read.parts.items():
        key = f"base_model.model.{name.removesuffix('.weight')}.lora_A.weight"
        assert torch.equal(part.a, loaded[key])  # type: ignore[union-attr]
    assert 2 * len(read.parts) == len(loaded)


LEFT_OUT = {
    "the projector": (["linear_1"], "model.multi_modal_projector.", "multi_modal_projector."),
    "the head": (["lm_head"], "model.lm_head.", "model.language_model.lm_head."),
}


@pytest.mark.parametrize("case", LEFT_OUT)
def test_an_older_name_that_peft_leaves_out_is_refused(case: str, tmp_path: Path) -> None:
    """PEFT undoes a renaming that only takes a prefix off, and says no more than that keys are missing."""
    targets, new, old = LEFT_OUT[case]
    torch.manual_seed(0)
    llava().save_pretrained(tmp_path / "base")  # type: ignore[operator]
    adapter = train(tmp_path / "base", tmp_path / "adapter", targets, lambda key: key.replace(new, old))
    with quiet():
        tuned: Any = peft.PeftModel.from_pretrained(load(tmp_path / "base"), adapter)  # type: ignore[arg-type]
    loaded = peft.get_peft_model_state_dict(tuned, save_embedding_layers=False)
    assert all(not value.any() for key, value in loaded.items() if "lora_B" in key)
    with pytest.raises(Invalid, match="an adapter of a module that transformers has renamed"):
        chains.read(adapter, read_base(tmp_path / "base"))


def older_qwen(key: str) -> str:
    return key.replace("model.model.language_model.", "model.model.").replace("model.model.visual.", "model.visual.")


def older_vit(key: str) -> str:
    key = key.replace("vit.layers.", "vit.encoder.layer.").replace("attention.q_proj", "attention.attention.query")
    return key.replace("attention.v_proj", "attention.attention.value")


@pytest.mark.parametrize(
    ("build", "targets", "rename", "old", "new"),
    [
        (
            qwen2_vl,
            ["q_proj", "v_proj"],
            older_qwen,
            "model.layers.0.self_attn.q_proj",
            "model.language_model.layers.0",
        ),
        (
            vit,
            ["q_proj", "v_proj"],
            older_vit,
            "vit.encoder.layer.0.attention.attention.query",
            "vit.layers.0.attention",
        ),
    ],
)
def test_where_peft_fails_the_rename_is_named(
    build: Callable[[], nn.Module],
    targets: list[str],
    rename: Callable[[str], str],
    old: str,
    new: str,
    tmp_path: Path,
) -> None:
    build().save_pretrained(tmp_path / "base")  # type: ignore[operator]
    directory = train(tmp_path / "base", tmp_path / "adapter", targets, rename)
    with quiet():
        tuned = peft.PeftModel.from_pretrained(load(tmp_path / "base"), directory)  # type: ignore[arg-type]
    assert chains.relative(run(tuned.eval()), run(load(tmp_path / "base"))) == 0  # PEFT warns and loads nothing
    with pytest.raises(Invalid) as refused:
        chains.check(directory, read_base(tmp_path / "base"), untied=False, on_base=True)
    assert f"{old}, now {new}" in str(refused.value)
    assert "rename its keys, and target_modules, to the present names" in str(refused.value)
    tensors = load_file(directory / WEIGHTS)
    back = {new_key: tensors[rename(new_key)] for new_key in _present_keys(tmp_path / "base", targets)}
    save_file(back, directory / WEIGHTS, metadata={"format": "pt"})  # the remedy
    chains.check(directory, read_base(tmp_path / "base"), untied=False, on_base=True)


def _present_keys(base: Path, targets: list[str]) -> list[str]:
    with quiet():
        tuned = peft.get_peft_model(load(base), peft.LoraConfig(r=4, target_modules=targets))  # type: ignore[arg-type]
    return list(peft.get_peft_model_state_dict(tuned))


def test_a_saved_module_under_its_older_name_is_refused_as_peft_does_not_rename_it(tmp_path: Path) -> None:
    llava().save_pretrained(tmp_path / "base")  # type: ignore[operator]
    options = {"modules_to_save": ["linear_1"]}
    directory = train(
        tmp_path / "base",
        tmp_path / "adapter",
        ["q_proj"],
        lambda key: key.replace("model.model.multi_modal_projector", "model.multi_modal_projector"),
        **options,
    )
    config = json.loads((directory / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["linear_1"]
    with quiet(), pytest.raises(KeyError):
        peft.PeftModel.from_pretrained(load(tmp_path / "base"), directory)  # type: ignore[arg-type]
    with pytest.raises(Invalid, match=r"multi_modal_projector\.linear_1\.\w+, now of model\.multi_modal_projector"):
        chains.check(directory, read_base(tmp_path / "base"), untied=False, on_base=True)
