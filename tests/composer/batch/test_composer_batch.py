"""`Composer.batch`: each row of a pass, and each sequence that `generate` writes, is its own path's."""

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from loratree_composer import Composer
from loratree_registry.core.text import counted
from loratree_registry.errors import Conflict, Invalid, NotFound
from tests.composer import chains
from tests.composer.batch.conftest import ALICE, CARDIO, DIAG, MED
from tests.composer.conftest import Catalog


@pytest.fixture
def composer(tree: Catalog) -> Iterator[Composer]:
    found = Composer(chains.load(tree.tree.base), tree.registry, home=tree.home)
    yield found
    found.restore(release=True)


PATHS = [ALICE, f"{MED}/surgery/dan", f"{DIAG}/bob", "tiny", f"{DIAG}/carol", MED, ALICE, f"{DIAG}/bob"]


def ids(rows: int, length: int = 6) -> Tensor:
    return torch.randint(3, 60, (rows, length), generator=torch.Generator().manual_seed(rows))


@torch.inference_mode()
def merged_rows(composer: Composer, refs: Sequence[str], given: Tensor, **options: Any) -> Tensor:
    """Each row's logits, by its own path's merged model."""
    found = []
    for at, ref in enumerate(refs):
        composer.merge(ref, **options)
        found.append(composer.model(given[at : at + 1]).logits)
    composer.restore()
    return torch.cat(found)


def test_each_row_has_the_logits_of_its_own_merged_model(composer: Composer) -> None:
    given = ids(len(PATHS))
    expected = merged_rows(composer, PATHS, given)
    before = chains.state_digest(composer.model)
    with torch.inference_mode():
        bare = composer.model(given).logits
    with composer.batch(PATHS) as batch, torch.inference_mode():
        found = composer.model(given).logits
        assert [resolution.ref for resolution in batch.resolutions] == PATHS
        assert composer.current is None
        assert composer.memory().batches > 0
    for at in range(len(PATHS)):
        assert chains.relative(found[at], expected[at]) < 1e-5
    assert chains.state_digest(composer.model) == before
    with torch.inference_mode():
        assert torch.equal(composer.model(given).logits, bare)


def test_rows_have_level_weights_of_their_own(composer: Composer) -> None:
    refs, given = [ALICE, ALICE, ALICE], ids(3)
    weights = [{MED: 0.5}, None, {CARDIO: 0.0, ALICE: -2.0}]
    expected = torch.cat([merged_rows(composer, [ALICE], given[at : at + 1], weights=weights[at]) for at in range(3)])
    with composer.batch(refs, weights=weights), torch.inference_mode():
        found = composer.model(given).logits
    assert chains.relative(found, expected) < 1e-5


def test_ancestors_can_be_merged_and_the_rest_mixed(composer: Composer) -> None:
    refs, given = [ALICE, f"{DIAG}/bob", f"{DIAG}/carol"], ids(3)
    expected = merged_rows(composer, refs, given)
    with composer.batch(refs, merged=DIAG) as batch, torch.inference_mode():
        assert chains.relative(composer.model(given).logits, expected) < 1e-5
        batch.assign(refs[::-1])
        assert chains.relative(composer.model(given.flip(0)).logits, expected.flip(0)) < 1e-5
        with pytest.raises(Invalid, match="cannot be merged for the batch, because it is not in the chain of tiny"):
            batch.assign([ALICE, MED])
    with pytest.raises(Invalid, match=f"{DIAG} cannot be merged for the batch"):
        composer.batch([ALICE, f"{MED}/surgery/dan"], merged=DIAG).__enter__()


@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}], ids=str)
def test_generate_writes_each_paths_own_text(composer: Composer, how: dict[str, int]) -> None:
    refs = PATHS[:5]
    given = ids(len(refs))
    mask = torch.ones_like(given)
    for at in range(len(refs)):  # padding on the left, more in each row
        mask[at, :at] = 0
    model: Any = composer.model
    settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, **how}
    with composer.batch(refs):
        found = model.generate(given, attention_mask=mask, **settings)
    each = how.get("num_return_sequences", 1)
    assert len(found) == each * len(refs)
    for at, ref in enumerate(refs):
        composer.merge(ref)
        alone = model.generate(given[at : at + 1], attention_mask=mask[at : at + 1], **settings)
        length = min(alone.shape[1], found.shape[1])
        assert torch.equal(alone[:, :length], found[each * at : each * (at + 1), :length]), ref
    composer.restore()
    assert "generate" not in vars(model)


def test_sampled_sequences_keep_their_rows_path(composer: Composer) -> None:
    model: Any = composer.model
    with composer.batch([ALICE, MED]):
        found = model.generate(ids(2), max_new_tokens=4, do_sample=True, num_return_sequences=3, pad_token_id=0)
    assert len(found) == 6


def test_a_batch_in_a_batch_and_in_active_gives_back_what_was_before(composer: Composer) -> None:
    given = ids(2)
    with torch.inference_mode(), composer.active(ALICE):
        alice = composer.model(given).logits
        with composer.batch([MED, ALICE]) as batch:
            outer = composer.model(given).logits
            with composer.batch([ALICE, MED]):
                inner = composer.model(given).logits
            assert torch.equal(composer.model(given).logits, outer)
            batch.assign([ALICE, MED])
            with pytest.raises(Invalid, match="cannot be merged for the batch"):
                composer.batch([ALICE, MED], merged=ALICE).__enter__()
            with composer.batch([MED, MED]):
                pass
            assert torch.equal(composer.model(given).logits, inner)  # the paths that it took last
            batch.assign([MED, ALICE])
            assert torch.equal(composer.model(given).logits, outer)
        assert torch.equal(composer.model(given).logits, alice)
    assert not torch.equal(outer, inner)
    assert composer.current is None


def test_what_makes_no_batch_is_refused_whole_and_changes_nothing(composer: Composer) -> None:
    given = ids(2)
    with composer.batch([ALICE, MED]) as batch, torch.inference_mode():
        expected = composer.model(given).logits
        wrong: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
            ([], {}, Invalid, "takes a list of paths"),
            (ALICE, {}, Invalid, "takes a list of paths"),
            ((ref for ref in (ALICE, MED)), {}, Invalid, "takes a list of paths"),
            ([ALICE, 3], {}, Invalid, "a path is text .* got int"),
            ([None, MED], {}, Invalid, "a path is text .* got NoneType"),
            ([ALICE, "other/x"], {}, Invalid, "other/x is not in the tree of tiny"),
            ([ALICE, f"{MED}/nobody"], {}, NotFound, "nobody is not known"),
            ([ALICE, MED], {"weights": [None]}, Invalid, "got level weights for 1"),
            ([ALICE, MED], {"weights": {MED: float("nan")}}, Invalid, "finite"),
            ([ALICE, MED], {"lengths": [3]}, Invalid, "takes as many lengths"),
            ([ALICE, MED], {"lengths": [3, 0]}, Invalid, "a whole number of tokens from 1"),
        ]
        for refs, options, kind, words in wrong:
            with pytest.raises(kind, match=words):
                batch.assign(refs, **options)
            assert torch.equal(composer.model(given).logits, expected), words
    with pytest.raises(Invalid, match="the batch is over"):
        batch.assign([ALICE])


@pytest.mark.parametrize("rows", [1, 3, 4])
def test_fewer_or_more_rows_than_paths_are_refused(composer: Composer, rows: int) -> None:
    model: Any = composer.model
    with composer.batch([ALICE, MED]):
        with pytest.raises(Invalid, match=f"the model got {counted(rows, 'row')} for a batch of 2 paths"):
            model(ids(rows))
        with pytest.raises(Invalid, match=f"the model got {counted(rows, 'row')} for a batch of 2 paths"):
            model.generate(ids(rows), max_new_tokens=2)
    with composer.batch([ALICE, MED], lengths=[4, 2]), pytest.raises(Invalid, match="got 12 tokens for segments of 6"):
        model(ids(2))


def test_packed_sequences_take_a_path_each(composer: Composer) -> None:
    refs, lengths = [ALICE, f"{DIAG}/bob", MED, "tiny"], [3, 5, 1, 4]
    packed = ids(1, sum(lengths))
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    spans = torch.cat([torch.full((length,), at) for at, length in enumerate(lengths)])
    allowed = (spans[:, None] == spans) & (torch.arange(sum(lengths))[:, None] >= torch.arange(sum(lengths)))
    mask = torch.where(allowed, 0.0, float("-inf"))[None, None]
    with composer.batch(refs, lengths=lengths), torch.inference_mode():
        found = composer.model(packed, attention_mask=mask, position_ids=positions).logits
    start = 0
    for ref, length in zip(refs, lengths, strict=True):
        here = slice(start, start + length)
        expected = merged_rows(composer, [ref], packed[:, here])
        assert chains.relative(found[:, here], expected) < 1e-5, ref
        start += length


def test_a_poisoned_neighbour_changes_no_bit_of_my_row(composer: Composer) -> None:
    given = ids(4)
    with composer.batch([ALICE, f"{DIAG}/bob", f"{MED}/surgery/dan", MED]), torch.inference_mode():
        healthy = composer.model(given).logits
        [place] = {
            node.place
            for node, _ in composer._live.stack.plan.paths[1]
            if node.place and node is not None  # type: ignore
        } - {node.place for path in (0, 2, 3) for node, _ in composer._live.stack.plan.paths[path]}  # type: ignore
        for poison in (float("inf"), float("nan"), 1e38):
            for tensor in (*place.block.a.values(), *place.block.b.values()):
                tensor[place.slot] = poison
            found = composer.model(given).logits
            assert torch.equal(found[[0, 2, 3]], healthy[[0, 2, 3]])
            assert not torch.isfinite(found[1]).all()


def test_any_thread_may_run_the_model(composer: Composer) -> None:
    given, found = ids(2), list[Tensor]()

    def run() -> None:
        with torch.inference_mode():
            found.append(composer.model(given).logits)

    with composer.batch([ALICE, MED]):
        run()
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    assert torch.equal(*found)


def test_a_model_that_was_cast_begins_a_new_batch(composer: Composer) -> None:
    given = ids(2)
    with composer.batch([ALICE, MED]), torch.inference_mode():
        composer.model.double()
        with pytest.raises(Invalid, match="begin another batch after the model is cast or moved"):
            composer.model(given)
    expected = merged_rows(composer, [ALICE, MED], given)
    with composer.batch([ALICE, MED]), torch.inference_mode():
        assert chains.relative(composer.model(given).logits, expected) < 1e-12


def test_what_batches_leave_is_bounded_by_the_budget(tree: Catalog) -> None:
    one = Composer(chains.load(tree.tree.base), tree.registry, home=tree.home)
    with one.batch([ALICE, f"{MED}/surgery/dan", f"{DIAG}/bob"]):
        whole = one.memory().batches
    small = Composer(chains.load(tree.tree.base), tree.registry, home=tree.home, budget=0)
    given = ids(2)
    for refs in ([ALICE, MED], [f"{MED}/surgery/dan", f"{DIAG}/bob"], [ALICE, MED]) * 2:
        expected = merged_rows(small, refs, given)
        with small.batch(refs), torch.inference_mode():
            assert chains.relative(small.model(given).logits, expected) < 1e-5
            assert 0 < small.memory().batches < whole
    small.restore(release=True)
    one.restore(release=True)
    assert small.memory().batches == one.memory().batches == 0


def test_another_composer_is_told_of_the_batch(composer: Composer, tree: Catalog) -> None:
    with (
        composer.batch([ALICE, MED]),
        pytest.raises(Conflict, match="another Composer has a composition"),
    ):
        Composer(composer.model, tree.registry, home=tree.home)
