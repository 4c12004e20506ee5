"""The pin of an adapter that was trained elsewhere, or on files that cannot be compared tensor by tensor."""

import json
import shutil
from pathlib import Path

import pytest

from tests import peft_bases, tiny
from tests.cli.conftest import Filled, Shell
from tests.peft_bases import quiet

PARENT, CHILD = "tiny/medicine/cardiology", "tiny/medicine/cardiology/triage"


def shown_pin(shell: Shell, path: str) -> tuple[object, object]:
    [version] = json.loads(shell("show", path, "--json").stdout)["versions"]
    return version["pin"]["path"], version["pin"]["found"]


@pytest.fixture
def composed(shell: Shell, tmp_path: Path) -> Path:
    shell("compose", PARENT, "--mode", "merge", "--out", tmp_path / "composed")
    return tmp_path / "composed"


@pytest.fixture
def adapter(filled: Filled, tmp_path: Path) -> Path:
    """Trained on another machine: its config names a folder that is not here."""
    directory = tiny.adapter(filled.base, tmp_path / "adapter", seed=9)
    config = json.loads((directory / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "/scratch/job-17/composed"
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return directory


def test_a_composition_is_named_by_its_folder(shell: Shell, composed: Path, adapter: Path) -> None:
    shell("publish", adapter, CHILD, "--trained-on", composed)
    assert shown_pin(shell, CHILD) == (PARENT, "lockfile")


def test_a_composition_is_named_by_its_lockfile_alone(shell: Shell, composed: Path, adapter: Path) -> None:
    (composed.parent / "copied").mkdir()
    shutil.copy(composed / "loratree.json", composed.parent / "copied")
    done = shell("publish", adapter, CHILD, "--trained-on", composed.parent / "copied" / "loratree.json")
    assert f"pinned to {PARENT}@1, from the lockfile" in done.stderr
    assert shown_pin(shell, CHILD) == (PARENT, "explicit")  # nobody has compared the weights


def test_what_contradicts_it_is_refused(shell: Shell, filled: Filled, composed: Path, adapter: Path) -> None:
    state = shell.state()
    done = shell("publish", adapter, CHILD, "--trained-on", composed, "--parent", "base", check=False)
    assert (
        "--parent says base, but the adapter is pinned to tiny/medicine/cardiology@1, from the lockfile" in done.stderr
    )
    done = shell("publish", adapter, "tiny/law/triage", "--trained-on", composed, check=False)
    assert f"is a composition of {PARENT}, which is not above tiny/law/triage: publish below {PARENT}" in done.stderr
    for wrong, said in ((filled.base / "config.json", "is no loratree.json"), (composed / "gone", "does not exist")):
        done = shell("publish", adapter, CHILD, "--trained-on", wrong, check=False)
        assert (done.returncode, said in done.stderr) == (1, True)
    other = tiny.llama(composed.parent / "other", seed=5)
    done = shell("publish", adapter, CHILD, "--trained-on", other, check=False)
    assert "has no loratree.json, and holds other weights than tiny" in done.stderr
    assert shell.state() == state


def test_the_bases_own_folder_is_the_base(shell: Shell, filled: Filled, adapter: Path) -> None:
    shell("publish", adapter, "tiny/law", "--trained-on", filled.base)
    assert shown_pin(shell, "tiny/law") == (None, "explicit")


def test_a_relative_path_counts_from_beside_the_adapter_too(shell: Shell, composed: Path, adapter: Path) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    for name in ("composed", "../composed"):
        (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": name}))
        path = f"{CHILD}/{'up' if name.startswith('.') else 'beside'}"
        shell("publish", adapter, path, cwd=Path("/"))
        assert shown_pin(shell, path) == (PARENT, "lockfile")


def test_a_pulled_adapters_own_parent_is_never_overruled(shell: Shell, tmp_path: Path) -> None:
    shell("pull", f"{PARENT}/diagnosis", "--out", tmp_path / "pulled")
    state = shell.state()
    done = shell("publish", tmp_path / "pulled", "tiny/copied", check=False)
    assert "which is not above tiny/copied: publish it below tiny/medicine/cardiology" in done.stderr
    assert "--parent" not in done.stderr
    done = shell("publish", tmp_path / "pulled", "tiny/copied", "--parent", "base", check=False)
    assert "--parent says base, but the adapter's config names tiny/medicine/cardiology@sha256:" in done.stderr
    assert shell.state() == state
    shell("publish", tmp_path / "pulled", f"{PARENT}/again")  # the remedy
    assert shown_pin(shell, f"{PARENT}/again") == (PARENT, "explicit")


def test_a_forced_parent_is_shown_for_ever(shell: Shell, composed: Path, adapter: Path, tmp_path: Path) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(composed)}))
    state = shell.state()
    refused = shell("publish", adapter, CHILD, "--parent", "base", check=False)
    assert "overrule it by --force-parent, which the version shows for ever" in refused.stderr
    alone = shell("publish", adapter, CHILD, "--force-parent", check=False)
    assert (alone.returncode, "so it needs --parent: a version above, or base" in alone.stderr) == (1, True)
    assert shell.state() == state
    done = shell("publish", adapter, CHILD, "--parent", "base", "--force-parent")
    assert f"pinned to base by force: the adapter is pinned to {PARENT}@1, from the lockfile" in done.stderr
    assert shown_pin(shell, CHILD) == (None, "forced")
    assert "forced" in shell("show", CHILD).stdout
    assert "forced" in shell("lineage", CHILD).stdout
    shell("export", "--out", tmp_path / "export")
    elsewhere = Shell(tmp_path / "elsewhere")
    elsewhere("import", tmp_path / "export")
    assert shown_pin(elsewhere, CHILD) == (None, "forced")
    # With an agreeing parent there is nothing to force.
    shell("publish", adapter, f"{CHILD}/more", "--parent", f"{PARENT}@1", "--force-parent")
    assert shown_pin(shell, f"{CHILD}/more") == (PARENT, "lockfile")


def test_an_adapter_of_a_base_that_transformers_converts_finds_the_folder_that_was_added(
    shell: Shell, tmp_path: Path
) -> None:
    base = tmp_path / "mixtral"
    with quiet():
        peft_bases.mixtral().save_pretrained(base)  # type: ignore[operator]
        adapter = tiny.adapter(base, tmp_path / "adapter", targets=["q_proj"])
    shell("base", "add", "mixtral", base)
    done = shell("publish", adapter, "mixtral/medicine")
    assert "pinned to the base mixtral, which the adapter's config names" in done.stderr
    content = bytearray((base / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (base / "model.safetensors").write_bytes(content)
    with quiet():
        other = tiny.adapter(base, tmp_path / "other", seed=8, targets=["q_proj"])
    done = shell("publish", other, "mixtral/law", check=False)
    assert "pinned to the base mixtral, which" not in done.stderr
