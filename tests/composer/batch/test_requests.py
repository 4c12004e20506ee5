"""transformers' continuous batching with a path for each request: every text is its own path's greedy text."""

import logging
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import nn
from transformers import GenerationConfig
from transformers.generation.configuration_utils import CompileConfig, ContinuousBatchingConfig

from loratree_composer import Composer
from loratree_composer.batch.mixed_batch import MixedBatch
from loratree_registry.errors import Conflict, Invalid, NotFound
from tests import tiny
from tests.composer import chains
from tests.composer.batch.test_composer_batch import ALICE, DIAG, MED, PATHS
from tests.composer.conftest import Catalog

NEW = 8
GREEDY = GenerationConfig(max_new_tokens=NEW, do_sample=False, eos_token_id=-1)
# So small that prompts are split over passes, and that prefills and decoding share passes.
SMALL = {"num_blocks": 24, "page_size": 16, "max_batch_tokens": 48, "auto_switch_to_flash": False}


@pytest.fixture
def composer(tree: Catalog) -> Iterator[Composer]:
    found = Composer(chains.load(tree.tree.base), tree.registry, home=tree.home)
    yield found
    found.restore(release=True)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Without the traceback that the manager logs when a pass fails."""
    logging.disable(logging.ERROR)
    yield
    logging.disable(logging.NOTSET)


def settings(**options: Any) -> ContinuousBatchingConfig:
    return ContinuousBatchingConfig(**{**SMALL, **options})


def prompts(lengths: Sequence[int]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(len(lengths))
    return [torch.randint(3, 60, (length,), generator=generator).tolist() for length in lengths]


def texts(composer: Composer, refs: Sequence[str], inputs: Sequence[Sequence[int]], **options: Any) -> list[list[int]]:
    """Each prompt's greedy text, by its own path's merged model."""
    model: Any = composer.model
    found = []
    for ref, given in zip(refs, inputs, strict=True):
        composer.merge(ref, **options)
        tokens = model.generate(torch.tensor([given]), max_new_tokens=NEW, do_sample=False, eos_token_id=-1)
        found.append(tokens[0, len(given) :].tolist())
    composer.restore()
    return found


def generate(composer: Composer, inputs: list[list[int]], **options: Any) -> list[list[int]]:
    model: Any = composer.model
    config = options.pop("continuous_batching_config", settings())
    found = model.generate_batch(inputs, generation_config=GREEDY, continuous_batching_config=config, **options)
    return [output.generated_tokens for output in found.values()]


def test_generate_batch_writes_each_paths_own_text(composer: Composer) -> None:
    inputs = prompts([5, 40, 3, 17, 1, 30, 9, 22])
    expected = texts(composer, PATHS, inputs)
    assert len({tuple(text) for text in expected}) > 5  # the paths matter
    with composer.batch(PATHS):
        assert generate(composer, inputs) == expected
        assert generate(composer, inputs) == expected  # the rows' paths are back for another run
        given = torch.tensor([inputs[0]] * len(PATHS))
        with torch.inference_mode():
            assert composer.model(given).logits.shape[0] == len(PATHS)
    assert not {"generate", "generate_batch", "init_continuous_batching"} & vars(composer.model).keys()


def test_two_paths_with_the_same_long_prompt_share_no_block(composer: Composer) -> None:
    """A manager that shares blocks knows them by their tokens alone, and would give one path's keys to the other."""
    prompt = prompts([40])[0]
    refs = [ALICE, f"{MED}/surgery/dan", ALICE, "tiny"]
    expected = texts(composer, refs, [prompt] * 4)
    assert len({tuple(text) for text in expected}) == 3
    one_by_one = settings(max_requests_per_batch=1, allow_block_sharing=True)
    with composer.batch(refs):
        assert generate(composer, [prompt] * 4, continuous_batching_config=one_by_one) == expected
    with composer.requests(GREEDY, settings()) as manager:
        assert not manager.continuous_batching_config.allow_block_sharing


def test_merged_levels_and_level_weights_hold_for_requests(composer: Composer) -> None:
    refs, weights = [ALICE, f"{DIAG}/bob", f"{DIAG}/carol"], {MED: 0.5}
    inputs = prompts([6, 20, 11])
    expected = texts(composer, refs, inputs, weights=weights)
    with composer.batch(refs, merged=DIAG, weights=weights):
        assert generate(composer, inputs) == expected
    with composer.requests(GREEDY, settings(), merged=DIAG, weights=weights) as manager:
        with pytest.raises(Invalid, match=f"has other versions down to {DIAG}, which is merged"):
            manager.add_request(inputs[0], path=f"{MED}/surgery/dan")
        assert answers(manager, dict(zip(refs, inputs, strict=True))) == dict(zip(refs, expected, strict=True))


def answers(manager: Any, asked: dict[str, list[int]]) -> dict[str, list[int]]:
    """Send a request for each path, and return each one's text."""
    for ref, given in asked.items():
        manager.add_request(given, request_id=ref, path=ref)
    return collect(manager, len(asked))


def collect(manager: Any, count: int) -> dict[str, list[int]]:
    """Wait for the texts of so many requests."""
    found = {}
    while len(found) < count:
        output = manager.get_result(timeout=60)
        assert output is not None
        assert output.error is None
        found[output.request_id] = output.generated_tokens
    return found


def test_requests_come_while_others_run_and_leave_nothing(composer: Composer, tree: Catalog, tmp_path: Any) -> None:
    refs = [ALICE, f"{MED}/surgery/dan", f"{DIAG}/bob", "tiny"]
    inputs = prompts([25, 7, 12, 4])
    expected = dict(zip(refs, texts(composer, refs, inputs), strict=True))
    before = chains.state_digest(composer.model)
    with composer.requests(GREEDY, settings()) as manager:
        assert answers(manager, dict(zip(refs, inputs, strict=True))) == expected
        late = f"{DIAG}/late"
        tree.publish(tiny.adapter(tree.tree.base, tmp_path / "late", seed=77, rank=3, alpha=9), late, parent=DIAG)
        with pytest.raises(NotFound, match="nobody"):
            manager.add_request(inputs[0], path=f"{MED}/nobody")
        with pytest.raises(Invalid, match=r"request 'no path' has no path: call add_request"):
            manager.add_request(inputs[0], request_id="no path")
        with pytest.raises(Invalid, match="to no other input: add requests"):
            composer.model(torch.tensor([inputs[0]]))
        found = answers(manager, {late: inputs[0], ALICE: inputs[1]})
    assert chains.state_digest(composer.model) == before
    assert found == dict(zip((late, ALICE), texts(composer, [late, ALICE], inputs[:2]), strict=True))
    bare = Composer.__new__(Composer)
    bare._model = nn.Linear(2, 2)
    with pytest.raises(Invalid, match="a Linear has no continuous batching"):
        bare.requests().__enter__()


def test_sequences_of_one_request_keep_its_path(composer: Composer) -> None:
    refs, inputs = [ALICE, f"{MED}/surgery/dan"], prompts([9, 14])
    expected = texts(composer, refs, inputs)
    twice = GenerationConfig(max_new_tokens=NEW, do_sample=True, top_k=1, eos_token_id=-1, num_return_sequences=2)
    model: Any = composer.model
    with composer.batch(refs):
        found = model.generate_batch(inputs, generation_config=twice, continuous_batching_config=settings())
    assert [output.generated_tokens for output in found.values()] == [expected[0]] * 2 + [expected[1]] * 2


def test_many_threads_send_requests(composer: Composer) -> None:
    inputs = prompts([5, 9, 3, 12, 7, 6, 8, 4])
    expected = texts(composer, PATHS, inputs)
    with composer.requests(GREEDY, settings()) as manager:

        def send(at: int) -> None:
            for again in range(3):
                manager.add_request(inputs[at], request_id=f"{at} {again}", path=PATHS[at])

        threads = [threading.Thread(target=send, args=(at,)) for at in range(len(PATHS))]
        for thread in threads:
            thread.start()
        found = collect(manager, 3 * len(PATHS))
        for thread in threads:
            thread.join()
    assert all(found[f"{at} {again}"] == expected[at] for at in range(len(PATHS)) for again in range(3))


def test_what_cannot_run_is_refused_and_the_rows_go_on(composer: Composer) -> None:
    model: Any = composer.model
    inputs = prompts([6, 6])
    attention = model.config._attn_implementation
    with composer.batch([ALICE, MED]), torch.inference_mode():
        expected = model(torch.tensor(inputs)).logits
        wrong: list[tuple[list[list[int]], ContinuousBatchingConfig, str]] = [
            (inputs[:1], settings(), "generate_batch got 1 prompt for a batch of 2 rows"),
            (inputs, settings(use_cuda_graph=True), "run without CUDA graphs"),
            (inputs, settings(varlen_compile_config=CompileConfig()), "run without torch.compile"),
        ]
        for given, config, sentence in wrong:
            with pytest.raises(Invalid, match=sentence):
                model.generate_batch(given, generation_config=GREEDY, continuous_batching_config=config)
        assert model.config._attn_implementation == attention
        assert torch.equal(model(torch.tensor(inputs)).logits, expected)
    with composer.batch([ALICE, MED], lengths=[4, 2]), pytest.raises(Invalid, match="for a batch of 0 rows"):
        generate(composer, inputs)
    kept = model.init_continuous_batching(GREEDY, settings())
    model._cached_continuous_batching_manager = kept
    with composer.batch([ALICE, MED]), pytest.raises(Conflict, match="destroy_cached_continuous_batching_manager"):
        generate(composer, inputs)
    model.destroy_cached_continuous_batching_manager()


def test_a_pass_that_fails_raises_its_reason(composer: Composer, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise Invalid("the disk is gone")

    with composer.batch([ALICE, MED]):
        monkeypatch.setattr(MixedBatch, "set_pass", fail)
        with pytest.raises(Invalid, match="the disk is gone"):
            generate(composer, prompts([4, 4]))
        monkeypatch.undo()
        assert len(generate(composer, prompts([4, 4]))) == 2


def test_a_block_whose_pass_fails_raises_its_reason(composer: Composer, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise Invalid("the disk is gone")

    def run() -> None:
        with composer.requests(GREEDY, settings()) as manager:
            monkeypatch.setattr(MixedBatch, "set_pass", fail)
            manager.add_request(prompts([4])[0], path=MED)

    with pytest.raises(Invalid, match="the disk is gone"):
        run()
    monkeypatch.undo()
    with composer.batch([ALICE, MED]):
        assert len(generate(composer, prompts([4, 4]))) == 2


def test_a_request_without_a_token_or_a_path_is_refused_and_the_others_go_on(composer: Composer) -> None:
    with composer.requests(GREEDY, settings()) as manager:
        manager.add_request(prompts([4])[0], request_id="sound", path=MED)
        with pytest.raises(Invalid, match="takes at least one token, got none"):
            manager.add_request([], path=MED)
        with pytest.raises(Invalid, match=r"'mine' has no path: call add_request\(…, path=…\)"):
            manager.add_request([1], request_id="mine")
        assert manager.get_result(request_id="sound", timeout=60).error is None
    with composer.batch([ALICE, MED]), pytest.raises(Invalid, match="takes at least one token, got none"):
        generate(composer, [[1], []])


def test_a_manager_that_outlives_the_block_is_stopped(composer: Composer) -> None:
    model: Any = composer.model
    with composer.batch([ALICE, MED]):
        manager = model.init_continuous_batching(GREEDY, settings())
        manager.start()
        manager.add_request(prompts([5])[0])
    assert not manager.is_running()


def test_a_request_that_differs_in_a_shared_tensor_is_refused_and_the_others_go_on(
    composer: Composer, tree: Catalog, tmp_path: Any
) -> None:
    saved = tiny.adapter(
        tree.tree.base,
        tmp_path / "saved",
        targets=["q_proj"],
        modules_to_save=["norm"],
        change=lambda tuned: [
            parameter.data.add_(0.1) for name, parameter in tuned.named_parameters() if "modules_to_save" in name
        ],
    )
    tree.publish(saved, "tiny/saved", parent="base")
    inputs = prompts([6, 9])
    expected = texts(composer, [ALICE, "tiny/saved"], inputs)
    with composer.requests(GREEDY, settings()) as manager:
        manager.add_request(inputs[0], request_id="alice", path=ALICE)
        with pytest.raises(Invalid, match="the paths of the batch differ in model"):
            manager.add_request(inputs[1], request_id="saved", path="tiny/saved")
        assert collect(manager, 1) == {"alice": expected[0]}
    with composer.requests(GREEDY, settings()) as manager:  # alone, it is composed
        assert answers(manager, {"tiny/saved": inputs[1]}) == {"tiny/saved": expected[1]}
