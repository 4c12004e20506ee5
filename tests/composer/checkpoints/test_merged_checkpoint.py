"""What a chain makes of a checkpoint: transformers loads from it the very values of a live merge."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor, nn

from loratree_composer.adapters.adapter import Adapter, AdapterPart, Bias, Factors, Rows, Value, programs_of
from loratree_composer.arithmetic.program import Program
from loratree_composer.base.manifest import read_base
from loratree_composer.base.untied import reads_tie
from loratree_composer.checkpoints.merged_checkpoint import write_merged
from loratree_composer.live.merged_weights import MergedWeights
from loratree_registry.errors import Invalid
from loratree_registry.tensor_files.checkpoint import open_checkpoint
from tests import peft_bases
from tests.composer.chains import relative
from tests.peft_bases import quiet

HEAD = "lm_head.weight"
EMBEDDINGS = {peft_bases.tied_llama: "model.embed_tokens.weight", peft_bases.gpt2: "transformer.wte.weight"}
Parts = dict[str, tuple[AdapterPart, ...]]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.1


def head_delta() -> AdapterPart:
    return Factors("Linear", 1.5, random(3, 32), random(96, 3))


def row_values() -> AdapterPart:
    return Rows(torch.tensor([90, 3]), random(2, 32))


def saved(model: nn.Module, directory: Path, **options: object) -> Path:
    with quiet():
        model.save_pretrained(directory, **options)  # type: ignore[operator]
    return directory


def loaded(directory: Path, like: nn.Module) -> nn.Module:
    found = type(like).from_pretrained(directory, dtype=next(like.parameters()).dtype)  # type: ignore[attr-defined]
    assert isinstance(found, nn.Module)
    return found


def written(base: Path, programs: Mapping[str, Program], out: Path) -> Path:
    out.mkdir()
    write_merged(open_checkpoint(base), read_base(base), programs, out)
    return out


def programs(parts: Parts) -> dict[str, Program]:
    return programs_of([(Adapter(parts), 1.0)])


def check_equal(found: nn.Module, expected: nn.Module) -> None:
    values = expected.state_dict()
    assert found.state_dict().keys() == values.keys()
    assert [name for name, tensor in found.state_dict().items() if not torch.equal(tensor, values[name])] == []


def check_written_as_live(model: nn.Module, parts: Parts, folder: Path, **options: object) -> nn.Module:
    """Writes the merge of `parts` into the model's checkpoint, and returns what transformers loads from it."""
    base = saved(model, folder / "base", **options)
    found = loaded(written(base, programs(parts), folder / "out"), model)
    live = loaded(base, model)
    MergedWeights(live).merge(programs(parts))
    check_equal(found, live)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_tensor_can_be_replaced_shifted_and_added_to(dtype: torch.dtype, tmp_path: Path) -> None:
    model = peft_bases.gpt2().to(dtype)
    parts: Parts = {
        "transformer.ln_f.weight": (Value(random(32)),),
        "transformer.h.0.attn.c_attn.bias": (Value(random(96)), Bias(0.3, random(96, seed=1))),
        "transformer.h.1.mlp.c_fc.weight": (Factors("Conv1D", 0.7, random(3, 32), random(128, 3), transposed=True),),
        "transformer.wpe.weight": (Rows(torch.tensor([60, 3]), random(2, 32)),),
        "transformer.h.0.mlp.c_fc.bias": (Bias(2.0, random(128)),),
    }
    found = check_written_as_live(model, parts, tmp_path)
    assert {tensor.dtype for tensor in found.state_dict().values()} == {dtype}
    assert torch.equal(found.state_dict()["transformer.wpe.weight"][[60, 3]], random(2, 32).to(dtype))


# Ties


@pytest.mark.parametrize("shards", [None, "20KB"])
@pytest.mark.parametrize("make", EMBEDDINGS)
@pytest.mark.parametrize("side", ["head", "embedding", "embedding replaced", "rows of the head"])
def test_a_name_of_a_tie_is_changed_and_the_other_is_as_it_was(
    side: str, make: Callable[[], nn.Module], shards: str | None, tmp_path: Path
) -> None:
    embedding = EMBEDDINGS[make]
    parts: Parts = {
        "head": {HEAD: (head_delta(),)},
        "embedding": {embedding: (Factors("Embedding", 0.5, random(3, 96), random(32, 3), transposed=True),)},
        "embedding replaced": {embedding: (Value(random(96, 32)),)},
        "rows of the head": {HEAD: (row_values(),)},
    }[side]
    model = make()
    options = {} if shards is None else {"max_shard_size": shards}
    found = check_written_as_live(model, parts, tmp_path, **options).state_dict()
    (changed,) = parts
    (kept,) = {HEAD, embedding} - {changed}
    assert torch.equal(found[kept], model.state_dict()[kept])
    assert relative(found[changed], found[kept]) > 0.05
    read_base(tmp_path / "out")  # whole by its own config, index and names


def test_the_index_counts_the_tensor_that_was_added(tmp_path: Path) -> None:
    base = saved(peft_bases.tied_llama(), tmp_path / "base", max_shard_size="20KB")
    out = written(base, programs({HEAD: (head_delta(),)}), tmp_path / "out")
    checkpoint = open_checkpoint(out)
    document = json.loads((out / "model.safetensors.index.json").read_text())
    assert document["metadata"] == {
        "total_size": sum(shard.header.size - shard.header.data_start for shard in checkpoint.shards),
        "total_parameters": sum(parameter.numel() for parameter in peft_bases.llama().parameters()),
    }
    assert document["weight_map"][HEAD] == document["weight_map"]["model.embed_tokens.weight"]
    assert {path.name for path in out.iterdir()} == {path.name for path in base.iterdir()}


@pytest.mark.parametrize("make", EMBEDDINGS)
def test_a_tie_whose_names_are_changed_alike_stays(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    parts: Parts = {EMBEDDINGS[make]: (row_values(),), HEAD: (row_values(),)}
    found = check_written_as_live(make(), parts, tmp_path)
    assert found.get_output_embeddings().weight is found.get_input_embeddings().weight  # type: ignore[operator]
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "out" / name).stat().st_size == (tmp_path / "base" / name).stat().st_size


def test_a_tie_whose_names_are_changed_alike_and_then_not_is_taken_apart(tmp_path: Path) -> None:
    parts: Parts = {"model.embed_tokens.weight": (row_values(),), HEAD: (row_values(), head_delta())}
    found = check_written_as_live(peft_bases.tied_llama(), parts, tmp_path).state_dict()
    assert not torch.equal(found[HEAD], found["model.embed_tokens.weight"])


def test_a_tie_that_the_checkpoint_stores_under_both_names_is_taken_apart(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    base = saved(peft_bases.tied_llama(), tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    tensors[HEAD] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    out = written(base, programs({HEAD: (head_delta(),)}), tmp_path / "out")
    found = load_file(out / "model.safetensors")
    assert torch.equal(found["model.embed_tokens.weight"], tensors[HEAD])
    assert not torch.equal(found[HEAD], tensors[HEAD])
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False


def test_the_tie_is_denied_in_the_config_inside_that_has_it(tmp_path: Path) -> None:
    sizes: dict[str, object] = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1}
    text = sizes | {"vocab_size": 96, "ffn_dim": 40, "word_embed_proj_dim": 32, "max_position_embeddings": 64}
    config = transformers.Blip2Config(
        vision_config=sizes | {"intermediate_size": 40, "image_size": 8, "patch_size": 4},
        qformer_config=sizes | {"intermediate_size": 40, "encoder_hidden_size": 32, "vocab_size": 96},
        text_config=text | {"model_type": "opt"},
        num_query_tokens=2,
    )
    name = "language_model.model.decoder.embed_tokens.weight"
    check_written_as_live(transformers.Blip2ForConditionalGeneration(config), {name: (row_values(),)}, tmp_path)
    document = json.loads((tmp_path / "out" / "config.json").read_text())
    assert document["text_config"]["tie_word_embeddings"] is False


def test_a_tie_that_the_architecture_insists_on_is_refused_before_any_tensor_is_written(tmp_path: Path) -> None:
    config = transformers.T5Config(
        vocab_size=96, d_model=32, d_kv=8, d_ff=40, num_layers=1, num_heads=4, decoder_start_token_id=0
    )
    base = saved(transformers.T5ForConditionalGeneration(config), tmp_path / "base")
    with pytest.raises(Invalid, match=r"shared\.weight.* cannot be written without that tie"):
        written(base, programs({"decoder.embed_tokens.weight": (row_values(),)}), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").glob("*.safetensors")] == []


def test_a_tie_whose_field_the_forward_reads_is_refused_before_any_tensor_is_written(tmp_path: Path) -> None:
    config = transformers.SwitchTransformersConfig(
        vocab_size=96, d_model=32, d_kv=8, d_ff=40, num_layers=1, num_heads=4, num_experts=2, tie_word_embeddings=True
    )
    base = saved(transformers.SwitchTransformersForConditionalGeneration(config), tmp_path / "base")
    with pytest.raises(
        Invalid, match=r"and Switch\w+ cannot be written without that tie, or would compute something else: put"
    ):
        written(base, programs({HEAD: (head_delta(),)}), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").glob("*.safetensors")] == []


@pytest.mark.parametrize(
    "name", ["Llama", "GPT2", "Gemma", "Gemma3", "Bert", "OPT", "Bloom", "Qwen2", "Cohere", "Mixtral"]
)
def test_the_forward_of_most_models_does_not_read_the_tie(name: str) -> None:
    kinds = {"GPT2": "LMHeadModel", "Bert": "LMHeadModel"}
    config = getattr(transformers, "Gemma3TextConfig" if name == "Gemma3" else f"{name}Config")()
    config.num_hidden_layers = 2
    with torch.device("meta"):
        model = getattr(transformers, name + kinds.get(name, "ForCausalLM"))(config)
    assert not reads_tie(model)


# Checkpoints that are laid out otherwise than the model


def tied_mixtral() -> nn.Module:
    return peft_bases.experts(transformers.MixtralConfig, transformers.MixtralForCausalLM, tie_word_embeddings=True)


def experts_parts() -> Parts:
    factors = Factors("Experts", 1.5, random(4, 3, 24), random(4, 16, 3))
    return {"model.layers.1.mlp.experts.down_proj": (factors,), "model.norm.weight": (Value(random(16)),)}


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "20KB"}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_checkpoint_that_transformers_converts_is_merged_and_laid_out_as_before(
    options: dict[str, object], dtype: torch.dtype, tmp_path: Path
) -> None:
    check_written_as_live(peft_bases.mixtral().to(dtype), experts_parts(), tmp_path, **options)
    types = {name: open_checkpoint(tmp_path / name).types() for name in ("base", "out")}
    assert types["out"] == types["base"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in (tmp_path / "base").iterdir()}
    read_base(tmp_path / "out")


def test_another_model_of_that_layout_is_refused_with_every_tensor(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = saved(peft_bases.mixtral(), tmp_path / "base")
    other = saved(peft_bases.mixtral(), tmp_path / "other")
    (tmp_path / "out").mkdir()
    with pytest.raises(Invalid, match=r"experts\.down_proj has other values.*give the base's own checkpoint"):
        write_merged(open_checkpoint(other), read_base(base), programs(experts_parts()), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_tie_of_that_layout_is_taken_apart_too(tmp_path: Path) -> None:
    found = check_written_as_live(tied_mixtral(), {HEAD: (Value(random(96, 16)),)}, tmp_path).state_dict()
    assert not torch.equal(found[HEAD], found["model.embed_tokens.weight"])
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    read_base(tmp_path / "out")
    parts: Parts = {HEAD: (Value(random(96, 16)),), "model.embed_tokens.weight": (Value(random(96, 16)),)}
    check_written_as_live(tied_mixtral(), parts, tmp_path / "alike")


def test_a_model_with_tensors_that_are_never_saved_is_merged_and_saved_without_them(tmp_path: Path) -> None:
    name = "model.encoder.layers.0.self_attn.q_proj.weight"
    delta = Factors("Linear", 1.5, random(3, 32), random(32, 3))
    check_written_as_live(peft_bases.marian(), {name: (delta,)}, tmp_path)
    assert open_checkpoint(tmp_path / "out").types() == open_checkpoint(tmp_path / "base").types()
    positions = programs({"model.encoder.embed_positions.weight": (Value(random(64, 32)),)})
    with pytest.raises(
        Invalid, match=r"the chain changes model\.encoder\.embed_positions\.weight, which MarianMTModel"
    ):
        written(tmp_path / "base", positions, tmp_path / "lost")
    assert list((tmp_path / "lost").iterdir()) == []
