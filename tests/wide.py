"""A wide Llama on disk, of values that cost little to make."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

from loratree_registry.tensor_files.checkpoint import INDEX


def write_wide(directory: Path, config: transformers.LlamaConfig, file_of: Callable[[str], str]) -> Path:
    """Writes a Llama in bfloat16, each tensor into the file that `file_of` names; a tied head is left out."""
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(directory)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in transformers.LlamaForCausalLM(config).state_dict().items()}
    if config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    memory = (torch.rand(max(shape.numel() for shape in shapes.values())) - 0.5).bfloat16()
    places = {name: file_of(name) for name in shapes}
    for file in sorted(set(places.values())):
        names = [name for name in shapes if places[name] == file]
        tensors = {name: memory[: shapes[name].numel()].clone().view(shapes[name]) for name in names}
        save_file(tensors, directory / file, metadata={"format": "pt"})
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return directory
