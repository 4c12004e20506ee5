"""`show` says what an adapter is made of, and what a base is."""

import json
import re
import subprocess
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


@pytest.fixture
def mixed(shell: Shell, filled: Filled, tmp_path: Path) -> Shell:
    """Below tiny/mixed: a DoRA, an rsLoRA with a saved module, and a LoRA whose config names nothing."""
    for name, config in (("dora", {"use_dora": True}), ("rs", {"use_rslora": True, "modules_to_save": ["lm_head"]})):
        shell("publish", tiny.adapter(filled.base, tmp_path / name, **config), f"tiny/mixed/{name}")
    unnamed = tiny.adapter(filled.base, tmp_path / "unnamed", rank=2)
    config = json.loads((unnamed / "adapter_config.json").read_text())
    (unnamed / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    shell("publish", unnamed, "tiny/mixed/unnamed")
    return shell


def paths_of(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line.split("\t")[0].removeprefix("tiny/") for line in done.stdout.splitlines()[1:]]


def test_a_listing_says_the_kind_the_rank_and_how_the_pin_was_found(mixed: Shell) -> None:
    names, *rows = [line.split("\t") for line in mixed("ls", "tiny/mixed").stdout.splitlines()]
    assert names[3:7] == ["kind", "rank", "trained on", "found"]
    assert [row[3:7] for row in rows] == [
        ["DoRA", "4", "tiny", "explicit"],
        ["rsLoRA, saved modules", "4", "tiny", "explicit"],
        ["LoRA", "2", "tiny", "assumed"],
    ]
    nodes = json.loads(mixed("ls", "tiny/mixed", "--json").stdout)
    assert [(node["kinds"], node["ranks"], node["pin"]["found"]) for node in nodes] == [
        *((["DoRA"], [4], "explicit"), (["rsLoRA", "saved modules"], [4], "explicit"), (["LoRA"], [2], "assumed"))
    ]
    assert json.loads(mixed("tree", "tiny/mixed", "--json").stdout)[1:] == nodes
    drawn = [line.split(maxsplit=1)[1] for line in mixed("tree", "tiny/mixed").stdout.splitlines()[1:]]
    assert drawn == ["dora subdomain @1 DoRA", "rs subdomain @1 rsLoRA, saved modules", "unnamed subdomain @1 assumed"]
    shown = json.loads(mixed("show", "tiny/mixed/rs", "--json").stdout)
    assert shown["versions"][0]["kinds"] == shown["kinds"] == ["rsLoRA", "saved modules"]
    assert json.loads(mixed("show", "tiny/mixed/rs@1", "--json").stdout)["kinds"] == shown["kinds"]


def test_a_narrow_listing_leaves_out_the_aliases_first_and_then_the_level(mixed: Shell) -> None:
    mixed("alias", "set", "tiny/mixed/dora", "stable", "1")
    for columns, names in {
        60: "level, trained on, found, aliases",
        80: "level, trained on, aliases",
        120: None,
    }.items():
        screen = " ".join(on_terminal(mixed.home, "ls", "tiny/mixed", columns=columns).split())
        left_out = re.search("left out: ([^;]*);", screen)
        assert (left_out and left_out[1]) == names, columns
        assert all(word in screen for word in ("rsLoRA, saved modules", "tiny/mixed/unnamed")), columns


def test_a_listing_is_filtered_by_kind_and_by_how_the_pin_was_found(mixed: Shell) -> None:
    assert paths_of(mixed("ls", "tiny", "--below", "--kind", "DoRA")) == ["mixed/dora"]
    assert paths_of(mixed("ls", "tiny", "--below", "--kind", "rslora", "--kind", "saved-modules")) == ["mixed/rs"]
    assert paths_of(mixed("ls", "tiny/mixed", "--found", "assumed")) == ["mixed/unnamed"]
    assert len(paths_of(mixed("ls", "tiny", "--below", "--found", "assumed", "--found", "explicit"))) == 7
    assert len(paths_of(mixed("ls", "tiny", "--below"))) == 8
    assert [node["path"] for node in json.loads(mixed("ls", "tiny", "--below", "--kind", "dora", "--json").stdout)] == [
        "tiny/mixed/dora"
    ]
    first = mixed("ls", "tiny", "--below", "--found", "explicit", "--limit", "1")
    assert (paths_of(first), "this is the first" in first.stderr) == (["medicine"], True)


def test_a_filter_that_nothing_passes_says_so_and_prints_nothing(mixed: Shell) -> None:
    done = mixed("ls", "tiny", "--kind", "dora")
    assert (done.stdout, done.stderr) == (
        *("", "no node directly below tiny has such a head; --below reads those at any depth\n"),
    )
    assert mixed("ls", "tiny", "--below", "--kind", "experts").stderr == "no node below tiny has such a head\n"
    assert mixed("ls", "tiny", "--kind", "dora", "--json").stdout == "[]\n"
    for option in (["--below"], ["--kind", "dora"], ["--found", "assumed"]):
        refused = mixed("ls", *option, check=False)
        assert (refused.returncode, "go with a PATH" in refused.stderr) == (2, True), option
    assert "'dra' is not one of 'lora', 'dora'" in mixed("ls", "tiny", "--kind", "dra", check=False).stderr


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
