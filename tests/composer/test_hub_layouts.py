"""A base is what transformers loads from a checkpoint, under whatever names the checkpoint stores it."""

import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import nn

from loratree_composer import Composer, compose
from loratree_composer.base.manifest import manifest_of_module, read_base
from loratree_registry.errors import Invalid
from loratree_registry.tensor_files.comparison import holds_base
from loratree_registry.workspace.base_locations import remember_base
from loratree_registry.workspace.base_transfer import pull_base, push_base
from tests.composer import chains
from tests.composer.conftest import Catalog, Tree, open_catalog
from tests.composer.every_form import every_form
from tests.hub_layouts import LAYOUTS, configure, rewrite, run
from tests.peft_bases import quiet


def load(directory: Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The model that the config names, as transformers loads it."""
    [architecture] = transformers.AutoConfig.from_pretrained(directory).architectures
    with quiet():
        model: nn.Module = getattr(transformers, architecture).from_pretrained(directory, dtype=dtype)
    return model.eval()


@torch.no_grad()
def output(model: nn.Module) -> torch.Tensor:
    return run(model)


def adapter(base: Path, directory: Path, seed: int) -> Path:
    """An adapter of random factors on all linear layers."""
    torch.manual_seed(seed)
    with quiet():
        tuned: Any = peft.get_peft_model(load(base), peft.LoraConfig(r=3, lora_alpha=6, target_modules="all-linear"))  # type: ignore[arg-type]
        for name, parameter in tuned.named_parameters():
            if "lora_" in name:
                parameter.data = torch.randn_like(parameter) * 0.1
        tuned.save_pretrained(directory, save_embedding_layers=False)  # PEFT looks for embeddings that wav2vec2 lacks
    return directory


def by_peft(base: Path, adapters: list[Path]) -> nn.Module:
    """PEFT's merge of the chain in float64."""
    model: Any = load(base, torch.float64)
    names = [f"level{number}" for number in range(len(adapters))]
    with quiet():
        model = peft.PeftModel.from_pretrained(model, adapters[0], names[0], autocast_adapter_dtype=False)
        for name, directory in zip(names[1:], adapters[1:], strict=True):
            model.load_adapter(directory, name)
        merged: nn.Module = model.to(torch.float64).merge_and_unload(adapter_names=names)
    return merged.eval()


@pytest.fixture(scope="module", params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def hub(layout: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint as it lies on the hub."""
    return LAYOUTS[layout].save(tmp_path_factory.mktemp("hub") / "model")


@pytest.fixture
def catalog(hub: Path, tmp_path: Path) -> Iterator[Catalog]:
    """A registry with the base and two levels."""
    chain = [adapter(hub, tmp_path / f"adapter{seed}", seed) for seed in (1, 2)]
    found = open_catalog(tmp_path / "home", Tree(hub, read_base(hub), chain))
    with closing(found.registry):
        found.registry.add_base("tiny", found.tree.manifest)
        remember_base(found.home, found.tree.manifest.digest, hub)
        for depth, directory in enumerate(chain):
            found.publish(directory, found.path(depth + 1), parent=found.path(depth) if depth else "base")
        yield found


def test_the_base_is_the_model_that_transformers_loads(layout: str, hub: Path, tmp_path: Path) -> None:
    manifest, model = read_base(hub), load(hub)
    assert manifest.leftovers == tuple(sorted(LAYOUTS[layout].leftovers))
    assert manifest.parameters == manifest_of_module(model).parameters
    with quiet():
        model.save_pretrained(tmp_path)  # type: ignore[operator]
    assert read_base(tmp_path).digest == manifest.digest


def test_every_form_of_a_chain_is_pefts_function(catalog: Catalog, hub: Path, tmp_path: Path) -> None:
    expected, leaf = output(by_peft(hub, catalog.tree.chain)), catalog.path(2)
    forms = every_form(
        catalog.registry,
        leaf,
        base=hub,
        split=catalog.path(1),
        folder=tmp_path / "forms",
        home=catalog.home,
        load=load,
        run=output,
    )
    assert chains.relative(output(load(hub)), expected) > 0.01
    assert {name: chains.relative(found, expected) < 1e-5 for name, found in forms.items()} == dict.fromkeys(
        forms, True
    )
    assert holds_base(hub, catalog.tree.manifest)


def test_pristine_weights_are_read_from_the_hubs_files(catalog: Catalog, hub: Path) -> None:
    model = load(hub)
    state, composer = chains.state_digest(model), Composer(model, catalog.registry, home=catalog.home, pristine="files")
    composer.merge(catalog.path(2))
    composer.restore()
    assert chains.state_digest(model) == state


def test_the_weights_are_pushed_and_pulled_as_they_lie(catalog: Catalog, hub: Path, tmp_path: Path) -> None:
    push_base(catalog.registry, "tiny", hub)
    pull_base(catalog.registry, tmp_path / "other-home", "tiny", tmp_path / "pulled")
    assert read_base(tmp_path / "pulled") == catalog.tree.manifest
    compose(catalog.registry, catalog.path(2), "merge", tmp_path / "merged", home=tmp_path / "other-home")
    found = output(load(tmp_path / "merged"))
    assert chains.relative(found, output(by_peft(hub, catalog.tree.chain))) < 1e-5


def test_a_base_that_was_added_from_another_layout_is_composed_from_this_one(
    hub: Path, tmp_path: Path, layout: str
) -> None:
    """The same digest, under other names: the second folder's names are added to what the registry knows."""
    with quiet():
        load(hub).save_pretrained(tmp_path / "saved")  # type: ignore[operator]
    saved = read_base(tmp_path / "saved")
    catalog = open_catalog(tmp_path / "home", Tree(hub, saved, []))
    with closing(catalog.registry):
        catalog.registry.add_base("tiny", saved)
        catalog.publish(adapter(hub, tmp_path / "adapter", 1), "tiny/domain", parent="base")
        remember_base(catalog.home, saved.digest, hub)
        compose(catalog.registry, "tiny/domain", "merge", tmp_path / "merged", home=catalog.home)
        assert chains.relative(output(load(tmp_path / "merged")), output(by_peft(hub, [tmp_path / "adapter"]))) < 1e-5
        hubs = read_base(hub)
        assert catalog.registry.add_base("tiny", hubs).digest == saved.digest
        known = catalog.registry.base_manifest("tiny")
        assert known.widened_by(hubs) == known
        assert holds_base(hub, catalog.registry.base_manifest("tiny"))
        assert holds_base(tmp_path / "saved", catalog.registry.base_manifest("tiny"))


def test_a_tensor_that_the_checkpoint_lacks_is_named(layout: str, tmp_path: Path) -> None:
    folder = LAYOUTS[layout].save(tmp_path / "hub")
    lost = next(p for p in read_base(folder).parameters if p.tied_to is None and re.search("norm|ln_", p.name.lower()))
    stored = {name: stored for stored, name in (read_base(folder).stored_names or {}).items()}
    rewrite(folder, lambda tensors: tensors.pop(stored.get(lost.name, lost.name)))
    with pytest.raises(Invalid, match=rf"is not a usable base: .*{lost.name} is missing"):
        read_base(folder)


def test_a_head_that_is_stored_beside_the_embedding_that_the_config_ties_it_to_is_untied(tmp_path: Path) -> None:
    """As merges leave them; transformers ties only what is equal."""
    folder = LAYOUTS["Llama without its prefix"].save(tmp_path / "hub")
    tied = read_base(folder)
    rewrite(folder, lambda tensors: tensors.update({"lm_head.weight": tensors["embed_tokens.weight"] * 1.5}))
    untied, model = read_base(folder), load(folder)
    assert (tied.ties(), untied.ties()) == ({"model.embed_tokens.weight": "lm_head.weight"}, {}) or tied.ties() == {
        "lm_head.weight": "model.embed_tokens.weight"
    }
    assert untied.parameters == manifest_of_module(model).parameters
    catalog = open_catalog(tmp_path / "home", Tree(folder, untied, []))
    with closing(catalog.registry):
        catalog.registry.add_base("tiny", untied)
        remember_base(catalog.home, untied.digest, folder)
        catalog.publish(adapter(folder, tmp_path / "adapter", 1), "tiny/domain", parent="base")
        compose(catalog.registry, "tiny/domain", "merge", tmp_path / "merged", home=catalog.home)
        expected = output(by_peft(folder, [tmp_path / "adapter"]))
        assert chains.relative(output(load(tmp_path / "merged")), expected) < 1e-5
        composer = Composer(model, catalog.registry, home=catalog.home)
        composer.use("tiny/domain")
        assert chains.relative(output(model), expected) < 1e-5


def test_an_adapter_beside_the_checkpoint_is_refused(tmp_path: Path) -> None:
    folder = LAYOUTS["gpt2"].save(tmp_path / "hub")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(Invalid, match="holds an adapter beside the model"):
        read_base(folder)


def test_a_tensor_under_two_names_is_refused(tmp_path: Path) -> None:
    folder = LAYOUTS["gpt2"].save(tmp_path / "hub")
    rewrite(folder, lambda tensors: tensors.update({"transformer.wpe.weight": tensors["wpe.weight"].clone()}))
    with pytest.raises(Invalid, match=r"transformer\.wpe\.weight is stored twice, as transformer\.wpe\.weight; wpe\."):
        read_base(folder)


def test_a_head_that_no_checkpoint_has_is_missing(tmp_path: Path) -> None:
    folder = configure(LAYOUTS["all-MiniLM-L6-v2, BGE"].save(tmp_path / "hub"), architectures=["BertForMaskedLM"])
    with pytest.raises(Invalid, match=r"cls\.predictions\.\S+ is missing"):
        read_base(folder)
