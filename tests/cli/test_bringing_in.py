"""Bringing in what exists: a base in the hub's cache, a folder of flat adapters, and what is assumed or left out."""

import json
import re
import shutil
from pathlib import Path

import pytest

import loratree

from .conftest import CHAIN, LEAF, Filled, Shell

OTHER = "Qwen/Qwen3-Other-8B"


def flat(folder: Path, filled: Filled, base: str) -> Path:
    """A copy of the rank-2 adapter that names `base` as its base."""
    copied = Path(shutil.copytree(filled.adapters[LEAF], folder))
    config = json.loads((copied / "adapter_config.json").read_text())
    (copied / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": base}))
    return copied


@pytest.fixture
def hub(filled: Filled, tmp_path: Path) -> Path:
    """The base as a snapshot in a cache of the hub, inside the folder that HF_HOME names."""
    repository = tmp_path / "hf" / "hub" / "models--acme-ai--Tiny-1B"
    (repository / "blobs").mkdir(parents=True)
    return Path(shutil.copytree(filled.base, repository / "snapshots" / "0123abc"))


def test_a_snapshot_gives_its_base_the_hubs_name_and_adapters_that_say_it_are_pinned(
    filled: Filled, hub: Path, tmp_path: Path
) -> None:
    shell = Shell(tmp_path / "own")
    refused = shell("base", "add", "own", tmp_path / "hf", check=False)
    assert f"is the hub's cache: give the snapshot of one of its models, {hub}\n" in refused.stderr
    refused = shell("base", "add", "own", hub.parent, check=False)
    assert f"{hub.parent} is a folder of the hub's cache: give the snapshot in it, {hub}\n" in refused.stderr
    added = shell("base", "add", "own", hub)
    assert "its source is acme-ai/Tiny-1B, the name of the folder in the hub's cache\n" in added.stderr
    flat(tmp_path / "adapters" / "x", filled, "acme-ai/Tiny-1B")
    lines = shell("publish", "--from-dir", tmp_path / "adapters", "own").stdout
    (tmp_path / "x.jsonl").write_text(lines)
    report = json.loads(shell("publish", "--manifest", tmp_path / "x.jsonl", "--no-assume", "--json").stdout)
    assert (report["published"], report["assumed"], report["outcomes"][0]["found"]) == (1, 0, "explicit")
    for given in ("me/mine", ""):
        other = Shell(tmp_path / f"other{len(given)}")
        other("base", "add", "own", hub, "--source", given)
        assert json.loads(other("base", "show", "own", "--json").stdout)["source"] == (given or None)


def test_a_base_without_a_source_says_what_that_means(filled: Filled, tmp_path: Path) -> None:
    said = Shell(tmp_path / "own")("base", "add", "own", filled.base).stderr
    assert "it has no source: if adapters name it by a hub's name, `loratree base set own --source ORG/NAME`\n" in said


@pytest.mark.parametrize("dry", [True, False])
def test_a_bulk_publish_says_what_it_assumes_and_refuses_it_on_request(
    shell: Shell, filled: Filled, tmp_path: Path, dry: bool
) -> None:
    for name in ("a", "b"):
        flat(tmp_path / name, filled, OTHER)
    rows = [{"directory": name, "path": f"tiny/flat/{name}"} for name in ("a", "b")]
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    publish = ["publish", "--manifest", str(manifest), *(["--dry-run"] if dry else [])]
    refused = shell(*publish, "--no-assume", check=False)
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"2 lines (1; 2): {OTHER}, which")
    assert refused.stderr.count("and nothing may be assumed: say with --parent what it was trained on") == 1
    done = shell(*publish)
    assert done.stderr.startswith(f"assumed for ever: 2 lines (1; 2): {OTHER}, which the adapter was trained on")
    kind = "to publish" if dry else "published"
    others = "2 of them with an assumed pin, 2 although the config names another base"
    assert done.stdout == f"2 {kind}, 0 already there ({others}), 0 refused\n"
    warning = f"the adapter's config names {OTHER} as its base, and tiny has no source: if that is the same model"
    assert f"\nwarning: 2 lines (1; 2): {warning}" in done.stderr
    again = shell(*publish, "--json")
    report = json.loads(again.stdout)
    assert (report["assumed"], {each["found"] for each in report["outcomes"]}) == (2, {"assumed"})
    assert report["other_base"] == (2 if dry else 0)  # what is there already is not told again
    assert (warning in again.stderr) == dry


def test_an_adapter_whose_config_names_another_model_of_the_hub_is_warned_of_with_both_names(
    shell: Shell, filled: Filled, tmp_path: Path
) -> None:
    def warned(name: str, *options: str) -> list[str]:
        number = len(list(tmp_path.iterdir()))
        said = shell("publish", flat(tmp_path / f"a{number}", filled, name), f"tiny/flat/n{number}", *options).stderr
        return [line for line in said.splitlines() if line.startswith("warning: ")]

    assert warned(OTHER) == [
        f"warning: the adapter's config names {OTHER} as its base, and tiny has no source: if that is the same model, "
        f"`loratree base set tiny --source {OTHER}` says so"
    ]
    shell("base", "set", "tiny", "--source", "acme-ai/Tiny-1B")
    assert warned(OTHER, "--parent", "base") == []
    for local in (
        "/home/someone/train",
        "./out/merged",
        "../base",
        "merged",
        "C:\\models\\base",
        "a/b/c",
        "two\nlines/x",
    ):
        assert warned(local) == [], local
    shell("base", "set", "tiny", "--source", OTHER)
    assert warned(OTHER) == []


def test_one_adapter_is_refused_too_if_nothing_may_be_assumed(shell: Shell, filled: Filled, tmp_path: Path) -> None:
    flat(tmp_path / "a", filled, OTHER)
    before = shell.state()
    refused = shell("publish", tmp_path / "a", "tiny/flat/a", "--no-assume", check=False)
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert f"{OTHER}, which the adapter was trained on, is not known here" in refused.stderr
    assert shell.state() == before
    shell("publish", tmp_path / "a", "tiny/flat/a", "--no-assume", "--parent", "base")


def test_from_dir_names_what_it_leaves_out_and_a_misspelled_base(shell: Shell, filled: Filled, tmp_path: Path) -> None:
    for name in ("whole", "pickled"):
        flat(tmp_path / "adapters" / name, filled, "tiny")
    pickled = tmp_path / "adapters" / "pickled"
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    done = shell("publish", "--from-dir", tmp_path / "adapters", "tiny")
    assert f"left out: {pickled} holds pickled weights (adapter_model.bin)" in done.stderr
    assert "1 adapter, 1 left out, none published" in done.stderr
    assert done.stdout.count("\n") == 1
    wrong = shell("publish", "--from-dir", tmp_path / "adapters", "tinny/x", check=False)
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert "did you mean 'tiny'?" in wrong.stderr


def test_what_was_trained_on_the_base_below_an_area_is_seen_in_lists_trees_and_chains(
    shell: Shell, filled: Filled, tmp_path: Path
) -> None:
    area, adapter = CHAIN[0][0], flat(tmp_path / "a", filled, "tiny")
    for path in (f"{area}/ann", "tiny/alone"):
        shell("publish", adapter, path, "--parent", "base", "--level", "user")
    shell("publish", adapter, f"{area}/deep/bob", "--parent", f"{area}@1", "--level", "user")
    lines = {line.lstrip("│├└─ ").split()[0]: line for line in shell("tree", "tiny").stdout.splitlines()}
    assert lines["ann"].endswith("ann user @1 on the base")
    assert [name for name, line in lines.items() if " on " in line] == ["ann"]
    assert shell("tree", f"{area}/ann").stdout == f"{area}/ann user @1 on the base\n"
    assert shell("tree", f"{area}/deep").stdout.endswith("bob user @1\n")
    rows = [line.split("\t") for line in shell("ls", "tiny", "--below").stdout.splitlines()]
    trained = {row[0]: row[rows[0].index("trained on")] for row in rows}
    assert (trained[f"{area}/ann"], trained[f"{area}/deep/bob"], trained[area]) == ("tiny", f"{area}@1", "tiny")
    assert trained[f"{area}/deep"] == ""
    said = shell("resolve", f"{area}/ann").stderr
    why = f"{area}@1 is no part of it, as {area}/ann@1 was trained on the base"
    assert f"1 level, 2 ranks, {said.partition('2 ranks, ')[2].partition(';')[0]}; {why}; all current\n" in said
    for path in ("tiny/alone", f"{area}/deep/bob", LEAF):
        assert "no part" not in shell("resolve", path).stderr


def test_lines_say_the_levels_and_a_dry_run_what_it_makes(shell: Shell, filled: Filled, tmp_path: Path) -> None:
    for name in ("law", "law/ann", "law/tax/bob"):
        flat(tmp_path / "in" / name, filled, "tiny")
    found = ["publish", "--from-dir", tmp_path / "in", "tiny", "--parent", "base"]
    done = shell(*found)
    assert "look at the lines and at their levels, which never change" in done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    levels = {line["path"]: line["level"] for line in lines}
    assert levels == {"tiny/law": "domain", "tiny/law/ann": "subdomain", "tiny/law/tax/bob": "task"}
    refused = shell(*found, "--level", "user", check=False)
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (1, "", 1)
    manifest = tmp_path / "in.jsonl"
    manifest.write_text(done.stdout.replace('"level": "task"', '"level": "user"'))
    rehearsed = shell("publish", "--manifest", manifest, "--dry-run")
    assert (
        "new nodes: 1 domain, 2 subdomains, 1 user; to choose another level, write it in the line" in rehearsed.stderr
    )
    shell("publish", "--manifest", manifest)
    assert {node["path"]: node["level"] for node in json.loads(shell("tree", "tiny/law", "--json").stdout)} == {
        "tiny/law": "domain",
        "tiny/law/ann": "subdomain",
        "tiny/law/tax": "subdomain",
        "tiny/law/tax/bob": "user",
    }
    assert shell(*found).stdout == manifest.read_text()  # the levels that they have now
    assert "new nodes" not in shell("publish", "--manifest", manifest, "--dry-run").stderr


def test_from_dir_writes_nothing_that_a_manifest_refuses(shell: Shell, filled: Filled, tmp_path: Path) -> None:
    run = tmp_path / "run"
    flat(run / "checkpoint-9", filled, "tiny")
    for words in (["tiny"], ["tiny/x", "--note", "two\nlines"], ["tiny/x", "--parent", "../x"]):
        refused = shell("publish", "--from-dir", run, *words, check=False)
        assert (refused.returncode, refused.stdout) == (1, "")
    refused = shell("publish", "--from-dir", run / "checkpoint-9", "tiny/x", check=False)
    assert f"is itself an adapter: loratree publish {run / 'checkpoint-9'} PATH\n" in refused.stderr
    manifest = tmp_path / "x.jsonl"
    manifest.write_text(shell("publish", "--from-dir", run, "tiny/x", "--parent", "base").stdout)
    shell("publish", "--manifest", manifest, "--dry-run")


def test_a_new_path_that_is_nearly_another_is_asked_about(shell: Shell, filled: Filled, tmp_path: Path) -> None:
    adapter, before = flat(tmp_path / "a", filled, "tiny"), shell.state()
    typo = ["publish", adapter, "tiny/medicin/x", "--parent", "base"]
    refused = shell(*typo, check=False)
    assert (refused.returncode, refused.stderr) == (
        1,
        f"loratree: tiny/medicin is new, and there is {CHAIN[0][0]}: publish there, or say --new-path if another is "
        "meant\n",
    )
    assert shell.state() == before
    done = shell(*typo, "--new-path")
    assert re.search(
        r"x@1: published, .* KB; new: tiny/medicin \(domain\), tiny/medicin/x \(subdomain\)\n", done.stderr
    )
    for path in ("tiny/medicin/y", "tiny/medicina", f"{CHAIN[0][0]}/cardiolog"):  # known, or a leaf
        assert f"new: {path} (" in shell("publish", adapter, path, "--parent", "base").stderr
    assert "new: " not in shell("publish", filled.adapters[CHAIN[0][0]], "tiny/medicina", "--parent", "base").stderr


def test_a_new_node_of_another_level_than_those_beside_it_is_asked_about(
    shell: Shell, filled: Filled, tmp_path: Path
) -> None:
    adapter, area = flat(tmp_path / "a", filled, "tiny"), "tiny/area"
    publish = ["publish", adapter, f"{area}/bob", "--parent", "base"]
    shell("publish", adapter, f"{area}/ann", "--parent", "base", "--level", "user")
    before = shell.state()
    refused = shell(*publish, check=False)
    assert (refused.returncode, refused.stderr) == (
        1,
        f"loratree: {area}/bob is new and would be a subdomain, but most nodes beside it are of the level user, and no "
        "level ever changes: say --level user, or --level subdomain\n",
    )
    (tmp_path / "m.jsonl").write_text(
        "".join(
            json.dumps({"directory": "a", "path": path, "parent": "base"} | ({"level": level} if level else {})) + "\n"
            for path, level in (
                *((f"{area}/bob", None), (f"{area}/ann", None), (f"{area}/eve", "user")),
                *((f"{area}/eve", None), ("tiny/new/kim", "user"), ("tiny/new/lee", None)),
            )
        )
    )
    for dry in (["--dry-run"], []):
        assert shell.state() == before
        many = shell("publish", "--manifest", tmp_path / "m.jsonl", *dry, "--json", check=False)
        outcomes = json.loads(many.stdout)["outcomes"]
        assert [outcome["says"] for outcome in outcomes if outcome["says"]] == [
            refused.stderr.removeprefix("loratree: ").removesuffix("\n")
        ]
        levels = [outcome["level"] for outcome in outcomes]
        assert levels == [
            None,
            "user",
            "user",
            "user",
            "user",
            "subdomain",
        ]  # the file says what lies beside one another
    assert f"new: {area}/bob (user)" in shell(*publish, "--level", "user").stderr
    flat(tmp_path / "in" / "kay", filled, "tiny")
    for under, level in ((area, "user"), ("tiny/new", "subdomain"), ("tiny/other", "subdomain")):  # kim and lee differ
        line = json.loads(shell("publish", "--from-dir", tmp_path / "in", under).stdout)
        assert (line["path"], line["level"]) == (f"{under}/kay", level)
    assert shell("publish", "--from-dir", tmp_path / "in", area, "--level", "task").stdout.count('"level": "task"') == 1


def test_a_dry_run_of_one_adapter_says_what_publishing_would_do_and_does_nothing(
    shell: Shell, filled: Filled, tmp_path: Path
) -> None:
    adapter, before = flat(tmp_path / "a", filled, "tiny"), shell.state()
    publish = ["publish", adapter, "tiny/law/ann", "--level", "user"]
    rehearsed, record = shell(*publish, "--dry-run"), json.loads(shell(*publish, "--dry-run", "--json").stdout)
    assert rehearsed.stderr == "pinned to the base tiny, which the adapter's config names\n"
    new = "new: tiny/law (domain), tiny/law/ann (user)"
    assert re.fullmatch(rf"tiny/law/ann: to publish, .* KB; {re.escape(new)}\n", rehearsed.stdout)
    made = {"tiny/law": "domain", "tiny/law/ann": "user"}
    assert (record["already"], record["found"], record["makes"]) == (None, "explicit", made)
    for refused in (["tiny/medicin/x"], [f"{CHAIN[0][0]}/ann"], ["tiny/law/ann", "--level", "base"]):
        assert shell("publish", adapter, *refused, "--dry-run", check=False).returncode in (1, 2)
    assert shell.state() == before
    assert new in shell(*publish).stderr
    assert shell(*publish, "--dry-run").stdout == "tiny/law/ann@1: already published\n"
    assert json.loads(shell(*publish, "--dry-run", "--json").stdout)["already"] == "tiny/law/ann@1"


def test_a_parent_that_the_config_does_not_name_is_warned_of(shell: Shell, filled: Filled, tmp_path: Path) -> None:
    area, adapter = CHAIN[0][0], flat(tmp_path / "a", filled, "tiny")
    warning = (
        f"the adapter's config names the plain base (tiny): {area}@1 is right only if it was trained on a live model "
        "with that merged into it"
    )
    publish = ["publish", adapter, f"{area}/law", "--parent", area]
    assert f"warning: {warning}\n" in shell(*publish, "--dry-run").stderr
    assert shell(*publish).stderr.startswith(f"warning: {warning}\npinned to {area}@1, as --parent says\n")
    assert "warning" not in shell("publish", adapter, f"{area}/tax", "--parent", "base").stderr
    (tmp_path / "m.jsonl").write_text(json.dumps({"directory": "a", "path": f"{area}/fees", "parent": area}) + "\n")
    assert f"warning: 1 line (1): {warning}\n" in shell("publish", "--manifest", tmp_path / "m.jsonl").stderr


def test_an_adapter_of_another_model_of_the_hub_is_asked_about_if_the_base_has_a_source(
    shell: Shell, filled: Filled, tmp_path: Path
) -> None:
    shell("base", "set", "tiny", "--source", "acme-ai/Tiny-1B")
    adapter, before = flat(tmp_path / "a", filled, OTHER), shell.state()
    refused = shell("publish", adapter, "tiny/flat/a", check=False)
    assert (refused.returncode, refused.stderr) == (
        1,
        f"loratree: the adapter's config names {OTHER} as its base, and tiny was added from acme-ai/Tiny-1B: publish "
        f"it in a tree of {OTHER}, or say --parent base if both are the same weights\n",
    )
    assert shell.state() == before
    shell("publish", adapter, "tiny/flat/a", "--parent", "base")


def test_a_reason_that_many_lines_share_but_for_their_paths_is_said_once(
    shell: Shell, filled: Filled, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        flat(tmp_path / name, filled, "tiny")
    rows = [{"directory": name, "path": f"{CHAIN[0][0]}/{name}{end}"} for name in ("a", "b") for end in ("", ".x")]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    refused = shell("publish", "--manifest", tmp_path / "m.jsonl", "--dry-run", check=False)
    assert refused.stderr.startswith("4 lines (1; 2; 3; 4): the adapter names the plain base tiny")
    assert refused.stderr.count("so what PATH builds on is open") == 1
    (tmp_path / "m.jsonl").write_text(json.dumps(rows[0]) + "\n")
    refused = shell("publish", "--manifest", tmp_path / "m.jsonl", "--dry-run", check=False)
    assert f"so what {CHAIN[0][0]}/a builds on is open" in refused.stderr


def test_a_swapped_folder_and_path_and_a_path_without_its_base_are_told(
    shell: Shell, filled: Filled, tmp_path: Path
) -> None:
    adapter = flat(tmp_path / "a", filled, "tiny")
    swapped = shell("publish", "tiny/x", adapter, check=False)
    assert swapped.returncode == 2
    assert f"the folder comes first: loratree publish {adapter} tiny/x" in swapped.stderr
    with pytest.raises(loratree.LoratreeError, match=re.escape(f"loratree.publish({str(adapter)!r}, 'tiny/x')")):
        loratree.publish("tiny/x", str(adapter))
    (tmp_path / "m.jsonl").touch()
    listed = shell("publish", tmp_path / "m.jsonl", check=False)
    assert f"give DIRECTORY and PATH, or --manifest {tmp_path / 'm.jsonl'}" in listed.stderr
    short = shell("resolve", LEAF.removeprefix("tiny/"), check=False)
    assert f"(a path begins with its base: did you mean {LEAF.rpartition('/')[0].partition('/')[0]}/" in short.stderr


def test_a_grouping_is_not_told_to_set_an_alias(shell: Shell, filled: Filled, tmp_path: Path) -> None:
    shell("publish", flat(tmp_path / "a", filled, "tiny"), "tiny/new/a", "--parent", "base")
    assert "an alias names a version, and it has none" in shell("alias", "ls", "tiny/new").stderr
    assert "loratree alias set tiny/new/a stable NUMBER" in shell("alias", "ls", "tiny/new/a").stderr


def test_pushing_from_a_folder_that_is_none_says_so(shell: Shell, tmp_path: Path) -> None:
    refused = shell("base", "push", "tiny", tmp_path / "nowhere", check=False)
    assert "is not a directory: expected the folder of a downloaded model, not a name on a hub" in refused.stderr


def test_a_bases_name_is_checked_before_the_model_is_read(shell: Shell, tmp_path: Path) -> None:
    for name, words in (("Bad", "use lower case, such as 'bad'"), ("a/b", "a base is one segment, such as 'a'")):
        refused = shell("base", "add", name, tmp_path / "nowhere", check=False)  # reading it would say that it is none
        assert (refused.returncode, words in refused.stderr) == (1, True)


def test_compose_warns_of_a_grouping_and_of_a_withdrawn_version(shell: Shell, filled: Filled, tmp_path: Path) -> None:
    shell("publish", flat(tmp_path / "a", filled, "tiny"), "tiny/new/a", "--parent", "base")
    said = shell("compose", "tiny/new", "--mode", "merge", "--out", tmp_path / "x").stderr
    assert "warning: tiny/new has no version of its own: this is the base tiny alone\n" in said
    shell("withdraw", f"{CHAIN[0][0]}@1", "--reason", "diverges")
    said = shell("compose", LEAF, "--mode", "flatten", "--out", tmp_path / "y").stderr
    assert f"warning: withdrawn, and in the chain: {CHAIN[0][0]}@1 (diverges)\n" in said
