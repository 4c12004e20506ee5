"""What a folder holds that is not an adapter as PEFT writes it, and how to get an adapter from it."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from loratree_registry.core.records import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from loratree_registry.disk.plain_files import explain_hub_cache
from loratree_registry.errors import listed
from loratree_registry.workspace.lockfile import LOCKFILE

RESAVE: Final = "save it again with model.save_pretrained(…)"

_CHECKPOINT: Final = re.compile(r"checkpoint-(\d{1,18})")
_PICKLED: Final = re.compile(r"(adapter_model|pytorch_model)\.(bin|pt|pth)")
# The files of other tools: the pattern of a name, what wrote it, and what to do. The first that fits is named.
_TOOLS: Final = tuple(
    (re.compile(pattern), what, remedy)
    for pattern, what, remedy in (
        (
            r"adapter_model-\d{5}-of-\d{5}\.safetensors|adapter_model\.safetensors\.index\.json",
            "an adapter that transformers split into several files",
            "load it with PeftModel.from_pretrained of the model and save it with model.save_pretrained(…)",
        ),
        (
            r"(\d+_)?adapters\.safetensors",
            "an adapter of MLX",
            "fuse it with mlx_lm.fuse, or rename its keys to PEFT's and transpose A and B",
        ),
        (
            r"adapter_\d+\.(pt|bin)",
            "an adapter of torchtune",
            "convert it with torchtune's tune_to_peft_adapter_weights",
        ),
        (
            r"pytorch_lora_weights\.(safetensors|bin)",
            "a LoRA of diffusers",
            "the models of images are not composed, only those that transformers loads",
        ),
        (
            r"lora\.safetensors",
            "an adapter of mistral-finetune",
            "rename its keys to those of the PEFT model and write its adapter_config.json",
        ),
        (r".*\.gguf", "weights of llama.cpp", "publish the folder that they were converted from"),
        (
            r"global_step\d+|zero_to_fp32\.py|zero_pp_rank_.*|bf16_zero_pp_rank_.*",
            "a checkpoint of DeepSpeed, whose weights lie in parts",
            "join them with its zero_to_fp32.py, load them into the PeftModel and save it with "
            "model.save_pretrained(…)",
        ),
        (
            r"pytorch_model_fsdp_\d+|.*\.distcp|\.metadata",
            "a checkpoint of FSDP, whose weights lie in parts",
            "join them with accelerate merge-weights, load them into the PeftModel and save it with "
            "model.save_pretrained(…)",
        ),
        (
            r".*\.nemo|mp_rank_\d+.*|.*\.ckpt",
            "a checkpoint of NeMo, Megatron or Lightning",
            "export the adapter to the form of PEFT with that tool",
        ),
    )
)


def explain_no_config(path: Path, entries: list[str]) -> str:
    """Return why the folder `path` with these names in it, no adapter_config.json among them, is no adapter."""
    if not entries:
        return f"{path} is empty: give the folder that save_pretrained or a Trainer wrote"
    checkpoints = [int(match[1]) for entry in entries if (match := _CHECKPOINT.fullmatch(entry))]
    if checkpoints:
        last = f"checkpoint-{max(checkpoints)}"
        return f"{path} holds a Trainer's checkpoints and no adapter of its own: publish {path / last}, the last one"
    named = [str(path / entry) for entry in entries if (path / entry / ADAPTER_CONFIG).is_file()]
    if named:
        return (
            f"{path} holds no adapter of its own but one in each of {listed(named, limit=5)}: publish one of these, or "
            f"make a manifest of all by `loratree publish --from-dir {path} PATH`"
        )
    if (cache := explain_hub_cache(path)) is not None:
        return cache
    if LOCKFILE in entries:
        return (
            f"{path} is a composition that loratree wrote, and no adapter: publish the adapter that was trained on it"
        )
    if "config.json" in entries:
        return f"{path} holds a whole model and no adapter ({ADAPTER_CONFIG} is missing): add it with loratree base add"
    if (other := _find_tool(path, entries)) is not None:
        return other
    if ADAPTER_WEIGHTS in entries:
        return f"{path} holds {ADAPTER_WEIGHTS} and no {ADAPTER_CONFIG}, which says how to read it: {RESAVE}"
    return f"{path} holds no {ADAPTER_CONFIG}: give the folder that save_pretrained or a Trainer wrote"


def explain_no_weights(path: Path, entries: list[str]) -> str:
    """Return why the folder `path`, which holds an adapter_config.json and no weights, is no adapter."""
    pickled = [name for name in entries if _PICKLED.fullmatch(name)]
    if pickled:
        return (
            f"{path} holds pickled weights ({listed(pickled)}), which can run code when they are opened: load the "
            "adapter where you trust it and save it with model.save_pretrained(…, safe_serialization=True)"
        )
    if (other := _find_tool(path, entries)) is not None:
        return other
    files = [name for name in entries if name.endswith((".safetensors", ".bin", ".pt", ".pth"))]
    beside = f", only {listed(files, limit=3)}" if files else ""
    return f"{path} holds no {ADAPTER_WEIGHTS}{beside}: {RESAVE}"


def is_of_another_tool(path: Path, entries: list[str]) -> bool:
    """Return whether the folder `path` with these names in it holds what another tool wrote."""
    return _find_tool(path, entries) is not None


def _find_tool(path: Path, entries: Iterable[str]) -> str | None:
    for pattern, what, remedy in _TOOLS:
        for name in entries:
            if pattern.fullmatch(name):
                return f"{path} holds {what} ({name[:60]}) and no {ADAPTER_WEIGHTS} of PEFT: {remedy}"
    return None
