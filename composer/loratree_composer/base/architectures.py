"""The class of a base, as its config.json names it."""

from typing import Any


def explain_architectures(config: dict[str, Any]) -> str:
    """Return what is wrong with the `architectures` of a config, and with which class to save the model."""
    from transformers.models.auto import modeling_auto

    names, kind = config.get("architectures"), config.get("model_type")
    stated = "several architectures" if isinstance(names, list) and len(names) > 1 else "no architecture"
    heads = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind) if isinstance(kind, str) else None
    return (
        f"{stated}: load it with the class that its adapters are trained on ({heads or 'AutoModelForCausalLM'} to "
        "write text, AutoModel to embed it), save it with save_pretrained, and add that folder"
    )
