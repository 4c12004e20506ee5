"""The kinds of an adapter: `LoRA` alone, `DoRA` and `rsLoRA`, `LoRA` with `saved modules`."""

from collections.abc import Mapping
from typing import Any, Final, Literal, get_args

Kind = Literal[
    "LoRA",
    "DoRA",
    "rsLoRA",
    "experts",
    "parameters",
    "biases of LoRA",
    "biases",
    "saved modules",
    "token rows",
    "whole values",
]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

# The fields of a config that tell a kind; a canonical config has them only where they differ from PEFT's defaults.
TELLING: Final = (
    "use_dora",
    "use_rslora",
    "target_parameters",
    "lora_bias",
    "bias",
    "modules_to_save",
    "trainable_token_indices",
)


def kinds_of(config: Mapping[str, Any], *, ranks: list[int], rules: Mapping[str, int]) -> list[Kind]:
    """Return what an adapter is made of, as far as its config and its summary tell it, in the order of KINDS."""
    parameters = config.get("target_parameters") or []
    is_scaled = bool(config.get("use_dora") or config.get("use_rslora"))
    has: dict[Kind, bool] = {
        "LoRA": bool(ranks) and not is_scaled,
        "DoRA": bool(ranks and config.get("use_dora")),
        "rsLoRA": bool(ranks and config.get("use_rslora")),
        "experts": any("expert" in name for name in parameters),
        "parameters": any("expert" not in name for name in parameters),
        "biases of LoRA": bool(config.get("lora_bias")),
        "biases": config.get("bias", "none") != "none",
        "saved modules": bool(config.get("modules_to_save")),
        "token rows": bool(config.get("trainable_token_indices")),
    }
    is_explained = has["biases"] or has["saved modules"] or has["token rows"]
    has["whole values"] = "override" in rules and not is_explained
    return [kind for kind in KINDS if has[kind]]
