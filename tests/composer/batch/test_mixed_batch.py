"""Every row of a mixed batch is its own path's function, whatever the other rows take."""

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from loratree_composer.adapters.adapter import Adapter, AdapterPart, Bias, Factors, Rows, Value, programs_of
from loratree_composer.batch.mixed_batch import MixedBatch
from loratree_composer.batch.nodes import Nodes
from loratree_composer.live.merged_weights import MergedWeights
from tests.composer import chains
from tests.composer.arithmetic.test_edits import exact
from tests.composer.test_forms_agree import VOCABULARY, Net, part, random
from tests.examples import examples

LENGTH = 5
MIXED = ("tokens", "up", "turned", "head")  # the convolution and the norm must be shared
Chain = list[tuple[Adapter, float]]


@dataclass(frozen=True)
class Batch:
    """A model's sizes, and a chain for each row of a batch."""

    width: int
    inner: int
    rows: list[Chain]

    def model(self, dtype: torch.dtype = torch.float32) -> Net:
        torch.manual_seed(self.width * 100 + self.inner)
        return Net(self.width, self.inner).to(dtype).eval()

    def ids(self) -> Tensor:
        return torch.arange(len(self.rows) * LENGTH).view(-1, LENGTH) % VOCABULARY


def adapter(draw: Any, shape: Batch, digest: str, *, shared: bool = False) -> Adapter:
    """An adapter on some layers; `shared` draws parts too that all rows of a batch must share."""
    weights = dict(shape.model().named_parameters())
    names = draw(st.lists(st.sampled_from((*MIXED, *(("conv",) if shared else ()))), min_size=1, unique=True))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    found: dict[str, tuple[AdapterPart, ...]] = {}
    for name in names:
        rules = ("additive", "additive", "ordered", *(("override",) if shared else ()))
        key, value = part(draw, name, weights[f"{name}.weight"], draw(st.sampled_from(rules)), dtype)
        found[key] = (value,)
    if isinstance(found.get("up.weight", (None,))[0], Factors) and draw(st.booleans()):
        found["up.bias"] = (Bias(1.5, random(draw, shape.inner)),)
    if draw(st.booleans()):
        name = draw(st.sampled_from(("tokens", "head")))
        rows = torch.tensor(draw(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=4, unique=True)))
        deltas = tuple(p for p in found.get(f"{name}.weight", ()) if isinstance(p, Factors))
        found[f"{name}.weight"] = (Rows(rows, random(draw, len(rows), shape.width)), *deltas)
    if shared and draw(st.booleans()):
        found["norm.weight"] = (Value(random(draw, shape.width) + 0.5),)
    return Adapter(dict(sorted(found.items())), digest)


def level_weight(draw: Any, one: Adapter) -> float:
    parts = [p for parts in one.parts.values() for p in parts]
    plain = all(isinstance(p, Bias) or (isinstance(p, Factors) and p.magnitude is None) for p in parts)
    return draw(st.sampled_from([1.0, 1.0, 0.5, 0.0, -1.25] if plain else [1.0, 1.0, 0.0]))  # type: ignore[no-any-return]


@st.composite
def batches(draw: Any, *, is_weighted: bool = True) -> Batch:
    """Rows over a tree of at most three levels, in any order, each with level weights of its own."""
    shape = Batch(draw(st.integers(2, 9)), draw(st.integers(2, 12)), [])
    root = adapter(draw, shape, "root", shared=True)
    middles = [adapter(draw, shape, f"middle {at}") for at in range(draw(st.integers(1, 3)))]
    leaves = [
        (draw(st.sampled_from(middles)), adapter(draw, shape, f"leaf {at}")) for at in range(draw(st.integers(1, 4)))
    ]
    root_weight = draw(st.sampled_from([1.0, 1.0, 0.0]))
    for _ in range(draw(st.integers(1, 7))):
        middle, leaf = draw(st.sampled_from(leaves))
        path = [root, middle, leaf][: draw(st.integers(1, 3))]
        weights = [root_weight, *(level_weight(draw, one) if is_weighted else 1.0 for one in path[1:])]
        shape.rows.append(list(zip(path, weights, strict=True)))
    return shape


def one_row(case: Batch, at: int) -> tuple[Tensor, float]:
    """A row's outputs, every edit applied in float64; and what float32 itself costs with these weights."""
    model = case.model(torch.float64)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for adapter_, weight in case.rows[at]:
        if weight:
            for name, edits in adapter_.step(weight).edits.items():
                state[name] = exact(state[name], edits)
    model.load_state_dict(state)
    narrow = case.model()
    narrow.load_state_dict(state)
    ids = case.ids()[at : at + 1]
    with torch.inference_mode():
        expected = model(ids)
        return expected, chains.relative(narrow(ids), expected)


def roundings(case: Batch) -> float:
    """What float32 itself costs in the row where it costs most: a norm of two values makes little much."""
    return max(one_row(case, at)[1] for at in range(len(case.rows)))


EXAMPLES = settings(max_examples=examples(40), deadline=None, suppress_health_check=[HealthCheck.too_slow])


@EXAMPLES
@given(case=batches())
def test_each_row_is_the_float64_function_of_its_path(case: Batch) -> None:
    model = case.model()
    before = chains.state_digest(model)
    batch = MixedBatch(model, Nodes(model))
    batch.set(case.rows)
    with torch.inference_mode():
        found = model(case.ids())
    for at in range(len(case.rows)):
        expected, rounding = one_row(case, at)
        assert chains.relative(found[at : at + 1], expected) < 2e-5 + 4 * rounding, at
    batch.remove()
    assert chains.state_digest(model) == before


@EXAMPLES
@given(first=batches(), data=st.data())
def test_a_batch_after_another_is_as_if_it_were_the_first(first: Batch, data: st.DataObject) -> None:
    rows = data.draw(st.permutations(first.rows))
    model = first.model()
    nodes = Nodes(model)
    batch = MixedBatch(model, nodes)
    batch.set(first.rows)
    with torch.inference_mode():
        found = model(first.ids())
        batch.set(rows)
        if data.draw(st.booleans()):
            batch.remove()
            nodes.forget()
            assert nodes.nbytes == 0
            batch.set(rows)
        again = model(first.ids())
    fresh_model = first.model()
    fresh = MixedBatch(fresh_model, Nodes(fresh_model))
    fresh.set(rows)
    with torch.inference_mode():
        assert chains.relative(again, fresh_model(first.ids())) < 1e-6 + 4 * roundings(replace(first, rows=rows))
    for at, row in enumerate(rows):
        if row is first.rows[at]:
            assert chains.relative(again[at], found[at]) < 2e-5 + 4 * one_row(first, at)[1]


@EXAMPLES
@given(case=batches())
def test_versions_that_come_in_a_later_batch_join_those_that_are_there(case: Batch) -> None:
    model = case.model()
    batch = MixedBatch(model, Nodes(model))
    for count in range(1, len(case.rows) + 1):  # each brings what the ones before did not have
        batch.set(case.rows[:count])
    fresh_model = case.model()
    MixedBatch(fresh_model, Nodes(fresh_model)).set(case.rows)
    with torch.inference_mode():
        assert chains.relative(model(case.ids()), fresh_model(case.ids())) < 1e-6 + 4 * roundings(case)
    batch.remove()
    with torch.inference_mode():
        assert torch.equal(model(case.ids()), case.model()(case.ids()))


@EXAMPLES
@given(case=batches(is_weighted=False), lengths=st.lists(st.integers(1, 6), min_size=7, max_size=7))
def test_packed_segments_take_a_path_each(case: Batch, lengths: list[int]) -> None:
    lengths = lengths[: len(case.rows)]
    ids = torch.arange(sum(lengths)).view(1, -1) % VOCABULARY
    packed, alone = (Pointwise(case.width, case.inner) for _ in range(2))
    usable = [[(without_conv(one), weight) for one, weight in row] for row in case.rows]
    batch = MixedBatch(packed, Nodes(packed))
    batch.set(usable, lengths)
    with torch.inference_mode():
        found = packed(ids)
        start = 0
        for row, length in zip(usable, lengths, strict=True):
            merges = MergedWeights(alone)
            merges.merge(programs_of(row))
            here = ids[:, start : start + length]
            merged = alone(here)
            rounding = chains.relative(merged, copy.deepcopy(alone).double()(here))
            assert chains.relative(found[:, start : start + length], merged) < 2e-5 + 4 * rounding
            merges.restore()
            start += length


class Pointwise(Net):
    """The net with a convolution of one token, so that a token's output depends on the token alone."""

    def __init__(self, width: int, inner: int) -> None:
        torch.manual_seed(width * 100 + inner)
        super().__init__(width, inner)
        self.conv = nn.Conv1d(inner, width, 1)
        self.eval()


def without_conv(one: Adapter) -> Adapter:
    return Adapter({name: parts for name, parts in one.parts.items() if "conv" not in name}, one.digest)
