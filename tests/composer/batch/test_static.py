"""Static batches: other paths change values only, so compiled code goes on, and each row is still its own path's."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from loratree_composer.adapters.adapter import Adapter, Factors
from loratree_composer.batch.mixed_batch import MixedBatch
from loratree_composer.batch.nodes import Nodes
from loratree_registry.errors import Invalid
from tests.composer import chains
from tests.composer.test_forms_agree import VOCABULARY, Net

Chain = list[tuple[Adapter, float]]
SIZES = {"tokens": (VOCABULARY, 8), "up": (8, 12), "turned": (12, 12), "head": (8, VOCABULARY)}  # in, out
KINDS = {"tokens": "Embedding", "turned": "Conv1D"}


def adapter(digest: str, *, rank: int, names: tuple[str, ...] = tuple(SIZES), **more: Any) -> Adapter:
    generator = torch.Generator().manual_seed(sum(map(ord, digest)))
    parts: dict[str, Any] = {}
    for name in names:
        into, out = SIZES[name]
        a, b = (torch.randn(*shape, generator=generator) * 0.3 for shape in ((rank, into), (out, rank)))
        parts[f"{name}.weight"] = (Factors(KINDS.get(name, "Linear"), 1.5, a, b, name in KINDS, **more),)
    return Adapter(parts, digest)


ROOT = adapter("root", rank=8)
USERS = [adapter(f"user {at}", rank=4) for at in range(6)]
ODD = adapter("odd", rank=3, names=("up", "head"))


def path(at: int, weight: float = 1.0) -> Chain:
    return [(ROOT, weight), (USERS[at], 1.0)]


def net() -> Net:
    torch.manual_seed(0)
    return Net(8, 12).eval()


@torch.inference_mode()
def run(model: nn.Module, ids: Tensor) -> Tensor:
    found: Tensor = model(ids)
    return found


def ids(rows: int) -> Tensor:
    return torch.arange(rows * 5).view(rows, 5) % VOCABULARY


BATCHES = [
    [path(0), path(1), path(2)],
    [path(2), path(0), path(0, 0.5)],
    [path(5), path(4), path(3)],
    [[(ROOT, 1.0)], path(1), []],
    [[(ROOT, 1.0), (ODD, -2.0)], path(3), path(4)],
    [path(0), path(1), path(2)],
]


def test_each_row_is_what_it_is_in_a_plan() -> None:
    model, other = net(), net()
    static, plain = MixedBatch(model, Nodes(model)), MixedBatch(other, Nodes(other))
    for rows in BATCHES:
        static.set(rows, static=True)
        plain.set(rows)
        assert chains.relative(run(model, ids(3)), run(other, ids(3))) < 1e-6
    plain.set(BATCHES[0], static=True)  # from one form to the other, and back
    assert chains.relative(run(model, ids(3)), run(other, ids(3))) < 1e-6
    static.set(BATCHES[0])
    assert chains.relative(run(model, ids(3)), run(other, ids(3))) < 1e-6
    before = chains.state_digest(net())
    static.remove()
    assert chains.state_digest(model) == before
    assert torch.equal(run(model, ids(3)), run(net(), ids(3)))


def test_packed_segments_take_a_path_each() -> None:
    model, other = net(), net()
    model.conv, other.conv = (nn.Conv1d(12, 8, 1) for _ in range(2))
    other.conv.load_state_dict(model.conv.state_dict())
    static, plain = MixedBatch(model, Nodes(model)), MixedBatch(other, Nodes(other))
    packed = ids(2).view(1, -1)
    for rows, lengths in zip(BATCHES, ([2, 3, 5], [5, 3, 2], [1, 8, 1], [4, 4, 2], [2, 2, 6], [2, 3, 5]), strict=True):
        static.set(rows, lengths, static=True)
        plain.set(rows, lengths)
        assert chains.relative(run(model, packed), run(other, packed)) < 1e-6


def test_other_paths_compile_nothing_again() -> None:
    model = net()
    batch, compiles = MixedBatch(model, Nodes(model)), list[int]()

    def backend(graph: Any, _: Any) -> Any:
        compiles.append(1)
        return graph

    batch.set(BATCHES[0], static=True)
    compiled = torch.compile(model, backend=backend)
    for rows in (BATCHES[0], BATCHES[1], BATCHES[2], BATCHES[0], BATCHES[3]):
        batch.set(rows, static=True)
        assert torch.equal(run(compiled, ids(3)), run(model, ids(3)))
    assert len(compiles) == 1


def test_a_neighbour_that_overflows_changes_no_bit_of_my_row() -> None:
    model, results = net(), []
    for size in (1.0, 3e38):  # the product of x and A overflows; B A does not
        other = adapter("other", rank=4, names=("up",))
        [part] = other.parts["up.weight"]
        assert isinstance(part, Factors)
        part.a.mul_(size).clamp_(-3e38, 3e38)
        part.b.mul_(1 / size)
        batch = MixedBatch(model, Nodes(model))
        batch.set([path(0), [(ROOT, 1.0), (other, 1.0)], path(2)], static=True)
        results.append(run(model, ids(3)))
        batch.remove()
    assert torch.equal(results[0][[0, 2]], results[1][[0, 2]])
    assert not torch.isfinite(results[1][1]).all()


def test_what_is_no_product_is_refused_and_the_batch_of_before_stays() -> None:
    model = net()
    batch = MixedBatch(model, Nodes(model))
    batch.set(BATCHES[0], static=True)
    expected = run(model, ids(3))
    dora = adapter("dora", rank=2, names=("up",), magnitude=torch.ones(12))
    with pytest.raises(
        Invalid, match=r"takes only low-rank deltas by row, and its paths change up.weight in another way"
    ):
        batch.set([path(0), [(dora, 1.0)], path(1)], static=True)
    assert torch.equal(run(model, ids(3)), expected)
    with pytest.raises(Invalid, match=r"the model got 4 rows for a batch of 3 paths"):
        run(model, ids(4))
