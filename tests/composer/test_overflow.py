"""A chain with a sum that no tensor of the base can hold is refused by every form of it, with one sentence."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import peft
import pytest
import torch

from loratree_composer import Composer, compose
from loratree_composer.arithmetic import merge as merging
from loratree_composer.arithmetic.edits import Add
from loratree_composer.arithmetic.lowrank import LowRank
from loratree_composer.arithmetic.merge import check_deltas
from loratree_composer.base.manifest import read_base
from loratree_registry.errors import Invalid
from loratree_registry.workspace.base_locations import remember_base
from tests import tiny
from tests.composer import chains
from tests.composer.conftest import Catalog, Tree, open_catalog

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# A = B = this value in every factor of rank 2: the product overflows; it does not.
TOO_LARGE = {"float32": 1e20, "bfloat16": 1e20, "float16": 200.0}
LARGE = {"float32": 1e18, "bfloat16": 1e18, "float16": 40.0}
WEIGHT = {"float32": 1e3, "bfloat16": 1e3, "float16": 30.0}


@dataclass(frozen=True)
class Bench:
    """A registry with a base in one dtype, in which a test publishes adapters of constant factors."""

    catalog: Catalog
    dtype: torch.dtype
    folder: Path

    def publish(self, path: str, value: float, parent: str = "base", **config: object) -> None:
        def fill(model: peft.PeftModel) -> None:
            for name, parameter in model.named_parameters():
                if "lora_" in name and "magnitude" not in name:
                    parameter.data.fill_(value)

        directory = tiny.adapter(
            self.catalog.tree.base,
            self.folder / path.replace("/", "-"),
            rank=2,
            alpha=2,
            targets=["down_proj"],
            change=fill,
            **config,  # type: ignore[arg-type]
        )
        self.catalog.publish(directory, path, parent=parent)

    def forms(self, ref: str, weights: dict[str, float] | None = None) -> dict[str, Callable[[], object]]:
        catalog = self.catalog
        composer = Composer(chains.load(catalog.tree.base, self.dtype), catalog.registry, home=catalog.home)
        files = partial(compose, catalog.registry, ref, home=catalog.home, weights=weights)
        return {
            "merge": lambda: composer.merge(ref, weights=weights),
            "use": lambda: composer.use(ref, weights=weights),
            "files": lambda: files("merge", self.folder / "merged"),
            "flatten": lambda: files("flatten", self.folder / "flat"),
        }

    def refusals(self, ref: str, weights: dict[str, float] | None = None) -> dict[str, str]:
        said = {}
        for form, run in self.forms(ref, weights).items():
            with pytest.raises(Invalid) as refused:
                run()
            said[form] = str(refused.value)
        assert not (self.folder / "merged").exists()
        assert not (self.folder / "flat").exists()
        return said


@pytest.fixture(params=DTYPES)
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    dtype = DTYPES[request.param]
    base = tiny.llama(tmp_path / "base", dtype=dtype)
    tree = Tree(base, read_base(base), [])
    catalog = open_catalog(tmp_path / "home", tree)
    catalog.registry.add_base("tiny", tree.manifest)
    remember_base(catalog.home, tree.manifest.digest, base)
    yield Bench(catalog, dtype, tmp_path)
    catalog.registry.close()


def sentence(bench: Bench) -> str:
    return (
        f"model.layers.0.mlp.down_proj.weight would hold values that are not finite in {bench.dtype} with this chain: "
        "a scale or a level weight is too large, or the adapter is broken"
    )


def name_of(bench: Bench) -> str:
    return str(bench.dtype).removeprefix("torch.")


def test_every_form_refuses_a_product_that_overflows(bench: Bench) -> None:
    bench.publish("tiny/huge", TOO_LARGE[name_of(bench)])
    assert bench.refusals("tiny/huge") == dict.fromkeys(("merge", "use", "files", "flatten"), sentence(bench))


def test_every_form_refuses_a_level_weight_that_makes_the_product_overflow(bench: Bench) -> None:
    value = LARGE[name_of(bench)]
    bench.publish("tiny/large", value)
    weights = {"tiny/large": WEIGHT[name_of(bench)]}
    assert bench.refusals("tiny/large", weights) == dict.fromkeys(("merge", "use", "files", "flatten"), sentence(bench))
    for run in bench.forms("tiny/large").values():
        run()  # without the weight the sum is finite, and every form takes it


def test_every_form_refuses_a_sum_of_levels_that_overflows_although_each_level_does_not(bench: Bench) -> None:
    top = torch.finfo(bench.dtype).max
    value = (top * 0.7 / 2) ** 0.5  # two such products do not fit
    bench.publish("tiny/half", value)
    bench.publish("tiny/half/other", value, parent="tiny/half")
    for run in bench.forms("tiny/half").values():
        run()
    for folder in ("merged", "flat"):
        (bench.folder / folder).rename(bench.folder / f"{folder}-half")
    said = bench.refusals("tiny/half/other")
    assert said == dict.fromkeys(said, sentence(bench))


def test_a_stack_of_dora_refuses_what_a_merge_of_it_refuses(bench: Bench) -> None:
    bench.publish("tiny/huge", TOO_LARGE["float32"] if bench.dtype != torch.float16 else 1e4, use_dora=True)
    forms, said = bench.forms("tiny/huge"), []
    for form in ("merge", "use", "files"):
        try:
            forms[form]()
            said.append("")
        except Invalid as refused:
            said.append(str(refused))
    assert len(set(said)) == 1
    assert said[0] == (sentence(bench) if bench.dtype != torch.float16 else "")  # in float32 its norm is finite


def test_a_refused_use_leaves_the_bare_base(bench: Bench) -> None:
    bench.publish("tiny/huge", TOO_LARGE[name_of(bench)])
    catalog, model = bench.catalog, chains.load(bench.catalog.tree.base, bench.dtype)
    state, before = chains.state_digest(model), chains.logits(model)
    composer = Composer(model, catalog.registry, home=catalog.home)
    with pytest.raises(Invalid, match="not finite"):
        composer.use("tiny/huge")
    assert (chains.state_digest(model), composer.current) == (state, None)
    assert torch.equal(chains.logits(model), before)


def test_no_form_sums_anything_where_the_bounds_rule_an_overflow_out(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check costs nothing then: bounds are computed when an adapter is read, not for each switch."""
    composer = Composer(chains.load(catalog.tree.base), catalog.registry, home=catalog.home)
    composer.use(catalog.leaf)
    composer.restore(release=False)
    largest = LowRank.largest
    monkeypatch.setattr(LowRank, "largest", lambda _: pytest.fail("a bound was computed again"))
    monkeypatch.setattr("loratree_composer.live.stack.merged", lambda *_, **__: pytest.fail("a sum was computed"))
    composer.use(catalog.leaf, weights={catalog.path(1): 0.5})
    composer.merge(catalog.path(2))
    monkeypatch.setattr(LowRank, "largest", largest)
    monkeypatch.setattr(merging, "merged", lambda *_, **__: pytest.fail("a sum was computed"))
    compose(catalog.registry, catalog.leaf, "flatten", tmp_path / "flat", home=catalog.home)


def test_a_convolution_in_groups_is_checked_group_by_group() -> None:
    a, b = torch.full((4, 6), 1e20), torch.full((8, 2), 1e20)
    with pytest.raises(Invalid, match=r"conv\.weight would hold values that are not finite"):
        check_deltas([Add(LowRank(a, b), "Conv1d", 2)], torch.float32, name="conv.weight")
    check_deltas([Add(LowRank(a, b / 1e10), "Conv1d", 2)], torch.float32, name="conv.weight")
    b[4:] = 0  # the product of one group overflows, and the other's does not
    with pytest.raises(Invalid, match="not finite"):
        check_deltas([Add(LowRank(a, b), "Conv1d", 2)], torch.float32, name="conv.weight")


def test_a_bound_is_kept_with_the_factors_and_summed_over_levels(catalog: Catalog) -> None:
    from loratree_composer.adapters.adapter import programs_of
    from loratree_composer.adapters.reader import AdapterReader

    reader = AdapterReader(catalog.registry, catalog.tree.manifest, catalog.home)
    for program in programs_of(reader.load_chain(catalog.registry.resolve(catalog.leaf))).values():
        for edit in (edit for edit in program.joined_edits if isinstance(edit, Add)):
            assert edit.bound is not None
            assert float(edit.delta.delta().abs().max()) <= edit.bound
