import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from loratree_composer.base.files import BaseFiles
from loratree_composer.base.manifest import manifest_of_module, read_base
from loratree_registry.errors import Invalid, NotFound
from loratree_registry.tensor_files.checkpoint import open_checkpoint
from loratree_registry.tensor_files.comparison import has_names, holds_base
from tests import peft_bases, tiny
from tests.composer import chains
from tests.composer.conftest import Tree

WEIGHTS = "model.safetensors"


@pytest.fixture
def base(llama: Tree, tmp_path: Path) -> Path:
    """A copy of the llama base that a test may spoil."""
    return Path(shutil.copytree(llama.base, tmp_path / "copy"))


def edit_config(base: Path, **changes: object) -> None:
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | changes))


def edit_tensors(base: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(base / WEIGHTS)
    change(tensors)
    save_file(tensors, base / WEIGHTS, metadata={"format": "pt"})


def test_a_manifest_says_what_each_parameter_is(llama: Tree, gpt2: Tree) -> None:
    parameter = llama.manifest.by_name()["model.layers.0.self_attn.k_proj.weight"]
    assert (parameter.shape, parameter.dtype, parameter.kind, parameter.tied_to) == ((16, 32), "F32", "Linear", None)
    assert (llama.manifest.architecture, llama.manifest.vocabulary_size) == ("LlamaForCausalLM", 96)
    kinds = {parameter.kind for parameter in llama.manifest.parameters}
    assert kinds == {"Linear", "Embedding", "LlamaRMSNorm"}
    assert gpt2.manifest.by_name()["transformer.h.0.attn.c_attn.weight"].kind == "Conv1D"
    assert gpt2.manifest.by_name()["lm_head.weight"].tied_to == "transformer.wte.weight"


def test_a_checkpoint_and_the_model_loaded_from_it_have_one_manifest(tree: Tree) -> None:
    assert manifest_of_module(chains.load(tree.base)) == tree.manifest


def test_sharding_otherwise_gives_the_same_base(tree: Tree, tmp_path: Path) -> None:
    chains.load(tree.base).save_pretrained(tmp_path, max_shard_size="20KB")  # type: ignore[operator]
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert read_base(tmp_path) == tree.manifest


def test_one_changed_value_or_another_dtype_is_another_base(llama: Tree, tmp_path: Path) -> None:
    model = chains.load(llama.base)
    with torch.no_grad():
        model.get_parameter("model.norm.weight")[3] += 1e-6
    assert manifest_of_module(model).digest != llama.manifest.digest
    assert read_base(tiny.llama(tmp_path / "half", dtype=torch.bfloat16)).digest != llama.manifest.digest


def test_a_copy_of_a_tied_tensor_on_disk_is_the_tied_tensor_if_its_bytes_are_the_same(tmp_path: Path) -> None:
    base = tiny.llama(tmp_path / "tied", tie_word_embeddings=True)
    once = read_base(base)
    edit_tensors(base, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}))
    assert read_base(base) == once
    edit_tensors(base, lambda tensors: tensors.pop("model.embed_tokens.weight"))
    assert read_base(base) == once
    edit_tensors(base, lambda tensors: tensors.update({"model.embed_tokens.weight": tensors["lm_head.weight"] + 1}))
    assert read_base(base).ties() == {}  # so transformers loads them


def test_persistent_buffers_belong_to_the_base_and_others_do_not() -> None:
    module = nn.Sequential(nn.BatchNorm1d(3))
    module.register_buffer("scratch", torch.zeros(2), persistent=False)
    manifest = manifest_of_module(module)
    assert manifest.by_name()["0.running_mean"].kind == "BatchNorm1d"
    assert manifest.by_name()["0.num_batches_tracked"].dtype == "I64"
    assert "scratch" not in manifest.by_name()


def test_parameters_made_of_one_tensor_are_tied() -> None:
    first, second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    second.weight = nn.Parameter(first.weight.data)
    tied = manifest_of_module(nn.ModuleList([first, second])).by_name()["1.weight"]
    assert (tied.tied_to, tied.sha256) == ("0.weight", None)


def test_every_name_and_shape_that_is_not_the_models_is_listed(base: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["extra.weight"] = tensors.pop("model.norm.weight")
        tensors["lm_head.weight"] = torch.zeros(97, 32)

    edit_tensors(base, spoil)
    with pytest.raises(Invalid) as caught:
        read_base(base)
    problems = ("model.norm.weight is missing", "extra.weight is unexpected", "lm_head.weight is [97, 32], expected")
    assert all(problem in str(caught.value) for problem in (*problems, "save_pretrained"))


def test_pickled_weights_are_refused_by_name(base: Path) -> None:
    (base / WEIGHTS).rename(base / "pytorch_model.bin")
    with pytest.raises(Invalid, match=r"pickled weights \(pytorch_model\.bin\)"):
        read_base(base)


def test_a_truncated_shard_is_refused(base: Path) -> None:
    content = (base / WEIGHTS).read_bytes()
    (base / WEIGHTS).write_bytes(content[:-100])
    with pytest.raises(Invalid, match=r"model\.safetensors"):
        read_base(base)


@pytest.mark.parametrize(
    ("index", "sentence"),
    [
        ({"weight_map": {"a": "../other/model.safetensors"}}, "expected a plain file name"),
        ({"weight_map": {"a": "model.bin"}}, "must name safetensors files beside it"),
        ({"weight_map": {}}, "got none"),
        ({"weight_map": {"a": "gone.safetensors"}}, r"gone\.safetensors cannot be read"),
        ({"weight_map": {"lm_head.weight": "part.safetensors"}}, "disagree over"),
        ([], "is not an index"),
    ],
)
def test_an_index_that_does_not_describe_its_files_is_refused(base: Path, index: object, sentence: str) -> None:
    (base / WEIGHTS).rename(base / "part.safetensors")
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(Invalid, match=sentence):
        read_base(base)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"architectures": ["GigaForCausalLM"]}, "'GigaForCausalLM', which this transformers does not know"),
        ({"architectures": ["AutoConfig"]}, "does not know"),
        ({"architectures": None}, r"names no architecture: load it with the class .* \(LlamaForCausalLM to write"),
        ({"architectures": ["LlamaModel", "LlamaForCausalLM"]}, "names several architectures: load it with the class"),
        ({"architectures": [], "model_type": ["llama"]}, r"no architecture: .* \(AutoModelForCausalLM to write text"),
        ({"hidden_size": "wide"}, "cannot be built"),
        ({"num_attention_heads": 5}, "cannot be built|are not those of"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantised"),
        ({"model_type": "giga", "auto_map": {"AutoConfig": "giga.Config"}}, "cannot be built"),
    ],
)
def test_a_config_that_no_known_model_has_is_refused(base: Path, changes: dict[str, object], sentence: str) -> None:
    edit_config(base, **changes)
    (base / "giga.py").write_text("raise SystemExit('remote code ran')")
    with pytest.raises(Invalid, match=sentence):
        read_base(base)


def test_a_folder_that_is_no_model_is_refused_in_one_sentence(base: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="not a directory"):
        read_base(Path("meta-llama/Llama-3.1-8B"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(Invalid, match=r"no config\.json"):
        read_base(tmp_path / "empty")
    (base / "config.json").write_text("{")
    with pytest.raises(Invalid, match="cannot be read"):
        read_base(base)
    edit_config_only = tiny.llama_config()
    edit_config_only.architectures = ["LlamaForCausalLM"]
    edit_config_only.save_pretrained(tmp_path / "empty")
    with pytest.raises(Invalid, match="holds neither"):
        read_base(tmp_path / "empty")


def test_a_model_on_the_meta_device_has_no_manifest() -> None:
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(tiny.llama_config())
    with pytest.raises(Invalid, match="holds no values"):
        manifest_of_module(model)


@pytest.fixture
def mixtral(tmp_path: Path) -> Path:
    """A checkpoint that holds each expert's matrices apart, where the model has one tensor for all experts."""
    torch.manual_seed(0)
    peft_bases.mixtral().save_pretrained(tmp_path / "mixtral", max_shard_size="20KB")  # type: ignore[operator]
    return tmp_path / "mixtral"


def test_a_checkpoint_that_is_laid_out_otherwise_than_its_model_is_read_as_the_model(mixtral: Path) -> None:
    manifest = read_base(mixtral)
    assert manifest == manifest_of_module(chains.load(mixtral))
    assert "model.layers.0.mlp.experts.gate_up_proj" in manifest.by_name()
    assert not manifest.by_name().keys() >= open_checkpoint(mixtral).types().keys()


def test_a_tensor_that_is_missing_from_such_a_checkpoint_is_named(mixtral: Path) -> None:
    config = json.loads((mixtral / "config.json").read_text())
    (mixtral / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(Invalid, match=r"tensors are not those of MixtralForCausalLM: model\.layers\.2\..* is missing"):
        read_base(mixtral)


def test_reading_such_a_checkpoint_draws_no_progress_bar(mixtral: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    read_base(mixtral)
    assert capsys.readouterr().err == ""
    chains.load(mixtral)
    assert capsys.readouterr().err != ""  # the caller's own bars stay


def test_a_renamed_layer_alone_is_read_too(tmp_path: Path) -> None:
    config = transformers.GPTNeoXConfig(
        vocab_size=96, hidden_size=32, intermediate_size=56, num_hidden_layers=1, num_attention_heads=4
    )
    transformers.GPTNeoXForCausalLM(config).save_pretrained(tmp_path)
    manifest = read_base(tmp_path)
    assert manifest.stored_names == {"embed_out.weight": "lm_head.weight"}
    assert manifest.parameters == manifest_of_module(chains.load(tmp_path)).parameters


def test_no_tensor_of_such_a_checkpoint_is_read_alone(mixtral: Path) -> None:
    files = BaseFiles(read_base(mixtral), open_checkpoint(mixtral))
    assert files.read("lm_head.weight").shape == (96, 16)
    with pytest.raises(Invalid, match="none can be read alone; keep the pristine weights in memory"):
        files.read("model.layers.0.mlp.experts.gate_up_proj")


def test_what_transformers_computes_and_never_saves_belongs_to_the_base(tmp_path: Path) -> None:
    peft_bases.marian().save_pretrained(tmp_path)  # type: ignore[operator]
    manifest, model = read_base(tmp_path), transformers.MarianMTModel.from_pretrained(tmp_path)
    assert manifest == manifest_of_module(model)
    assert (
        "model.encoder.embed_positions.weight" in manifest.by_name().keys() - open_checkpoint(tmp_path).types().keys()
    )
    assert not has_names(tmp_path, manifest)
    model._keys_to_ignore_on_save = set()
    model.save_pretrained(tmp_path)
    assert read_base(tmp_path) == manifest
    assert holds_base(tmp_path, manifest)
    edit_tensors(tmp_path, lambda tensors: tensors.pop("model.encoder.layers.0.fc1.weight"))
    with pytest.raises(Invalid, match=r"encoder\.layers\.0\.fc1\.weight is missing"):
        read_base(tmp_path)
