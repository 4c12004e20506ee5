"""The files and the names that PEFT's save_pretrained writes; standard library only."""

from typing import Final

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"
PREFIX: Final = "base_model.model."  # of every tensor's key, before the module's name in the base
