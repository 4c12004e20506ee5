"""The kind of an adapter in words: `LoRA`, `DoRA, rsLoRA`, `LoRA, biases, saved modules`."""

from loratree_registry.core.records import Version


def kind_text(version: Version) -> str:
    """Say what an adapter is made of, as far as its config and its summary tell it; what is usual is `LoRA` alone."""
    config = version.config
    scaled = [word for word, field in (("DoRA", "use_dora"), ("rsLoRA", "use_rslora")) if config.get(field)]
    low_rank = (scaled or ["LoRA"]) if version.summary.ranks else []
    parameters = config.get("target_parameters") or []
    extras = {
        "experts": any("expert" in name for name in parameters),
        "parameters": any("expert" not in name for name in parameters),
        "biases of LoRA": bool(config.get("lora_bias")),
        "biases": config.get("bias", "none") != "none",
        "saved modules": bool(config.get("modules_to_save")),
        "token rows": bool(config.get("trainable_token_indices")),
    }
    whole = ("biases", "saved modules", "token rows")
    is_explained = any(extras[word] for word in whole) or "override" not in version.summary.rules
    words = [*low_rank, *(word for word, has in extras.items() if has), *([] if is_explained else ["whole values"])]
    return ", ".join(words)
