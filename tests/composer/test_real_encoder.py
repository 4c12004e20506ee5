"""all-MiniLM-L6-v2 as it lies on the hub, two levels that PEFT trains for a few steps, in every form."""

from contextlib import closing
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor, nn

from loratree_composer.base.manifest import read_base
from loratree_registry.workspace.base_locations import remember_base
from loratree_registry.workspace.publish import publish_directory
from tests.composer import chains
from tests.composer.conftest import Tree, open_catalog
from tests.composer.every_form import every_form
from tests.minilm import minilm
from tests.peft_bases import quiet

SENTENCES = ["The heart pumps blood.", "A chain of adapters grows from one base.", "Rain falls in spring."]


def load(directory: Path) -> nn.Module:
    model: nn.Module = transformers.BertModel.from_pretrained(directory)
    return model.eval()


@torch.no_grad()
def states(model: nn.Module, tokens: Any) -> Tensor:
    found = model(**tokens).last_hidden_state
    assert isinstance(found, Tensor)
    return found * tokens["attention_mask"][..., None]


def train(parent: Path, directory: Path, tokens: Any) -> Tensor:
    """Pulls the first two sentences together for a few steps, and returns the states that PEFT's model gives."""
    torch.manual_seed(0)
    config = peft.LoraConfig(r=8, lora_alpha=16, task_type="FEATURE_EXTRACTION", target_modules=["query", "value"])
    with quiet():
        tuned: Any = peft.get_peft_model(load(parent), config)  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=5e-3)
    for _ in range(5):
        optimizer.zero_grad()
        pooled = tuned(**tokens).pooler_output
        (1 - torch.cosine_similarity(pooled[0], pooled[1], dim=0)).backward()
        optimizer.step()
    tuned.save_pretrained(directory)
    return states(tuned.eval(), tokens)


@pytest.mark.timeout(600)
def test_every_form_of_a_real_encoder_is_pefts(tmp_path: Path) -> None:
    base = minilm(tmp_path)
    tokens = transformers.AutoTokenizer.from_pretrained(base)(SENTENCES, return_tensors="pt", padding=True)
    manifest, home = read_base(base), tmp_path / "home"
    assert manifest.leftovers == ("embeddings.position_ids",)
    catalog = open_catalog(home, Tree(base, manifest, []))
    with closing(catalog.registry):
        catalog.registry.add_base("minilm", manifest)
        remember_base(home, manifest.digest, base)
        parent, path, expected = base, "minilm", states(load(base), tokens)
        for number in (1, 2):
            path, directory, before = f"{path}/level{number}", tmp_path / f"adapter{number}", expected
            expected = train(parent, directory, tokens)
            assert chains.relative(before, expected) > 0.01
            publish_directory(catalog.registry, directory, path, parent="base" if number == 1 else None, home=home)
            forms = every_form(
                catalog.registry,
                path,
                base=base,
                split="minilm/level1",
                folder=tmp_path / f"forms{number}",
                home=home,
                load=load,
                run=lambda model: states(model, tokens),
            )
            parent = tmp_path / f"forms{number}" / "merged"
            off = {name: chains.relative(found, expected) for name, found in forms.items()}
            assert max(off.values()) < 1e-5, off
