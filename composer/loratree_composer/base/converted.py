"""Converted checkpoints: transformers fuses or computes their tensors when it loads the model."""

import contextlib
import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import torch
from torch import nn

from loratree_composer.base.meta_model import MAX_CONFIG, without_kernels
from loratree_registry.core.text import shortened
from loratree_registry.disk.plain_files import read_plain
from loratree_registry.errors import Invalid, listed
from loratree_registry.tensor_files.checkpoint import INDEX, RESAVE, WEIGHTS, Checkpoint

_GENERATION: Final = "generation_config.json"


def load_model(checkpoint: Checkpoint, described: nn.Module, **loading: Any) -> nn.Module:
    """Load the whole model of a checkpoint with transformers: on the CPU, in the dtype that its config names.

    `described` is the model on the meta device (`meta_model`). `loading` are other arguments of from_pretrained, such
    as dtype and device_map. Transformers sees the checkpoint's own files and nothing that lies beside them, such as an
    adapter. Tensors that the model has no place for are ignored. Raises Invalid if a tensor is missing or has another
    shape.
    """
    loader: Any = type(described)
    config: Any = copy.deepcopy(described.config)
    for name in {field.name for field in dataclasses.fields(config)} & loading.keys() - {"dtype"}:
        setattr(config, name, loading.pop(name))  # as from_pretrained does if it reads the config itself
    directory = checkpoint.directory
    with quiet(), without_kernels(), _only_its_files(checkpoint) as folder:
        try:
            model, report = loader.from_pretrained(
                folder,
                **({"dtype": "auto"} | loading),
                config=config,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
        except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split()).replace(str(folder), str(directory))
            raise Invalid(f"transformers cannot load it: {shortened(reason, 300)}") from error
    model.name_or_path = model.config.name_or_path = str(directory)  # PEFT notes it as what an adapter is trained on
    problems = [f"{name} is missing" for name in sorted(report["missing_keys"])]
    problems += [f"{name} has another shape" for name in sorted(map(str, report["mismatched_keys"]))]
    if problems:
        raise Invalid(
            f"its tensors are not those of {loader.__name__}: {listed(problems, limit=5)}; {RESAVE}", details=problems
        )
    assert isinstance(model, nn.Module)
    return model.eval()


@contextlib.contextmanager
def _only_its_files(checkpoint: Checkpoint) -> Iterator[Path]:
    """Make a folder that holds only links to a checkpoint's tensors, and its generation config, during the block."""
    directory = checkpoint.directory.resolve()
    names = [shard.path.name for shard in checkpoint.shards]
    with TemporaryDirectory(prefix="loratree-") as name:
        folder = Path(name)
        for file in names if names == [WEIGHTS] else (*names, INDEX):
            (folder / file).symlink_to(directory / file)
        if (directory / _GENERATION).exists():
            generation = read_plain(directory / _GENERATION, limit=MAX_CONFIG, remedy=RESAVE)
            (folder / _GENERATION).write_bytes(generation)
        yield folder


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
