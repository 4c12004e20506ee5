"""Models that their owner ties, wraps, hooks, copies or moves while a composition is on them."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn

from loratree_composer import Composer
from loratree_composer.base.manifest import read_base
from loratree_registry.core.chain import Limit
from loratree_registry.errors import Invalid
from tests import tiny
from tests.composer import chains
from tests.composer.conftest import Catalog, Tree, open_catalog
from tests.peft_bases import quiet


def composer(catalog: Catalog, model: nn.Module, **options: Any) -> Composer:
    return Composer(model, catalog.registry, home=catalog.home, **options)


@pytest.fixture
def tied(tmp_path: Path) -> Iterator[Catalog]:
    """A registry with a tied base and adapters of its embedding, its head, and both."""
    base = tiny.llama(tmp_path / "base", tie_word_embeddings=True)
    catalog = open_catalog(tmp_path / "home", Tree(base, read_base(base), []))
    catalog.registry.add_base("tiny", catalog.tree.manifest)
    for name, options in TIED.items():
        with quiet():
            adapter = tiny.adapter(base, tmp_path / name, **options)
        catalog.publish(adapter, f"tiny/{name}", parent="base")
    yield catalog
    catalog.registry.close()


TIED: dict[str, dict[str, Any]] = {
    "head": {"targets": ["lm_head"]},
    "embedding": {"targets": ["embed_tokens"]},
    "both": {"targets": ["lm_head", "embed_tokens"]},
}


@pytest.mark.parametrize("put_on", ["merge", "use"])
@pytest.mark.parametrize("name", TIED)
def test_tying_the_weights_again_loses_nothing(name: str, put_on: str, tied: Catalog) -> None:
    model: Any = chains.load(tied.tree.base)
    state, bare, composed = chains.state_digest(model), chains.logits(model), composer(tied, model)
    getattr(composed, put_on)(f"tiny/{name}")
    expected = chains.logits(model)
    assert chains.relative(bare, expected) > 0.01
    model.tie_weights()
    for again in (composed.merge, composed.use, composed.merge):
        again(f"tiny/{name}")
        assert chains.relative(chains.logits(model), expected) < 1e-5
        model.tie_weights()
    composed.restore()
    assert torch.equal(chains.logits(model), bare)
    assert chains.state_digest(model) == state
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_wrapper_that_is_taken_off_again_leaves_the_base_whole(catalog: Catalog) -> None:
    model: Any = chains.load(catalog.tree.base)
    bare, composed = chains.logits(model), composer(catalog, model)
    composed.merge(catalog.leaf)
    expected = chains.logits(model)
    with quiet():
        tuned: Any = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(Invalid, match=r"not all of the base is back \(.*q_proj\.weight is gone"):
        composed.restore()
    tuned.unload()
    composed.restore()
    assert torch.equal(chains.logits(model), bare)
    composed.merge(catalog.leaf)
    assert torch.equal(chains.logits(model), expected)


def test_a_model_that_is_offloaded_after_a_merge_is_not_said_to_be_back(catalog: Catalog) -> None:
    from accelerate import cpu_offload
    from accelerate.hooks import remove_hook_from_submodules

    model = chains.load(catalog.tree.base)
    bare, composed = chains.logits(model), composer(catalog, model)
    composed.merge(catalog.leaf)
    cpu_offload(model, execution_device=torch.device("cpu"))
    with pytest.raises(Invalid, match="is offloaded or sharded now"):
        composed.restore()
    remove_hook_from_submodules(model)
    composed.restore()
    assert torch.equal(chains.logits(model), bare)


@pytest.mark.parametrize("take_off", [Composer.restore, lambda composed: Composer.reset(composed.model)])
def test_hooks_that_are_put_around_a_stack_stay_and_the_base_is_back(
    catalog: Catalog, take_off: Callable[[Composer], None]
) -> None:
    from accelerate.hooks import attach_align_device_hook, remove_hook_from_submodules

    model = chains.load(catalog.tree.base)
    bare, composed = chains.logits(model), composer(catalog, model)
    composed.use(catalog.leaf)
    stacked = chains.logits(model)
    attach_align_device_hook(model, execution_device="cpu")
    take_off(composed)
    assert torch.equal(chains.logits(model), bare)
    composed.use(catalog.leaf)
    assert torch.equal(chains.logits(model), stacked)
    composed.restore()
    remove_hook_from_submodules(model)
    assert torch.equal(chains.logits(model), bare)


def test_a_copy_of_a_stacked_model_is_reset_to_the_base(catalog: Catalog) -> None:
    model = chains.load(catalog.tree.base)
    bare, composed = chains.logits(model), composer(catalog, model)
    composed.use(catalog.leaf)
    stacked, copied = chains.logits(model), copy.deepcopy(model)
    Composer.reset(copied)
    assert torch.equal(chains.logits(copied), bare)
    assert torch.equal(chains.logits(model), stacked)
    composer(catalog, copied).use(catalog.leaf)
    assert torch.equal(chains.logits(copied), stacked)


def test_blocks_are_nested_and_give_the_outer_composition_back(catalog: Catalog) -> None:
    model = chains.load(catalog.tree.base)
    bare, composed = chains.logits(model), composer(catalog, model)
    with composed.active(catalog.leaf) as outer:
        expected = chains.logits(model)
        with composed.active(catalog.path(1)):
            composed.merge(catalog.path(2))
        assert composed.current == outer
        assert torch.equal(chains.logits(model), expected)
    assert composed.current is None
    assert torch.equal(chains.logits(model), bare)
    composed.merge(catalog.path(1))
    merged = chains.logits(model)
    with composed.active(catalog.leaf):
        pass
    assert torch.equal(chains.logits(model), merged)


def test_a_ref_is_loaded_with_the_options_of_a_composer(catalog: Catalog) -> None:
    composed = Composer.from_pretrained(
        catalog.leaf,
        catalog.registry,
        merged=catalog.path(2),
        pristine="files",
        budget=0,
        prefixes=False,
        home=catalog.home,
    )
    assert composed.memory().budget == 0
    assert composed.memory().pristine == 0
    expected = chains.logits(chains.merged_by_peft(catalog.tree.base, catalog.tree.chain))
    assert chains.relative(chains.logits(composed.model), expected) < 1e-5


def test_layers_that_torch_quantises_take_a_stack(catalog: Catalog) -> None:
    with quiet():
        model = torch.ao.quantization.quantize_dynamic(chains.load(catalog.tree.base), {nn.Linear}, dtype=torch.qint8)
    bare = chains.logits(model)
    with pytest.warns(UserWarning, match=r"15 layers are quantised \(.* is a torch\.ao Linear\)"):
        composed = composer(catalog, model)
    composed.use(catalog.leaf)
    reference = chains.logits(chains.merged_by_peft(catalog.tree.base, catalog.tree.chain))
    assert chains.relative(chains.logits(model), reference) < 0.2  # eight bits a weight and an activation
    assert chains.relative(bare, reference) > 0.5
    composed.restore()
    assert torch.equal(chains.logits(model), bare)


def test_what_is_no_model_and_what_is_no_ref_are_refused(catalog: Catalog) -> None:
    with pytest.raises(Invalid, match=r"a Composer takes a torch\.nn\.Module, got a str: load the model first"):
        composer(catalog, "tiny")  # type: ignore[arg-type]
    with pytest.raises(Invalid, match="a ref is text such as tiny/medicine@2, got None"):
        composer(catalog, chains.load(catalog.tree.base)).use(None)  # type: ignore[arg-type]
    for rank in (1.5, "4", True):
        with pytest.raises(Invalid, match="a rank to compress to is a whole number from 1"):
            Limit(rank=rank)  # type: ignore[arg-type]
    with pytest.raises(Invalid, match="an energy to keep is a number above 0"):
        Limit(energy="most")  # type: ignore[arg-type]
