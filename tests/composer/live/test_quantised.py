"""Chains stacked on models that bitsandbytes and torchao have quantised: y = Ŵx + BAx, as PEFT's QLoRA computes it.

Both packages belong to the extra `quantised`; .ci/run installs them beside its environment.
"""

import warnings
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import nn

from loratree_composer import Composer
from loratree_composer.base.quantised import quantised_layers
from loratree_registry.errors import Invalid
from tests import tiny
from tests.composer import chains
from tests.composer.conftest import Catalog, Tree, open_catalog
from tests.peft_bases import quiet


def torchao_type() -> Any:
    """Eight bits a weight."""
    import torchao.quantization

    return torchao.quantization.Int8WeightOnlyConfig()


FOUR_BIT = "bitsandbytes Linear4bit"
CONFIGS: dict[str, Callable[[], Any]] = {
    FOUR_BIT: lambda: transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    ),
    "bitsandbytes Linear8bitLt": lambda: transformers.BitsAndBytesConfig(load_in_8bit=True),
    "torchao Int8Tensor": lambda: transformers.TorchAoConfig(torchao_type()),
}
# Linear8bitLt rounds its inputs to float16 and then to int8, so a rounding error upstream may become a step there.
TOLERANCE = dict.fromkeys(CONFIGS, 1e-5) | {"bitsandbytes Linear8bitLt": 1e-3}


def load(base: Path, how: str) -> nn.Module:
    """The model in `base`, quantised: all linear layers but the head."""
    loader: Any = transformers.AutoModelForCausalLM
    with quiet():
        model: nn.Module = loader.from_pretrained(base, quantization_config=CONFIGS[how](), dtype=torch.float32)
    return model.eval()


def composer(catalog: Catalog, model: nn.Module, **options: Any) -> Composer:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return Composer(model, catalog.registry, home=catalog.home, **options)


def tensors(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Each tensor's object, and how often it was written."""
    return {name: (id(value), value._version) for name, value in (*model.named_parameters(), *model.named_buffers())}


def by_peft(model: Any, adapters: list[Path]) -> nn.Module:
    """PEFT's model with every adapter of the chain active on the quantised layers."""
    names = [f"level{number}" for number in range(len(adapters))]
    with quiet():
        for name, directory in zip(names, adapters, strict=True):
            if isinstance(model, peft.PeftModel):
                model.load_adapter(directory, name)
            else:
                model = peft.PeftModel.from_pretrained(model, directory, name)
        model.base_model.set_adapter(names)
    return model.eval()


@pytest.fixture(autouse=True)
def plain_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without bitsandbytes' kernel for CPUs with AVX512-BF16: it fails on layers narrower than its blocks of 64."""
    import bitsandbytes.backends.cpu.ops
    import bitsandbytes.nn.modules

    for module in (bitsandbytes.nn.modules, bitsandbytes.backends.cpu.ops):
        monkeypatch.setattr(module, "has_avx512bf16", lambda: False)


@pytest.fixture(params=CONFIGS)
def how(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_chain_on_a_quantised_base_is_pefts_sum_and_leaves_no_trace(catalog: Catalog, how: str) -> None:
    model = load(catalog.tree.base, how)
    state, bare = tensors(model), chains.logits(model)
    composed = composer(catalog, model)
    expected = chains.logits(by_peft(load(catalog.tree.base, how), catalog.tree.chain))
    for _ in range(3):  # the third is installed from the stacks that are kept
        composed.use(catalog.leaf)
        assert chains.relative(chains.logits(model), expected) < TOLERANCE[how]
        assert chains.relative(bare, expected) > 0.05
        assert composed.unreached == []
        composed.restore()
        assert torch.equal(chains.logits(model), bare)
    assert tensors(model) == state
    assert composed.memory().stacks > 0


@pytest.mark.parametrize("how", [how for how in CONFIGS if how.startswith("bitsandbytes")])
def test_conv1d_layers_that_were_quantised_take_their_deltas_transposed(gpt2: Tree, tmp_path: Path, how: str) -> None:
    catalog = open_catalog(tmp_path / "home", gpt2)
    with closing(catalog.registry):
        catalog.registry.add_base("tiny", gpt2.manifest)
        for depth, directory in enumerate(gpt2.chain):
            catalog.publish(directory, catalog.path(depth + 1), parent=catalog.path(depth) if depth else "base")
        model = load(gpt2.base, how)
        composer(catalog, model, base="tiny").use(catalog.path(len(gpt2.chain)))
        expected = chains.logits(by_peft(load(gpt2.base, how), gpt2.chain))
        assert chains.relative(chains.logits(model), expected) < TOLERANCE[how]


def test_a_head_and_a_bias_that_are_not_quantised_are_composed_beside_quantised_layers(
    catalog: Catalog, how: str, tmp_path: Path
) -> None:
    adapter = tiny.adapter(
        catalog.tree.base, tmp_path / "saved", targets=["q_proj"], modules_to_save=["lm_head"], change=_shift_head
    )
    catalog.publish(adapter, "tiny/saved", parent="base")
    model = load(catalog.tree.base, how)
    composer(catalog, model).use("tiny/saved")
    expected = chains.logits(by_peft(load(catalog.tree.base, how), [adapter]))
    assert chains.relative(chains.logits(model), expected) < TOLERANCE[how]


def _shift_head(tuned: Any) -> None:
    for name, parameter in tuned.named_parameters():
        if "modules_to_save" in name:
            parameter.data += 0.1


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("DoRA", {"use_dora": True, "targets": ["q_proj"]}),
        ("a whole value", {"modules_to_save": ["q_proj"], "targets": ["v_proj"]}),
    ],
)
def test_edits_that_need_the_weight_itself_are_refused(
    catalog: Catalog, tmp_path: Path, kind: str, options: dict[str, Any]
) -> None:
    catalog.publish(tiny.adapter(catalog.tree.base, tmp_path / "edit", **options), "tiny/edit", parent="base")
    model = load(catalog.tree.base, FOUR_BIT)
    bare, composed = chains.logits(model), composer(catalog, model)
    with pytest.raises(
        Invalid, match=rf"q_proj\.weight is quantised \({FOUR_BIT}\), and only low-rank deltas .*{kind}"
    ):
        composed.use("tiny/edit")
    assert torch.equal(chains.logits(model), bare)
    composed.use(catalog.leaf)


def test_layers_of_a_device_map_run_their_deltas_inside_the_hook(catalog: Catalog) -> None:
    from accelerate.hooks import attach_align_device_hook

    plain, model = load(catalog.tree.base, FOUR_BIT), load(catalog.tree.base, FOUR_BIT)
    attach_align_device_hook(model, execution_device="cpu")
    bare, composed = chains.logits(model), composer(catalog, model)
    composed.use(catalog.leaf)
    composer(catalog, plain).use(catalog.leaf)
    assert torch.equal(chains.logits(model), chains.logits(plain))
    composed.restore()
    assert torch.equal(chains.logits(model), bare)


def test_gradients_flow_through_a_stacked_quantised_layer(catalog: Catalog) -> None:
    """Another level is trained on top of what is stacked, as QLoRA trains."""
    model: Any = load(catalog.tree.base, FOUR_BIT)
    composer(catalog, model).use(catalog.leaf)
    embedded = model.model.embed_tokens(tiny.tokens()).detach().requires_grad_()
    model(inputs_embeds=embedded).logits.sum().backward()
    assert embedded.grad is not None
    assert embedded.grad.abs().max() > 0


def test_what_was_not_compared_is_said(catalog: Catalog, how: str) -> None:
    model = load(catalog.tree.base, how)
    with pytest.warns(UserWarning, match=rf"14 layers are quantised \(.*q_proj is a {how}\): their weights were not"):
        Composer(model, catalog.registry, home=catalog.home)


def test_what_is_not_quantised_is_compared(catalog: Catalog) -> None:
    model: Any = load(catalog.tree.base, FOUR_BIT)
    with torch.no_grad():
        model.model.norm.weight[3] = 2
    with pytest.raises(Invalid, match=r"the model is not the base tiny: model\.norm\.weight has other values"):
        composer(catalog, model)


def test_another_size_is_refused(catalog: Catalog, tmp_path: Path) -> None:
    other = tiny.llama(tmp_path / "other", intermediate_size=64)
    with pytest.raises(Invalid, match=r"layers\.0\.mlp\.down_proj\.weight is \[32, 64\], expected \[32, 56\]"):
        composer(catalog, load(other, FOUR_BIT))


def test_merging_into_quantised_weights_is_refused(catalog: Catalog) -> None:
    model = load(catalog.tree.base, FOUR_BIT)
    state, composed = tensors(model), composer(catalog, model)
    for attempt in (
        lambda: composed.merge(catalog.leaf),
        lambda: composed.use(catalog.leaf, merged=catalog.path(1)),
    ):
        with pytest.raises(Invalid, match=r"q_proj is quantised, and a merge writes floating-point weights: stack the"):
            attempt()
    assert tensors(model) == state
    assert composed.current is None


def test_a_ref_is_loaded_quantised(catalog: Catalog, how: str) -> None:
    with pytest.warns(UserWarning, match="14 layers are quantised"):
        composed = Composer.from_pretrained(
            catalog.leaf,
            catalog.registry,
            home=catalog.home,
            quantization_config=CONFIGS[how](),
            dtype=torch.float32,
        )
    assert len(quantised_layers(composed.model)) == 14
    expected = chains.logits(by_peft(load(catalog.tree.base, how), catalog.tree.chain))
    assert chains.relative(chains.logits(composed.model), expected) < TOLERANCE[how]


def test_a_quantised_embedding_is_refused(catalog: Catalog) -> None:
    import bitsandbytes

    model: Any = chains.load(catalog.tree.base)
    model.model.embed_tokens = bitsandbytes.nn.Embedding8bit(96, 32)
    with pytest.raises(
        Invalid, match=r"on quantised linear layers alone, and model\.embed_tokens is a bitsandbytes Embedding8bit: "
    ):
        composer(catalog, model)


def test_a_config_that_says_quantised_without_a_known_layer_is_refused(catalog: Catalog) -> None:
    model: Any = chains.load(catalog.tree.base)
    model.config.quantization_config = {"quant_method": "unheard of"}
    with pytest.raises(
        Invalid, match="none of its layers is of a known quantiser: load the model without quantization"
    ):
        composer(catalog, model)


def test_each_row_of_a_batch_on_a_quantised_base_is_its_own_paths_stack(catalog: Catalog, how: str) -> None:
    model = load(catalog.tree.base, how)
    state, given = tensors(model), tiny.tokens()
    composed = composer(catalog, model)
    refs = [catalog.leaf, catalog.path(1), catalog.path(2)]
    expected = []
    for at, ref in enumerate(refs):
        composed.use(ref)
        with torch.no_grad():
            expected.append(model(given[at : at + 1]).logits)
    with composed.batch(refs) as batch, torch.no_grad():
        found = model(given).logits
        batch.assign(refs[::-1])
        turned = model(given.flip(0)).logits
        with pytest.raises(Invalid, match="a static batch takes no quantised layer, such as model"):
            composed.batch(refs, static=True).__enter__()
        assert chains.relative(model(given.flip(0)).logits, turned) < TOLERANCE[how]  # the rows are back
        assert composed.unreached == []
        assert [resolution.ref for resolution in batch.resolutions] == refs[::-1]
    for at, one in enumerate(expected):
        assert chains.relative(found[at : at + 1], one) < TOLERANCE[how]
        assert chains.relative(turned.flip(0)[at : at + 1], one) < TOLERANCE[how]
    composed.restore()
    assert tensors(model) == state


def test_a_batch_refuses_edits_that_need_the_quantised_weight(catalog: Catalog, tmp_path: Path) -> None:
    dora = tiny.adapter(catalog.tree.base, tmp_path / "edit", use_dora=True, targets=["q_proj"])
    catalog.publish(dora, "tiny/edit", parent="base")
    model = load(catalog.tree.base, FOUR_BIT)
    composed = composer(catalog, model)
    with composed.batch([catalog.leaf, catalog.path(1)]) as batch:
        with pytest.raises(Invalid, match=rf"q_proj\.weight is quantised \({FOUR_BIT}\), and only low-rank deltas"):
            batch.assign([catalog.leaf, "tiny/edit"])
        assert len(batch.resolutions) == 2
