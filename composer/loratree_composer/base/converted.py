"""Converted checkpoints: transformers fuses or computes their tensors when it loads the model."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from loratree_registry.errors import Invalid, listed
from loratree_registry.tensor_files.checkpoint import RESAVE


def load_model(directory: Path, model_class: type[nn.Module], **loading: Any) -> nn.Module:
    """Load the whole model of a checkpoint with transformers: on the CPU, in the dtype that its config names.

    `loading` are other arguments of from_pretrained, such as dtype and device_map.
    Tensors that the model has no place for are ignored. Raises Invalid if a tensor is missing or has another shape.
    """
    loader: Any = model_class
    try:
        with quiet():
            model, report = loader.from_pretrained(
                directory,
                **({"dtype": "auto"} | loading),
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise Invalid(f"transformers cannot load it: {reason}") from error
    problems = [f"{name} is missing" for name in sorted(report["missing_keys"])]
    problems += [f"{name} has another shape" for name in sorted(map(str, report["mismatched_keys"]))]
    if problems:
        raise Invalid(
            f"its tensors are not those of {model_class.__name__}: {listed(problems, limit=5)}; {RESAVE}",
            details=problems,
        )
    assert isinstance(model, nn.Module)
    return model.eval()


def save_converted(model: nn.Module, directory: Path, *, largest: int) -> None:
    """Write the model in the layout of transformers, in shards of at most `largest` bytes each."""
    saver: Any = model
    with quiet(), torch.no_grad():
        saver.save_pretrained(directory, max_shard_size=largest)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide the progress bars of transformers: the command line may draw bars only on a terminal."""
    import transformers

    logging: Any = transformers.utils.logging
    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()
