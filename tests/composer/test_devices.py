"""The arithmetic on every device of the machine; on a GPU also against TF32 and reduced-precision reductions."""

from collections.abc import Iterator

import pytest
import torch

from loratree_composer.adapters.adapter import programs_of
from loratree_composer.arithmetic.edits import Add
from loratree_composer.arithmetic.merge import merged
from loratree_composer.base.sharing import tensors
from loratree_composer.live.merged_weights import MergedWeights
from loratree_composer.live.pristine import PristinePlace
from loratree_composer.live.stack import Stack
from tests import tiny
from tests.composer import chains
from tests.composer.conftest import Tree
from tests.composer.reference_sums import excess, random_delta

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture
def lowest_precision() -> Iterator[None]:
    torch.set_float32_matmul_precision("medium")
    torch.backends.cuda.matmul.allow_fp16_accumulation = True
    yield
    torch.backends.cuda.matmul.allow_fp16_accumulation = False
    torch.set_float32_matmul_precision("highest")


@pytest.mark.usefixtures("lowest_precision")
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_merge_is_within_the_bound_at_the_lowest_precision(device: torch.device, dtype: torch.dtype) -> None:
    weight = torch.randn(700, 512, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    delta = random_delta(700, 512, 120, seed=1)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        result = merged(weight, [Add(delta)], name="w")
    assert (result.dtype, result.device.type) == (dtype, device.type)
    assert excess(result.cpu(), weight.cpu(), [(delta.a, delta.b, 1.0)]) <= 1


@pytest.mark.parametrize("pristine", ["host", "device"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_merging_stays_in_place_and_restores_bit_for_bit(
    tree: Tree, device: torch.device, dtype: torch.dtype, pristine: PristinePlace
) -> None:
    model = chains.load(tree.base, dtype).to(device)
    before, places = chains.state_digest(model), [tensor.data_ptr() for tensor in tensors(model).values()]
    merges = MergedWeights(model, pristine=pristine)
    chain = [(chains.read(path, tree.manifest), 1.0) for path in tree.chain]
    for depth in (3, 1, 2):
        merges.merge(programs_of(chain[:depth]))
        assert chains.state_digest(model) != before
    merges.restore()
    assert chains.state_digest(model) == before
    assert [tensor.data_ptr() for tensor in tensors(model).values()] == places


def test_merged_and_stacked_agree(tree: Tree, device: torch.device) -> None:
    merged_model, stacked = (chains.load(tree.base).to(device) for _ in range(2))
    deltas = programs_of([(chains.read(path, tree.manifest), 1.0) for path in tree.chain])
    MergedWeights(merged_model).merge(deltas)
    Stack(stacked, deltas)
    with torch.inference_mode():
        first, second = (model(tiny.tokens().to(device)).logits for model in (merged_model, stacked))
    assert first.device.type == device.type
    assert chains.relative(second, first) < 1e-5
