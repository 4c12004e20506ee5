"""`show` says what an adapter is made of, and what a base is."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loratree_cli.screens.kinds import kind_text
from loratree_registry.embedded.registry import open_embedded
from loratree_registry.settings import Settings
from tests import tiny
from tests.cli.conftest import LEAF, Filled, Shell
from tests.terminals import on_terminal

ROWS = {"trainable_token_indices": {"embed_tokens": [1, 5]}}
KINDS: dict[str, dict[str, Any]] = {
    "rsLoRA": {"use_rslora": True},
    "DoRA": {"use_dora": True},
    "DoRA, rsLoRA": {"use_dora": True, "use_rslora": True},
    "LoRA, saved modules": {"modules_to_save": ["lm_head"]},
    "LoRA, token rows": ROWS,
    "LoRA, saved modules, token rows": {"modules_to_save": ["lm_head"], **ROWS},
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_unusual_adapter_is_told_by_its_kind(shell: Shell, filled: Filled, tmp_path: Path, kind: str) -> None:
    adapter = tiny.adapter(filled.base, tmp_path / "adapter", **KINDS[kind])
    shell("publish", adapter, LEAF, "--parent", "base")
    assert f"kind\t{kind}\n" in shell("show", LEAF + "@2").stdout
    assert re.search(rf"^kind +{kind}$", on_terminal(shell.home, "show", LEAF + "@2"), re.M)
    _, names, *versions = [line.split("\t") for line in shell("show", LEAF).stdout.splitlines()]
    assert [version[names.index("kind")] for version in versions] == [kind, "LoRA"]
    assert f" {kind} " in on_terminal(shell.home, "show", LEAF, columns=120)


def test_a_base_alone_is_shown_with_its_digest_its_weights_and_its_folder_here(shell: Shell, filled: Filled) -> None:
    base = json.loads(shell("base", "show", "tiny", "--json").stdout)
    fields = dict(line.split("\t") for line in shell("show", "tiny").stdout.splitlines()[1:])
    assert fields["digest"] == base["digest"]
    assert (fields["architecture"], fields["parameters"]) == ("LlamaForCausalLM", f"{base['parameters']:,}")
    assert (fields["stored"], fields["folder here"]) == ("no, its manifest alone", str(filled.base))
    assert fields["tree"] == "4 nodes below"
    assert "version" not in fields
    assert json.loads(shell("show", "tiny", "--json").stdout)["base"] == base
    screen = on_terminal(shell.home, "show", "tiny", columns=200)
    assert [value for value in fields.values() if value not in screen] == []
    shell("base", "push", "tiny", filled.base)
    assert "stored\tyes, its weights too\n" in shell("show", "tiny").stdout
    names, values = [line.split("\t") for line in shell("base", "show", "tiny").stdout.splitlines()]
    assert dict(zip(names, values, strict=True))["digest"] == base["digest"]


@pytest.mark.parametrize(
    ("config", "ranks", "rules", "kind"),
    [
        ({}, [4], {"additive": 14}, "LoRA"),
        ({"bias": "all"}, [4], {"additive": 14, "override": 7}, "LoRA, biases"),
        ({"lora_bias": True}, [4], {"additive": 14}, "LoRA, biases of LoRA"),
        ({"target_parameters": ["mlp.experts.down_proj"]}, [4], {"additive": 2}, "LoRA, experts"),
        ({"target_parameters": ["q_proj.weight"], "use_rslora": True}, [4], {"additive": 2}, "rsLoRA, parameters"),
        ({"modules_to_save": ["score"]}, [], {"override": 1}, "saved modules"),
        ({}, [4], {"additive": 14, "override": 1}, "LoRA, whole values"),
    ],
)
def test_a_kind_names_all_that_config_and_summary_tell(
    shell: Shell, config: dict[str, Any], ranks: list[int], rules: dict[str, int], kind: str
) -> None:
    registry = open_embedded(Settings.from_environment({"LORATREE_HOME": str(shell.home)}))
    version = registry.version(f"{LEAF}@1")
    registry.close()
    assert (
        kind_text(replace(version, config=config, summary=replace(version.summary, ranks=ranks, rules=rules))) == kind
    )
