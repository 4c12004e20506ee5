import copy
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn

from loratree_composer import Composer, compose
from loratree_composer.adapters.budget import Budget
from loratree_composer.adapters.reader import AdapterReader
from loratree_composer.base.manifest import manifest_of_module, read_base
from loratree_composer.live.pristine import PristinePlace
from loratree_registry.errors import CompositionWarning, Conflict, Corrupt, Invalid, NotFound
from tests import tiny
from tests.composer import chains
from tests.composer.conftest import Catalog


def composer(catalog: Catalog, model: nn.Module, **options: object) -> Composer:
    return Composer(model, catalog.registry, home=catalog.home, **options)  # type: ignore[arg-type]


def reference(catalog: Catalog, depth: int) -> torch.Tensor:
    return chains.logits(chains.merged_by_peft(catalog.tree.base, catalog.tree.chain[:depth]))


def test_a_path_used_merged_and_restored_gives_pefts_logits_and_the_base_back(catalog: Catalog) -> None:
    model = chains.load(catalog.tree.base)
    bare, state = chains.logits(model), chains.state_digest(model)
    composed = composer(catalog, model)
    assert composed.base.name == "tiny"
    for depth in (4, 1, 3):
        expected = reference(catalog, depth)
        resolution = composed.use(catalog.path(depth))
        assert resolution == catalog.registry.resolve(catalog.path(depth)) == composed.current
        assert chains.relative(chains.logits(model), expected) < 1e-5
        assert chains.state_digest(model) == state
        assert composed.unreached == []
        assert composed.merge(catalog.path(depth)) == resolution
        assert chains.relative(chains.logits(model), expected) < 1e-5
    composed.restore()
    assert composed.current is None
    assert torch.equal(chains.logits(model), bare)
    assert chains.state_digest(model) == state


@pytest.mark.parametrize("pristine", ["host", "device"])
def test_use_after_merge_starts_from_the_pristine_base(catalog: Catalog, pristine: PristinePlace) -> None:
    model = chains.load(catalog.tree.base)
    state, composed = chains.state_digest(model), composer(catalog, model, pristine=pristine)
    composed.merge(catalog.leaf)
    composed.use(catalog.path(2))
    assert chains.state_digest(model) == state
    assert chains.relative(chains.logits(model), reference(catalog, 2)) < 1e-5


def test_the_base_itself_and_a_version_are_refs_too(catalog: Catalog) -> None:
    model = chains.load(catalog.tree.base)
    bare, composed = chains.logits(model), composer(catalog, model)
    assert composed.merge("tiny").chain == []
    assert torch.equal(chains.logits(model), bare)
    assert composed.use(f"{catalog.leaf}@1").composition == composed.merge(catalog.leaf).composition


def test_what_is_on_the_model_stays_when_the_next_ref_does_not_resolve(catalog: Catalog) -> None:
    model = chains.load(catalog.tree.base)
    composed = composer(catalog, model)
    composed.use(catalog.leaf)
    before = chains.logits(model)
    with pytest.raises(NotFound):
        composed.merge("tiny/medicine@9")
    with pytest.raises(Invalid, match="not in the tree of tiny"):
        composed.use("other/medicine")
    assert torch.equal(chains.logits(model), before)
    assert composed.current is not None


def test_a_merge_that_overflows_leaves_the_bare_base(catalog: Catalog, tmp_path: Path) -> None:
    huge = tiny.adapter(catalog.tree.base, tmp_path / "huge", std=1e3, targets=["down_proj"])
    catalog.publish(huge, "tiny/huge", parent="base")
    model = chains.load(catalog.tree.base, torch.float16)
    state, composed = chains.state_digest(model), composer(catalog, model)
    composed.merge(catalog.leaf)
    with pytest.raises(Invalid, match=r"down_proj\.weight would hold values that are not finite"):
        composed.merge("tiny/huge")
    assert chains.state_digest(model) == state
    assert composed.current is None


# Which base a model is


def test_another_model_is_refused_with_the_tensors_that_differ(catalog: Catalog, tmp_path: Path) -> None:
    model = chains.load(catalog.tree.base)
    with torch.no_grad():
        model.get_parameter("model.norm.weight")[0] += 1
        model.get_parameter("lm_head.weight")[0, 0] += 1
    with pytest.raises(Invalid, match=r"not the base tiny: lm_head\.weight has other values; model\.norm\.weight has"):
        composer(catalog, model)
    with pytest.raises(Invalid, match=r"model\.embed_tokens\.weight is missing.*; and 43 more; load"):
        composer(catalog, chains.load(tiny.gpt2(tmp_path / "gpt2")))
    with pytest.raises(Invalid, match="meta device"):
        composer(catalog, chains.load(catalog.tree.base).to("meta"))


def test_verification_can_be_left_out(catalog: Catalog) -> None:
    model = chains.load(catalog.tree.base)
    with torch.no_grad():
        model.get_parameter("model.norm.weight")[0] += 1
    with pytest.warns(UserWarning, match="verify=False"):
        assert composer(catalog, model, verify=False).base.name == "tiny"


def test_among_several_bases_the_one_with_the_models_values_is_found(catalog: Catalog, tmp_path: Path) -> None:
    others = {f"tiny{seed}": tiny.llama(tmp_path / f"tiny{seed}", seed=seed) for seed in (5, 6)}
    for name, directory in others.items():
        catalog.registry.add_base(name, manifest_of_module(chains.load(directory)))
    assert composer(catalog, chains.load(others["tiny6"])).base.name == "tiny6"
    assert composer(catalog, chains.load(catalog.tree.base)).base.name == "tiny"
    with pytest.raises(Invalid, match=r"several bases \(tiny; tiny5; tiny6\)"):
        composer(catalog, chains.load(catalog.tree.base), verify=False)
    with pytest.warns(UserWarning, match="verify=False"):
        assert composer(catalog, chains.load(catalog.tree.base), verify=False, base="tiny5").base.name == "tiny5"
    with pytest.raises(Invalid, match="not the base tiny5: "):
        composer(catalog, chains.load(catalog.tree.base), base="tiny5")
    with pytest.raises(Invalid, match="none of the registry's bases"):
        composer(catalog, nn.Linear(2, 2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_model_in_another_dtype_is_compared_with_the_checkpoint_cast(catalog: Catalog, dtype: torch.dtype) -> None:
    model = chains.load(catalog.tree.base, dtype)
    state, composed = chains.state_digest(model), composer(catalog, model)
    composed.merge(catalog.leaf)
    assert chains.relative(chains.logits(model), reference(catalog, 4)) < 0.05
    composed.restore()
    assert chains.state_digest(model) == state
    with torch.no_grad():
        model.get_parameter("model.norm.weight")[0] *= 1.5
    with pytest.raises(Invalid, match=r"model\.norm\.weight has other values"):
        composer(catalog, model)


def test_a_model_in_another_dtype_whose_checkpoint_is_unknown_is_refused_with_what_to_do(catalog: Catalog) -> None:
    shutil.rmtree(catalog.home / "bases")
    model = chains.load(catalog.tree.base, torch.bfloat16)
    with pytest.raises(Invalid, match=r"held in BF16 and the base tiny in F32.*verify=False"):
        composer(catalog, model)
    with pytest.warns(UserWarning, match="verify=False"):
        composer(catalog, model, verify=False).use(catalog.leaf)


def test_a_base_that_cannot_be_compared_does_not_hide_the_one_that_the_model_is(
    catalog: Catalog, tmp_path: Path
) -> None:
    for seed in (7, 8):  # no checkpoint is remembered for these
        half = tiny.llama(tmp_path / f"half{seed}", seed=seed, dtype=torch.bfloat16)
        catalog.registry.add_base(f"half{seed}", read_base(half))
    assert composer(catalog, chains.load(catalog.tree.base)).base.name == "tiny"
    assert composer(catalog, chains.load(catalog.tree.base, torch.float16)).base.name == "tiny"
    assert composer(catalog, chains.load(tmp_path / "half7", torch.bfloat16)).base.name == "half7"
    with pytest.raises(Invalid, match=r"base half7 in BF16.*its checkpoint is not known.*; and 1 more"):
        composer(catalog, chains.load(tmp_path / "half7"))


def test_a_base_in_the_models_own_dtype_goes_before_one_that_was_cast(catalog: Catalog, tmp_path: Path) -> None:
    chains.load(catalog.tree.base, torch.bfloat16).save_pretrained(tmp_path / "half")  # type: ignore[operator]
    model = chains.load(tmp_path / "half", torch.bfloat16)
    catalog.registry.add_base("half", manifest_of_module(model))
    assert composer(catalog, model).base.name == "half"
    catalog.registry.add_base("twin", manifest_of_module(model))
    with pytest.raises(Invalid, match=r"several bases \(half; twin\): say which it is with base=NAME"):
        composer(catalog, model)
    assert composer(catalog, model, base="twin").base.name == "twin"


def test_a_tied_base_is_recognised(catalog: Catalog, tmp_path: Path) -> None:
    directory = tiny.llama(tmp_path / "tied", tie_word_embeddings=True)
    model = chains.load(directory)
    catalog.registry.add_base("tied", manifest_of_module(model))
    assert composer(catalog, model).base.name == "tied"


def test_a_model_that_already_carries_adapters_is_refused(catalog: Catalog) -> None:
    tuned = peft.PeftModel.from_pretrained(chains.load(catalog.tree.base), catalog.tree.chain[0])
    for model in (tuned, tuned.get_base_model()):
        with pytest.raises(Invalid, match="carries PEFT's layers"):
            composer(catalog, model)
    stacked = chains.load(catalog.tree.base)
    kept = composer(catalog, stacked)
    kept.use(catalog.leaf)
    for model in (stacked, copy.deepcopy(stacked)):
        with pytest.raises(Conflict, match=r"another Composer|copied from"):
            composer(catalog, model)


def test_a_wrapped_model_is_unwrapped_or_refused_with_what_to_give(catalog: Catalog) -> None:
    model = chains.load(catalog.tree.base)
    composer(catalog, torch.compile(model, backend="eager")).merge(catalog.leaf)  # type: ignore[arg-type]
    assert chains.relative(chains.logits(model), reference(catalog, 4)) < 1e-5
    with pytest.raises(Invalid, match=r"the model is a DataParallel.*give the inner model"):
        composer(catalog, nn.DataParallel(chains.load(catalog.tree.base)))
    partly: Any = chains.load(catalog.tree.base)
    partly.model.layers[0] = torch.compile(partly.model.layers[0], backend="eager")
    with pytest.raises(Invalid, match=r"model\.layers\.0 is a OptimizedModule"):
        composer(catalog, partly)


def test_any_module_whose_parameters_match_will_do(catalog: Catalog) -> None:
    plain = nn.Sequential(nn.Linear(4, 3))
    catalog.registry.add_base("plain", manifest_of_module(plain))
    assert composer(catalog, plain).base.architecture == "Sequential"


# Two Composers on one model


@pytest.mark.parametrize("first", ["use", "merge"])
@pytest.mark.parametrize("second", ["use", "merge"])
def test_what_one_composer_has_on_a_model_no_other_adds_to(catalog: Catalog, first: str, second: str) -> None:
    model = chains.load(catalog.tree.base)
    one, other = composer(catalog, model), composer(catalog, model)
    getattr(one, first)(catalog.leaf)
    before = chains.logits(model)
    with pytest.raises(Conflict, match="another Composer has a composition on this model"):
        getattr(other, second)(catalog.path(1))
    other.restore()
    with pytest.raises(Conflict, match="another Composer"):
        composer(catalog, model, verify=False)
    assert torch.equal(chains.logits(model), before)
    one.restore()
    getattr(other, second)(catalog.path(1))
    assert chains.relative(chains.logits(model), reference(catalog, 1)) < 1e-5
    other.restore()
    composer(catalog, model)


def test_a_part_of_a_model_that_carries_a_composition_carries_it_too(catalog: Catalog) -> None:
    model: Any = chains.load(catalog.tree.base)
    catalog.registry.add_base("inner", manifest_of_module(model.model))
    inner, whole = composer(catalog, model.model, base="inner"), composer(catalog, model)
    whole.merge(catalog.leaf)
    with pytest.raises(Conflict, match="another Composer"):
        inner.merge("inner")
    whole.restore()
    inner.use("inner")
    with pytest.raises(Conflict, match="another Composer"):
        whole.use(catalog.leaf)


def test_a_merge_that_fails_holds_the_model_no_longer(catalog: Catalog, tmp_path: Path) -> None:
    huge = tiny.adapter(catalog.tree.base, tmp_path / "huge", std=1e3, targets=["down_proj"])
    catalog.publish(huge, "tiny/huge", parent="base")
    model = chains.load(catalog.tree.base, torch.float16)
    one, other = composer(catalog, model), composer(catalog, model)
    one.merge(catalog.leaf)
    with pytest.raises(Invalid, match="not finite"):
        one.merge("tiny/huge")
    other.merge(catalog.leaf)


# Compiled models


def test_a_compiled_model_follows_every_change(catalog: Catalog) -> None:
    model = chains.load(catalog.tree.base)
    bare, run, composed = chains.logits(model), compiled(model), composer(catalog, model)
    assert torch.equal(chains.logits(run), bare)
    composed.use(catalog.path(4))
    assert chains.relative(chains.logits(run), reference(catalog, 4)) < 1e-5
    composed.restore()
    assert torch.equal(chains.logits(run), bare)
    composed.use(catalog.path(1))
    assert chains.relative(chains.logits(run), reference(catalog, 1)) < 1e-5
    assert composed.unreached == []
    composed.merge(catalog.path(3))
    assert chains.relative(chains.logits(run), reference(catalog, 3)) < 1e-5
    composed.restore()
    assert torch.equal(chains.logits(run), bare)


@pytest.mark.parametrize("how", ["in place", "by its caller"])
def test_a_model_that_was_compiled_otherwise_follows_too(catalog: Catalog, how: str) -> None:
    model = chains.load(catalog.tree.base)
    run: Any = model
    if how == "in place":
        model.compile(backend="eager")
    else:
        run = compiled(lambda ids: model(ids))
    chains.logits(run)
    composer(catalog, model).use(catalog.path(1))
    assert chains.relative(chains.logits(run), reference(catalog, 1)) < 1e-5


def compiled(function: Any) -> Any:
    return torch.compile(function, backend="eager")


# What a registry answers


def test_adapters_are_read_once_and_the_least_recently_used_leave_memory(catalog: Catalog) -> None:
    adapters = AdapterReader(catalog.registry, catalog.tree.manifest, catalog.home)
    resolution = catalog.registry.resolve(catalog.leaf)
    first = adapters.load_chain(resolution)
    stored = (catalog.home / "blobs").rename(catalog.home / "away")
    assert [adapter for adapter, _ in adapters.load_chain(resolution)] == [adapter for adapter, _ in first]
    stored.rename(catalog.home / "blobs")
    small = AdapterReader(catalog.registry, catalog.tree.manifest, catalog.home, budget=Budget(2 * first[-1][0].nbytes))
    again = [small.load_chain(resolution)[depth][0] for depth in (0, 3)]
    assert small.load_chain(catalog.registry.resolve(catalog.path(1)))[0][0] is not again[0]


def test_a_damaged_blob_is_refused_although_the_leaf_was_used_before(catalog: Catalog) -> None:
    composer(catalog, chains.load(catalog.tree.base)).use(catalog.leaf)
    for file in (catalog.home / "blobs" / "sha256").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:-1] + b"\x55")
    with pytest.raises(Corrupt, match="is damaged where the registry stores it"):
        composer(catalog, chains.load(catalog.tree.base)).use(catalog.leaf)


def test_an_answer_that_does_not_have_its_digests_is_refused(catalog: Catalog) -> None:
    from dataclasses import replace

    adapters = AdapterReader(catalog.registry, catalog.tree.manifest, catalog.home)
    resolution = catalog.registry.resolve(catalog.leaf)
    shorter = replace(resolution, chain=resolution.chain[:-1])
    with pytest.raises(Corrupt, match="does not give the digests"):
        adapters.load_chain(shorter)
    renamed = [*resolution.chain[:-1], replace(resolution.chain[-1], path=catalog.path(1))]
    with pytest.raises(Corrupt, match=r"record of tiny/medicine@1 does not give the digest"):
        adapters.load_chain(replace(resolution, chain=renamed))


def test_an_interrupt_before_the_weights_are_written_leaves_the_bare_base(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    from loratree_composer import Composer
    from loratree_composer import composer as module

    model = chains.load(catalog.tree.base)
    before, composer = chains.state_digest(model), Composer(model, catalog.registry, home=catalog.home)
    for put_on in (composer.merge, composer.use):
        composer.merge(catalog.path(1))
        monkeypatch.setattr(module, "programs_of", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            put_on(catalog.leaf)
        monkeypatch.undo()
        assert chains.state_digest(model) == before
        assert composer.current is None


def _interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_what_a_chain_does_not_say_by_itself_is_warned_of(catalog: Catalog, tmp_path: Path) -> None:
    live = composer(catalog, chains.load(catalog.tree.base))
    catalog.registry.create_node(f"{catalog.path(1)}/empty")
    catalog.registry.set_alias(catalog.path(1), "stable", version=1, expected=None)
    catalog.registry.withdraw(f"{catalog.path(2)}@1", reason="diverges")
    withdrawn = rf"^withdrawn, and in the chain: {catalog.path(2)}@1 \(diverges\)$"
    asked: list[tuple[str, dict[str, Any], str]] = [
        (f"{catalog.path(1)}/empty", {}, rf"/empty has no version of its own: this is {catalog.path(1)}@1, above it$"),
        (catalog.path(3), {}, withdrawn),
        (catalog.path(1), {"follow": "stabel"}, r"^no level of .* has the alias 'stabel' \(did you mean 'stable'\?\)"),
    ]
    for ref, options, words in asked:
        for call in (live.use, live.merge):
            with pytest.warns(CompositionWarning, match=words) as caught:
                call(ref, **options)
            assert {Path(warning.filename).name for warning in caught} == {"test_composer.py"}
        with pytest.warns(CompositionWarning, match=words):
            compose(catalog.registry, ref, "merge", tmp_path / ref.replace("/", "-"), home=catalog.home, **options)
    live.use(catalog.path(1), follow="latest")  # nothing to say
