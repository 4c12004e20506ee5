"""Every field of PEFT's LoraConfig, its default, and the form of a config that digests use; standard library only."""

from collections.abc import Mapping
from typing import Any, Final

from loratree_registry.core.digests import canonical_json
from loratree_registry.errors import Invalid, listed

PEFT_VERSION: Final = "0.21.2"  # the version that DEFAULTS lists; a test compares them
MAX_CONFIG: Final = 1024 * 1024

DEFAULTS: Final[dict[str, Any]] = {
    "alora_invocation_tokens": None,
    "alpha_pattern": {},
    "arrow_config": None,
    "auto_mapping": None,
    "base_model_name_or_path": None,
    "bias": "none",
    "corda_config": None,
    "ensure_weight_tying": False,
    "eva_config": None,
    "exclude_modules": None,
    "fan_in_fan_out": False,
    "inference_mode": False,
    "init_lora_weights": True,
    "kasa_config": None,
    "layer_replication": None,
    "layers_pattern": None,
    "layers_to_transform": None,
    "loftq_config": {},
    "lora_alpha": 8,
    "lora_bias": False,
    "lora_dropout": 0.0,
    "lora_ga_config": None,
    "megatron_config": None,
    "megatron_core": "megatron.core",
    "modules_to_save": None,
    "monteclora_config": None,
    "peft_type": None,
    "peft_version": None,
    "qalora_group_size": 16,
    "r": 8,
    "rank_pattern": {},
    "revision": None,
    "runtime_config": None,
    "target_modules": None,
    "target_parameters": None,
    "task_type": None,
    "trainable_token_indices": None,
    "use_bdlora": None,
    "use_dora": False,
    "use_qalora": False,
    "use_rslora": False,
    "velora_config": None,
}

# What names a place or a session, not the adapter.
_SESSION: Final = frozenset(
    {"auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "runtime_config"}
)
# What PEFT only asks "is it in there?", and saves in another order from run to run.
_SETS: Final = frozenset(
    {"target_modules", "target_parameters", "exclude_modules", "modules_to_save", "layers_to_transform"}
)


def canonical_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a PEFT config that belongs to the adapter: fields that differ from PEFT's defaults, sorted by name.

    What names a place or a session is dropped, and lists that PEFT uses as sets are sorted, so that saving again
    changes nothing. Raises Invalid for what is not a JSON object of at most 1 MiB that RFC 8785 can write.
    """
    if not isinstance(config, Mapping) or not all(isinstance(key, str) for key in config):
        raise Invalid("adapter_config.json is not a JSON object: save the adapter again with save_pretrained")
    kept = {key: _set(key, config[key]) for key in sorted(config) if key not in _SESSION and differs(key, config[key])}
    try:
        size = len(canonical_json(kept))
    except (ValueError, RecursionError) as error:
        raise Invalid(f"adapter_config.json holds a value that JSON has no exact form for: {error}") from error
    if size > MAX_CONFIG:
        raise Invalid(f"adapter_config.json has {size} bytes of settings, at most {MAX_CONFIG} are allowed")
    return kept


def full_config(config: Mapping[str, Any], *, base_model: str) -> dict[str, Any]:
    """An adapter_config.json with every field that PEFT writes, from a canonical config.

    Readers other than PEFT ask for r and lora_alpha even where they are the defaults.
    """
    written = {field: default for field, default in DEFAULTS.items() if field not in ("peft_version", "runtime_config")}
    return {**written, **config, "base_model_name_or_path": base_model, "inference_mode": True}


def differs(field: str, value: object) -> bool:
    """Tells whether `value` says more than PEFT's default: null, false and an empty list or object say nothing new."""
    default = DEFAULTS.get(field)
    nothing = value is None or value is False or value in ([], {})
    if nothing and default in (None, False, {}):
        return False
    return value != default or isinstance(value, bool) != isinstance(default, bool)


def unknown_fields(config: Mapping[str, Any]) -> list[str]:
    """The fields of `config` that PEFT's LoraConfig does not have and that are set, sorted."""
    return sorted(field for field in config if field not in DEFAULTS and differs(field, config[field]))


def _set(field: str, value: Any) -> Any:
    if field not in _SETS or not isinstance(value, list):
        return value
    kinds = {type(item) for item in value}
    if kinds - {str} and kinds - {int}:
        shown = listed([ascii(item)[:80] for item in value], limit=5)
        raise Invalid(f"adapter_config.json has a {field} that is not a list of names or of numbers: {shown}")
    return sorted(set(value))
