"""The main job as a user types it."""

import json
import subprocess
import sys
from pathlib import Path

import peft
import torch
import transformers

from tests import tiny
from tests.cli.conftest import CHAIN, LEAF, Filled, Shell

ADDED_WITHOUT_TORCH = "import sys, loratree_cli.main as m; sys.argv=['loratree','ls']; m.cli(standalone_mode=False); "


def test_ls_lists_the_bases_and_the_children_of_a_path(shell: Shell) -> None:
    assert shell("ls").stdout.splitlines()[1].split("\t")[:2] == ["tiny", "LlamaForCausalLM"]
    nodes = json.loads(shell("ls", "tiny/medicine", "--json").stdout)
    assert [(node["path"], node["level"], node["head"]) for node in nodes] == [
        ("tiny/medicine/cardiology", "subdomain", 1)
    ]


def test_ls_loads_no_torch(shell: Shell) -> None:
    code = (
        ADDED_WITHOUT_TORCH + "assert not {'torch', 'transformers', 'numpy', 'alembic', 'pydantic'} & set(sys.modules)"
    )
    environment = {"LORATREE_HOME": str(shell.home), "PATH": ""}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_tree_draws_every_node_with_its_head(shell: Shell) -> None:
    drawn = shell("tree", "tiny").stdout
    assert [line.split()[-3:] for line in drawn.splitlines()][-1] == ["alice", "user", "@1"]
    assert len(drawn.splitlines()) == 1 + len(CHAIN)


def test_resolve_prints_the_whole_chain_as_json(shell: Shell) -> None:
    resolution = json.loads(shell("resolve", LEAF, "--json").stdout)
    assert [(link["path"], link["version"], link["ranks"], link["scales"]) for link in resolution["chain"]] == [
        (path, 1, [rank], [2.0]) for path, rank in CHAIN
    ]
    assert [link["pin"]["path"] for link in resolution["chain"]] == [None, *(path for path, _ in CHAIN[:-1])]
    assert {link["pin"]["found"] for link in resolution["chain"]} == {"explicit"}
    assert resolution["stale"] is False
    assert resolution["composition"].startswith("sha256:")


def test_publishing_the_same_directory_again_stores_nothing(shell: Shell, filled: Filled) -> None:
    before = shell.state()
    again = shell("publish", filled.adapters["tiny/medicine"], "tiny/medicine", "--parent", "base", "--json")
    assert json.loads(again.stdout)["created"] is False
    assert shell.state() == before
    text = shell("publish", filled.adapters["tiny/medicine"], "tiny/medicine", "--parent", "base").stderr
    assert "already published, nothing stored; it is pinned to tiny" in text


def test_merged_flattened_and_peft_give_the_same_logits(shell: Shell, filled: Filled, tmp_path: Path) -> None:
    shell("compose", LEAF, "--mode", "merge", "--out", tmp_path / "merged")
    shell("compose", LEAF, "--mode", "flatten", "--out", tmp_path / "flat")
    tokens = tiny.tokens()
    base = transformers.AutoModelForCausalLM.from_pretrained(filled.base)
    with torch.no_grad():
        merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(tokens).logits
        flat = peft.PeftModel.from_pretrained(base, tmp_path / "flat")(tokens).logits
    assert (merged - flat).abs().max() <= 1e-5 * merged.abs().max()
    document = json.loads((tmp_path / "merged" / "loratree.json").read_text())
    assert document["composition"] == json.loads(shell("resolve", LEAF, "--json").stdout)["composition"]


def test_an_adapter_trained_on_a_composition_is_pinned_by_its_lockfile(shell: Shell, tmp_path: Path) -> None:
    parent = "tiny/medicine/cardiology"
    shell("compose", parent, "--mode", "merge", "--out", tmp_path / "composed")
    trained = tiny.adapter(tmp_path / "composed", tmp_path / "bob", seed=9, rank=2)
    published = json.loads(shell("publish", trained, f"{parent}/diagnosis/bob", "--json").stdout)
    assert published["version"]["pin"] | {"digest": None} == {
        "path": parent,
        "version": 1,
        "digest": None,
        "found": "lockfile",
    }


def test_a_chain_goes_stale_when_an_ancestor_moves_and_follow_takes_the_new_one(
    shell: Shell, filled: Filled, tmp_path: Path
) -> None:
    newer = tiny.adapter(filled.base, tmp_path / "newer", seed=77, rank=8)
    shell("publish", newer, "tiny/medicine", "--parent", "base")
    pinned = json.loads(shell("resolve", LEAF, "--json").stdout)
    assert [link["stale"] for link in pinned["chain"]] == [False, True, False, False]
    assert pinned["stale"] is True
    followed = json.loads(shell("resolve", LEAF, "--follow", "latest", "--json").stdout)
    assert [link["version"] for link in followed["chain"]] == [2, 1, 1, 1]
    assert followed["composition"] != pinned["composition"]


def test_aliases_are_set_listed_moved_and_removed(shell: Shell) -> None:
    shell("alias", "set", "tiny/medicine", "stable", "1")
    assert json.loads(shell("alias", "ls", "tiny/medicine", "--json").stdout)[0]["version"] == 1
    conflict = shell("alias", "set", "tiny/medicine", "stable", "1", "--expected", "0", check=False)
    assert conflict.returncode == 1
    shell("alias", "rm", "tiny/medicine", "stable")
    assert json.loads(shell("alias", "ls", "tiny/medicine", "--json").stdout) == []


def test_lineage_leads_from_the_leaf_to_the_base(shell: Shell) -> None:
    edges = json.loads(shell("lineage", LEAF, "--json").stdout)["edges"]
    assert [edge["parent"] for edge in edges] == [*(f"{path}@1" for path, _ in reversed(CHAIN[:-1])), None]


def test_pull_gives_back_an_adapter_that_peft_loads(shell: Shell, filled: Filled, tmp_path: Path) -> None:
    shell("pull", "tiny/medicine@1", "--out", tmp_path / "pulled")
    tokens = tiny.tokens()
    logits = []
    for directory in (tmp_path / "pulled", filled.adapters["tiny/medicine"]):
        base = transformers.AutoModelForCausalLM.from_pretrained(filled.base)
        with torch.no_grad():
            logits.append(peft.PeftModel.from_pretrained(base, directory)(tokens).logits)
    assert torch.equal(*logits)


def test_every_command_answers_help_with_an_example(shell: Shell) -> None:
    from loratree_cli.main import COMMANDS

    for name in COMMANDS:
        assert "Usage: loratree" in shell(name, "--help").stdout


def test_a_pulled_adapter_keeps_its_pin_when_it_is_published_again(shell: Shell, tmp_path: Path) -> None:
    version = json.loads(shell("show", f"{LEAF}@1", "--json").stdout)
    shell("pull", f"{LEAF}@1", "--out", tmp_path / "pulled")
    sibling = LEAF.replace("alice", "bob")
    again = json.loads(shell("publish", tmp_path / "pulled", sibling, "--json").stdout)["version"]
    assert again["digest"] == version["digest"]
    elsewhere = shell("publish", tmp_path / "pulled", "tiny/law", check=False)
    assert elsewhere.returncode == 1
    assert f"which is not above tiny/law: publish it below {LEAF.rpartition('/')[0]}" in elsewhere.stderr


def test_an_out_that_is_a_link_or_the_folder_that_one_stands_in(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    shell("pull", "tiny/medicine@1", "--out", tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "adapter_config.json").is_file()
    (tmp_path / "here").mkdir()
    for command in (["pull", "tiny/medicine@1"], ["compose", "tiny/medicine", "--mode", "flatten"]):
        refused = shell(*command, "--out", ".", check=False, cwd=tmp_path / "here")
        assert refused.returncode == 1
        assert "the folder that this command runs in" in refused.stderr
    assert list((tmp_path / "here").iterdir()) == []


def test_what_was_written_before_is_said_to_be_there_already(shell: Shell, tmp_path: Path) -> None:
    for command, says in (
        (["compose", LEAF, "--mode", "flatten"], "it was there already, and is whole"),
        (["pull", LEAF], "as it was before, and is whole"),
    ):
        out = tmp_path / command[0]
        out.mkdir()  # an empty folder is none yet
        first, second = (shell(*command, "--out", out) for _ in range(2))
        assert (says in first.stderr, says in second.stderr) == (False, True), command
        assert first.stdout == second.stdout


def test_an_alias_to_follow_that_no_level_has_is_told(shell: Shell, tmp_path: Path) -> None:
    assert "warning" not in shell("resolve", LEAF, "--follow", "latest").stderr
    done = shell("resolve", LEAF, "--follow", "stabel")
    assert f"warning: no level of {LEAF} has the alias 'stabel', they have none: each is at its pin" in done.stderr
    shell("alias", "set", "tiny/medicine", "stable", "1")
    done = shell("resolve", LEAF, "--follow", "stabel", "--json")
    assert "the alias 'stabel' (did you mean 'stable'?), they have stable: each is at its pin" in done.stderr
    done = shell("compose", LEAF, "--mode", "flatten", "--out", tmp_path / "flat", "--follow", "stabel")
    assert "(did you mean 'stable'?)" in done.stderr
    assert "warning" not in shell("resolve", LEAF, "--follow", "stable").stderr
