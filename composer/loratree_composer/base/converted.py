"""Converted checkpoints: transformers renames, fuses or computes their tensors when it loads the model."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from loratree_composer.base.sharing import tensors
from loratree_registry.errors import Invalid, listed
from loratree_registry.tensor_files.checkpoint import RESAVE, Checkpoint


def is_converted(module: nn.Module, checkpoint: Checkpoint) -> bool:
    """Return whether a checkpoint has other names than its model and transformers knows how to convert them.

    A checkpoint without the tensors that transformers computes and never saves counts too (Marian's positions).
    """
    from transformers import PreTrainedModel
    from transformers.conversion_mapping import get_model_conversion_mapping

    if not isinstance(module, PreTrainedModel):
        return False
    stored, names = checkpoint.types().keys(), tensors(module).keys()
    if stored <= names:
        return not never_saved(module).isdisjoint(names - stored)
    return bool(get_model_conversion_mapping(module, add_legacy=False))


def never_saved(module: nn.Module) -> set[str]:
    """Return the tensors that `save_pretrained` leaves out because the model computes them when it is built."""
    return set(getattr(module, "_keys_to_ignore_on_save", None) or ())


def load_model(directory: Path, model_class: type[nn.Module], **loading: Any) -> nn.Module:
    """Load the whole model of a checkpoint with transformers: on the CPU, in the dtype that its config names.

    `loading` are other arguments of from_pretrained, such as dtype and device_map.
    Raises Invalid if a tensor is missing, is unexpected or has another shape.
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
    problems += [f"{name} is unexpected" for name in sorted(report["unexpected_keys"])]
    problems += [f"{name} has another shape" for name in sorted(map(str, report["mismatched_keys"]))]
    if problems:
        raise Invalid(f"its tensors are not those of {model_class.__name__}: {listed(problems, limit=5)}; {RESAVE}")
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
