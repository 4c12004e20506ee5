"""The fields and defaults of PEFT's LoraConfig, and the form of a config that digests cover; standard library only."""

import re
from collections.abc import Mapping
from typing import Any, Final

from loratree_registry.core.digests import canonical_json
from loratree_registry.errors import Invalid, listed

PEFT_VERSION: Final = "0.21.2"  # DEFAULTS lists the fields of this version; a test compares them
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

# These fields describe a place or a session, not the adapter.
_SESSION: Final = frozenset(
    {"auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "runtime_config"}
)
# PEFT only tests membership in these lists, and the order in which it saves them changes from run to run.
_SETS: Final = frozenset(
    {"target_modules", "target_parameters", "exclude_modules", "modules_to_save", "layers_to_transform"}
)


def canonical_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that belong to the adapter: the fields that differ from PEFT's defaults, sorted by name.

    Fields that describe a place or a session are dropped, and lists that PEFT uses as sets are sorted, so that saving
    again changes nothing. Raises Invalid unless `config` is a JSON object that RFC 8785 can write in at most 1 MiB.
    """
    if not isinstance(config, Mapping) or not all(isinstance(key, str) for key in config):
        raise Invalid("adapter_config.json is not a JSON object: save the adapter again with save_pretrained")
    own = {key: _sort(key, config[key]) for key in sorted(config) if key not in _SESSION and differs(key, config[key])}
    try:
        size = len(canonical_json(own))
    except (ValueError, RecursionError) as error:
        raise Invalid(f"adapter_config.json holds a value that JSON has no exact form for: {error}") from error
    if size > MAX_CONFIG:
        raise Invalid(f"adapter_config.json has {size} bytes of settings, at most {MAX_CONFIG} are allowed")
    return own


def full_config(config: Mapping[str, Any], *, base_model: str | None) -> dict[str, Any]:
    """Return an adapter_config.json with every field that PEFT writes, from a canonical config.

    Readers other than PEFT need r and lora_alpha even if the values are PEFT's defaults.
    """
    written = {field: default for field, default in DEFAULTS.items() if field not in ("peft_version", "runtime_config")}
    return {**written, **config, "base_model_name_or_path": base_model, "inference_mode": True}


def differs(field: str, value: object) -> bool:
    """Return whether `value` differs from PEFT's default. Null, false, [] and {} all equal an empty default."""
    default = DEFAULTS.get(field)
    is_empty = value is None or value is False or value in ([], {})
    if is_empty and default in (None, False, {}):
        return False
    return value != default or isinstance(value, bool) != isinstance(default, bool)


def unknown_fields(config: Mapping[str, Any]) -> list[str]:
    """Return the fields of `config` that PEFT's LoraConfig does not have and that have a value, sorted."""
    return sorted(field for field in config if field not in DEFAULTS and differs(field, config[field]))


# Words in the names of settings that change what an adapter computes, as those of PEFT do.
_CHANGING: Final = re.compile(
    r"^use_|_(config|pattern|type)$|(^|_)(alpha|bias|experts?|init|layers?|modules?|parameters?|ranks?|scal(e|ing)|weights?)(_|$)"
)


def describing_fields(config: Mapping[str, Any]) -> list[str]:
    """Return the unknown fields that describe the adapter and change nothing, such as `transformers_version`, sorted.

    A field that a later PEFT wrote may change what the adapter computes, and so may a field with a name like those of
    PEFT's own settings.
    """
    if _parse_version(config.get("peft_version")) > _parse_version(PEFT_VERSION):
        return []
    return [field for field in unknown_fields(config) if not _CHANGING.search(field.lower())]


def _parse_version(version: object) -> list[int]:
    numbers = re.match(r"\d{1,9}(\.\d{1,9})*", version) if isinstance(version, str) else None
    return [int(number) for number in numbers[0].split(".")] if numbers else []


def _sort(field: str, value: Any) -> Any:
    """Sort a list that PEFT uses as a set; return any other value unchanged."""
    if field not in _SETS or not isinstance(value, list):
        return value
    kinds = {type(item) for item in value}
    if kinds - {str} and kinds - {int}:
        shown = listed([ascii(item)[:80] for item in value], limit=5)
        raise Invalid(f"adapter_config.json has a {field} that is not a list of names or of numbers: {shown}")
    return sorted(set(value))
