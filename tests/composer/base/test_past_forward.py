"""Layers whose weight a model reads without calling them: the table, transformers' own source, and PEFT."""

import ast
import copy
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor, nn

from loratree_composer.base.manifest import manifest_of_module
from loratree_composer.base.past_forward import READ
from loratree_registry.core.manifest import PAST_FORWARD
from tests import tiny
from tests.peft_adapters import fill
from tests.peft_bases import quiet

# Reading these says nothing of the values.
NOT_VALUES = {"dtype", "device", "shape", "size", "data", "requires_grad", "dim", "ndim"}
# Methods that no usual forward runs, by the beginnings of their names.
NOT_FORWARD = (
    "__init__",
    "_init_weights",
    "init_",
    "initialize_",
    "tie_weights",
    "_tie_weights",
    "get_input_embeddings",
    "set_",
    "resize_",
    "_resize_",
    "remove_weight_norm",
    "apply_weight_norm",
    "_rescale_layers",
)
# Read and not in READ: token embeddings, which are called as well (in Gemma 4 and Qwen 4, for another input than ids).
CALLED = {"embed_tokens"}


_READS_OWN = re.compile(r"self(\.\w+|\[\d+\])+\.weight\b(?!\.(dtype|device|shape|size|data)\b)")


def readings() -> Iterator[tuple[str, str]]:
    """Each (class, layer) of transformers' models whose weight a method reads without calling the layer too."""
    for file in sorted((Path(transformers.__file__).parent / "models").glob("*/modeling_*.py")):
        source = file.read_text(encoding="utf-8")
        if not _READS_OWN.search(source):
            continue  # parsing every model takes half a minute
        tree = ast.parse(source)
        parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
        for cls in (node for node in tree.body if isinstance(node, ast.ClassDef)):
            for method in (node for node in cls.body if isinstance(node, ast.FunctionDef)):
                if not method.name.startswith(NOT_FORWARD):
                    yield from ((cls.name, layer) for layer in _read_in(method, parents))


def _read_in(method: ast.FunctionDef, parents: dict[ast.AST, ast.AST]) -> Iterator[str]:
    called = {ast.unparse(node.func) for node in ast.walk(method) if isinstance(node, ast.Call)}
    for node in ast.walk(method):
        if not (isinstance(node, ast.Attribute) and node.attr == "weight"):
            continue
        around, layer = parents[node], ast.unparse(node.value)
        if isinstance(around, ast.Attribute) and around.attr in NOT_VALUES:
            continue
        if layer.startswith("self.") and layer not in called and "(" not in layer:
            yield layer.removeprefix("self.").replace("[", ".").replace("]", "")


def test_the_table_has_every_layer_that_transformers_reads() -> None:
    known = {(cls, layer) for layer, classes in READ.items() for cls in classes}
    missing = {(cls, layer) for cls, layer in readings() if layer.rpartition(".")[2] not in CALLED} - known
    assert not {entry for entry in missing if "." not in entry[1] or entry[1].split(".")[1].isdigit()}


def test_the_table_names_classes_that_exist() -> None:
    source = "".join(
        file.read_text(encoding="utf-8")
        for file in sorted((Path(transformers.__file__).parent / "models").glob("*/modeling_*.py"))
    )
    missing = {cls for classes in READ.values() for cls in classes if f"class {cls}(" not in source}
    assert not missing


def mamba() -> nn.Module:
    config = transformers.MambaConfig(vocab_size=96, hidden_size=32, num_hidden_layers=1, state_size=4)
    return transformers.MambaForCausalLM(config)


def wavlm() -> nn.Module:
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "intermediate_size": 40,
    }
    convolutions: dict[str, Any] = {"conv_dim": (8, 8), "conv_kernel": (5, 3), "conv_stride": (4, 2)}
    settings: dict[str, Any] = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    return transformers.WavLMModel(transformers.WavLMConfig(**sizes, **convolutions, **settings))


def encoder(kind: str) -> nn.Module:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 40}
    config = getattr(transformers, f"{kind}Config")(vocab_size=96, **sizes)
    model: nn.Module = getattr(transformers, f"{kind}Model")(config)
    return model


def clip() -> nn.Module:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 40}
    return transformers.CLIPVisionModel(transformers.CLIPVisionConfig(image_size=16, patch_size=8, **sizes))


class Custom(nn.Module):
    """A convolution of one's own, under a name that some models read past its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1d = nn.Conv1d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, 4, length]"""
        y: Tensor = self.conv1d(x)
        return y


def hidden(model: nn.Module) -> Tensor:
    found = model(tiny.tokens(length=9))
    tensor = found.logits if hasattr(found, "logits") else found.last_hidden_state
    assert isinstance(tensor, Tensor)
    return tensor


def waves(model: nn.Module) -> Tensor:
    found: Tensor = model(torch.randn(2, 400, generator=torch.Generator().manual_seed(3))).last_hidden_state
    return found


def pictures(model: nn.Module) -> Tensor:
    found: Tensor = model(torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))).last_hidden_state
    return found


def signals(model: nn.Module) -> Tensor:
    found: Tensor = model(torch.randn(2, 4, 9, generator=torch.Generator().manual_seed(3)))
    return found


CASES: list[Any] = [
    pytest.param(mamba, "dt_proj", hidden, False, id="mamba-dt_proj"),
    pytest.param(mamba, "in_proj", hidden, True, id="mamba-in_proj"),
    pytest.param(wavlm, "q_proj", waves, False, id="wavlm-q_proj"),
    pytest.param(lambda: encoder("Bert"), "position_embeddings", hidden, True, id="bert-position_embeddings"),
    pytest.param(lambda: encoder("Roberta"), "position_embeddings", hidden, True, id="roberta-position_embeddings"),
    pytest.param(lambda: encoder("DebertaV2"), "query_proj", hidden, True, id="deberta-query_proj"),
    pytest.param(clip, "position_embedding", pictures, True, id="clip-position_embedding"),
    pytest.param(Custom, "conv1d", signals, True, id="custom-conv1d"),
]


@pytest.mark.parametrize(("make", "layer", "run", "acts"), CASES)
def test_pefts_adapter_acts_where_the_manifest_says_so(
    make: Callable[[], nn.Module], layer: str, run: Callable[[nn.Module], Tensor], acts: bool
) -> None:
    torch.manual_seed(0)
    model = make().eval()
    marked = {
        p.kind.endswith(f"{PAST_FORWARD})") for p in manifest_of_module(model).parameters if f"{layer}.weight" in p.name
    }
    with quiet(), torch.no_grad():
        tuned = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(r=2, target_modules=[layer]))
        fill(tuned)
        difference = (run(tuned.eval()) - run(model)).abs().max()
    assert (difference > 1e-6, marked) == (acts, {not acts})
