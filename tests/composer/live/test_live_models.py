"""Models as people hold them: hooked, offloaded, sharded, quantised, and with a Composer that was lost."""

import copy
import gc
import warnings
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from loratree_composer import Composer
from loratree_composer.live.stacked_layers import StackedLayer
from loratree_registry.errors import Conflict, Invalid, NotFound
from tests.composer import chains
from tests.composer.conftest import Catalog


def composer(catalog: Catalog, model: nn.Module, **options: Any) -> Composer:
    return Composer(model, catalog.registry, home=catalog.home, **options)


def reference(catalog: Catalog) -> torch.Tensor:
    return chains.logits(chains.merged_by_peft(catalog.tree.base, catalog.tree.chain))


# accelerate


def hooked(model: nn.Module) -> nn.Module:
    """The model as accelerate's device_map leaves it: each layer's forward inside a hook."""
    from accelerate.hooks import attach_align_device_hook

    attach_align_device_hook(model, execution_device="cpu")
    return model


def test_a_layer_that_accelerate_has_hooked_runs_its_deltas_inside_the_hook(catalog: Catalog) -> None:
    plain, model = chains.load(catalog.tree.base), hooked(chains.load(catalog.tree.base))
    forwards = {name: layer.forward for name, layer in model.named_modules()}
    state = chains.state_digest(model)
    composed, other = composer(catalog, model), composer(catalog, plain)
    composed.use(catalog.leaf)
    other.use(catalog.leaf)
    assert composed.memory().stacked == other.memory().stacked  # factors alone, no copy of a weight
    assert torch.equal(chains.logits(model), chains.logits(plain))
    assert chains.relative(chains.logits(model), reference(catalog)) < 1e-5
    assert composed.unreached == []
    composed.restore()
    assert {name: layer.forward for name, layer in model.named_modules()} == forwards
    assert chains.state_digest(model) == state


def test_hooks_that_are_removed_under_a_stack_leave_the_base(catalog: Catalog) -> None:
    from accelerate.hooks import remove_hook_from_submodules

    model = hooked(chains.load(catalog.tree.base))
    composed = composer(catalog, model)
    bare = chains.logits(model)
    composed.use(catalog.leaf)
    stacked = chains.logits(model)
    remove_hook_from_submodules(model)
    assert torch.equal(chains.logits(model), stacked)
    composed.restore()
    assert torch.equal(chains.logits(model), bare)
    assert not any(isinstance(vars(layer).get("forward"), StackedLayer) for layer in model.modules())


def test_an_offloaded_model_is_refused(catalog: Catalog) -> None:
    from accelerate import cpu_offload

    model = chains.load(catalog.tree.base)
    cpu_offload(model, execution_device=torch.device("cpu"))
    with pytest.raises(Invalid, match=r"the model is offloaded by accelerate \(.* is on the meta device"):
        composer(catalog, model)


# Weights that are not the base's own tensors


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_a_model_that_fsdp2_has_sharded_is_refused(catalog: Catalog) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = chains.load(catalog.tree.base)
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    with pytest.raises(
        Invalid, match=r"the model is sharded \(it is a FSDPLlamaForCausalLM\), and each process holds a part"
    ):
        composer(catalog, model)


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("keeps_names", [True, False])
def test_a_model_that_fsdp_has_sharded_is_refused(catalog: Catalog, keeps_names: bool) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy

    model: Any = chains.load(catalog.tree.base)
    for number, layer in enumerate(model.model.layers):
        model.model.layers[number] = FullyShardedDataParallel(
            layer,
            sharding_strategy=ShardingStrategy.NO_SHARD,  # of one process
            use_orig_params=keeps_names,
            device_id=torch.device("cpu"),
        )
    with pytest.raises(Invalid, match=r"the model is sharded \(model\.layers\.0 is a FullyShardedDataParallel\)"):
        composer(catalog, model)


# A Composer that was lost


def test_what_a_lost_composer_left_stays_until_the_next_composer_takes_it_off(catalog: Catalog) -> None:
    model = chains.load(catalog.tree.base)
    state, bare = chains.state_digest(model), chains.logits(model)
    for put_on in ("use", "merge", "merge", "use"):
        getattr(composer(catalog, model), put_on)(catalog.leaf)
        gc.collect()
        assert chains.relative(chains.logits(model), reference(catalog)) < 1e-5
        composed = composer(catalog, model)
        assert torch.equal(chains.logits(model), bare)
        assert chains.state_digest(model) == state
        composed.use(catalog.path(1))
        del composed
    Composer.reset(model)
    assert chains.state_digest(model) == state


def test_a_model_with_a_lost_composition_is_not_kept_in_memory_and_its_copy_has_none(catalog: Catalog) -> None:
    model = chains.load(catalog.tree.base)
    composer(catalog, model).merge(catalog.leaf)
    copied = copy.deepcopy(model)
    assert chains.state_digest(copied) == chains.state_digest(model)
    with pytest.raises(Invalid, match="the model is not the base tiny: "):
        composer(catalog, copied)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_a_model_whose_composer_is_out_of_reach_is_reset(catalog: Catalog) -> None:
    model = chains.load(catalog.tree.base)
    state = chains.state_digest(model)
    for put_on in ("use", "merge"):
        kept = composer(catalog, model)  # as a notebook keeps it in a traceback
        getattr(kept, put_on)(catalog.leaf)
        with pytest.raises(
            Conflict,
            match=r"call that Composer's restore\(\) first, or Composer\.reset\(model\) if you cannot reach it",
        ):
            composer(catalog, model)
        Composer.reset(model)
        assert kept.current is None
        assert chains.state_digest(model) == state
        assert chains.relative(chains.logits(model), chains.logits(chains.load(catalog.tree.base))) == 0
        composer(catalog, model).use(catalog.leaf)
        Composer.reset(model)
    Composer.reset(nn.Linear(2, 2))  # nothing to take off


# What is held, and what was checked


def test_memory_says_what_is_held_and_stays_within_the_budget(catalog: Catalog) -> None:
    model = chains.load(catalog.tree.base)
    composed = composer(catalog, model)
    assert composed.memory().total == 0
    for path in (catalog.leaf, catalog.path(3), catalog.leaf, catalog.path(3)):
        composed.merge(path)
    memory = composed.memory()
    assert 0 < memory.adapters == sum(composed.resident.values())
    assert list(composed.resident) == [f"{catalog.path(4)}@1", *(f"{catalog.path(depth)}@1" for depth in (1, 2, 3))]
    assert 0 < memory.programs < memory.budget
    assert memory.pristine > 0 == memory.stacked
    composed.use(catalog.leaf)
    assert composed.memory().stacked > 0 == composed.memory().stacks
    composed.use(catalog.leaf)
    assert composed.memory().stacks > 0 == composed.memory().stacked  # kept for the next time, and on the model now
    composed.restore(release=True)
    assert composed.memory().total == 0


def test_with_a_budget_of_zero_nothing_is_kept_and_the_function_is_the_same(catalog: Catalog) -> None:
    model = chains.load(catalog.tree.base)
    state, composed = chains.state_digest(model), composer(catalog, model, budget=0)
    for put_on in (composed.merge, composed.use, composed.merge, composed.merge):
        put_on(catalog.leaf)
        assert chains.relative(chains.logits(model), reference(catalog)) < 1e-5
        memory = composed.memory()
        assert (memory.adapters, memory.programs, memory.stacks, memory.prefix_sums) == (0, 0, 0, 0)
    composed.restore()
    assert chains.state_digest(model) == state


@pytest.mark.parametrize("budget", [-1, 1.5, True, "2GiB", None])
def test_a_budget_that_is_no_number_of_bytes_is_refused(catalog: Catalog, budget: object) -> None:
    with pytest.raises(Invalid, match=r"a budget is a whole number of bytes from 0, got .*: 0 keeps nothing"):
        composer(catalog, chains.load(catalog.tree.base), budget=budget)


def test_what_was_not_verified_is_said(catalog: Catalog) -> None:
    with pytest.warns(UserWarning, match=r"verify=False: .* their values were not compared"):
        composer(catalog, chains.load(catalog.tree.base), verify=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        composer(catalog, chains.load(catalog.tree.base))


def test_a_ref_is_loaded_with_its_base(catalog: Catalog) -> None:
    composed = Composer.from_pretrained(catalog.leaf, catalog.registry, home=catalog.home)
    assert composed.current == catalog.registry.resolve(catalog.leaf)
    assert chains.relative(chains.logits(composed.model), reference(catalog)) < 1e-5
    half = Composer.from_pretrained(catalog.leaf, catalog.registry, home=catalog.home, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.model.parameters()} == {torch.bfloat16}


def test_a_ref_whose_base_is_not_on_this_machine_is_refused(catalog: Catalog, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"checkpoint of the base tiny is not known on this machine: run loratree base"):
        Composer.from_pretrained(catalog.leaf, catalog.registry, home=tmp_path)
