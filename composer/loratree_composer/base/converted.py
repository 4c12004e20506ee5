"""Checkpoints laid out otherwise than the model: transformers renames, fuses or computes tensors as it loads them."""

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
    """Tells whether a model's checkpoint has other names than the model, and transformers knows how to turn them.

    So has one that leaves out what transformers computes and never saves, such as Marian's positions.
    """
    from transformers import PreTrainedModel
    from transformers.conversion_mapping import get_model_conversion_mapping

    if not isinstance(module, PreTrainedModel):
        return False
    found, names = checkpoint.types().keys(), tensors(module).keys()
    if found <= names:
        return not never_saved(module).isdisjoint(names - found)
    return bool(get_model_conversion_mapping(module, add_legacy=False))


def never_saved(module: nn.Module) -> set[str]:
    """The tensors that `save_pretrained` leaves out, since the model computes them when it is built."""
    return set(getattr(module, "_keys_to_ignore_on_save", None) or ())


def load_converted(directory: Path, model_class: type[nn.Module]) -> nn.Module:
    """The model of a checkpoint on the CPU, whole, as transformers loads it in the dtype that its config says.

    Raises Invalid where a tensor is missing, unexpected or of another shape.
    """
    loader: Any = model_class
    try:
        with quiet():
            model, found = loader.from_pretrained(
                directory,
                dtype="auto",
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise Invalid(f"transformers cannot load it: {reason}") from error
    problems = [f"{name} is missing" for name in sorted(found["missing_keys"])]
    problems += [f"{name} is unexpected" for name in sorted(found["unexpected_keys"])]
    problems += [f"{name} has another shape" for name in sorted(map(str, found["mismatched_keys"]))]
    if problems:
        raise Invalid(f"its tensors are not those of {model_class.__name__}: {listed(problems, limit=5)}; {RESAVE}")
    assert isinstance(model, nn.Module)
    return model.eval()


def save_converted(model: nn.Module, directory: Path, *, largest: int) -> None:
    """Writes the model as transformers lays it out, in shards of at most `largest` bytes each."""
    saver: Any = model
    with quiet(), torch.no_grad():
        saver.save_pretrained(directory, max_shard_size=largest)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars of transformers inside: those of the command line are for terminals alone."""
    import transformers

    logging: Any = transformers.utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
