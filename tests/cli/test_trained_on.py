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
    assert "--parent says base, but --trained-on says tiny/medicine/cardiology@1: leave --parent out" in done.stderr
    done = shell("publish", adapter, "tiny/law/triage", "--trained-on", composed, check=False)
    assert f"is a composition of {PARENT}, which is not above tiny/law/triage: publish below {PARENT}" in done.stderr
    for wrong, said in (
        (filled.base / "config.json", "is not named loratree.json"),
        (composed / "gone", "does not exist"),
    ):
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


@pytest.fixture
def other(shell: Shell, tmp_path: Path) -> Path:
    """Another base of the same shape, and an adapter that was pulled from its tree: `pulled`."""
    base = tiny.llama(tmp_path / "other", seed=5)
    shell("base", "add", "other", base, "--source", "acme/other-7b")
    with quiet():
        shell("publish", tiny.adapter(base, tmp_path / "of-other", seed=4), "other/law", "--parent", "base")
    shell("pull", "other/law", "--out", tmp_path / "pulled")
    return base


def name_base(adapter: Path, name: str) -> Path:
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": name}))
    return adapter


@pytest.mark.parametrize("named", ["acme/other-7b", "other", "FOLDER", "other@DIGEST"])
def test_an_adapter_of_another_base_is_never_taken_for_one_of_this(
    shell: Shell, other: Path, adapter: Path, named: str
) -> None:
    digest = json.loads(shell("base", "show", "other", "--json").stdout)["digest"]
    name_base(adapter, named.replace("FOLDER", str(other)).replace("DIGEST", digest))
    state = shell.state()
    for path in ("tiny/law", CHILD):
        done = shell("publish", adapter, path, check=False)
        assert (done.returncode, "which is the base other: publish it in its tree, below other" in done.stderr) == (
            1,
            True,
        )
        done = shell("publish", adapter, path, "--parent", "base", check=False)
        assert "--parent says base, but the adapter was trained on" in done.stderr
        assert (
            "which is the base other: publish it in the tree of other, or overrule it by --force-parent" in done.stderr
        )
    assert shell.state() == state
    shell("publish", adapter, "other/medicine")  # the remedy
    shell("publish", adapter, "tiny/law", "--parent", "base", "--force-parent")
    assert shown_pin(shell, "tiny/law") == (None, "forced")


def test_a_pulled_adapter_of_a_base_names_its_digest(shell: Shell, tmp_path: Path) -> None:
    """So that a base of the same name with other weights is not taken for it."""
    shell("pull", "tiny/medicine", "--out", tmp_path / "pulled")
    elsewhere = Shell(tmp_path / "elsewhere")
    elsewhere("base", "add", "tiny", tiny.llama(tmp_path / "changed", seed=5))
    done = elsewhere("publish", tmp_path / "pulled", "tiny/medicine", check=False)
    assert (done.returncode, "which is no base here (tiny is sha256:" in done.stderr) == (1, True)
    done = elsewhere("publish", tmp_path / "pulled", "tiny/medicine", "--parent", "base", check=False)
    assert "publish it in that base's tree, or overrule it by --force-parent" in done.stderr
    shell("publish", tmp_path / "pulled", "tiny/copied")
    assert shown_pin(shell, "tiny/copied") == (None, "explicit")


def test_trained_on_does_not_overrule_what_the_adapter_says(
    shell: Shell, filled: Filled, composed: Path, adapter: Path, tmp_path: Path
) -> None:
    shell("pull", f"{PARENT}/diagnosis", "--out", tmp_path / "pulled")
    shell("compose", "tiny/medicine", "--mode", "merge", "--out", tmp_path / "above")
    state = shell.state()
    done = shell("publish", tmp_path / "pulled", f"{PARENT}/again", "--trained-on", filled.base, check=False)
    assert "--trained-on says base, but the adapter's config names tiny/medicine/cardiology@sha256:" in done.stderr
    name_base(adapter, str(composed))
    for named in (filled.base, tmp_path / "above", tmp_path / "above" / "loratree.json"):
        done = shell("publish", adapter, CHILD, "--trained-on", named, check=False)
        assert f"but the adapter is pinned to {PARENT}@1, from the lockfile" in done.stderr
        assert "leave --trained-on out, or overrule it with --parent and --force-parent" in done.stderr
    done = shell("publish", adapter, CHILD, "--trained-on", composed, "--parent", "base", check=False)
    assert f"--parent says base, but --trained-on says {PARENT}@1" in done.stderr
    assert shell.state() == state


def test_an_adapter_that_was_saved_into_its_composition_is_published_from_there(
    shell: Shell, composed: Path, tmp_path: Path
) -> None:
    """A trainer whose output folder is the model's."""
    with quiet():
        tiny.adapter(composed, composed, seed=9)
    shell("publish", composed, CHILD)
    assert shown_pin(shell, CHILD) == (PARENT, "lockfile")


def test_a_composition_that_changed_since_speaks_for_its_own_leaf_alone(
    shell: Shell, composed: Path, adapter: Path
) -> None:
    name_base(adapter, str(composed))
    config = json.loads((composed / "config.json").read_text())
    (composed / "config.json").write_text(json.dumps(config | {"use_cache": False}))
    done = shell("publish", adapter, CHILD, check=False)
    assert done.stderr.endswith(f"or, if it was as composed during the training, say --parent {PARENT}@1\n")
    done = shell("publish", adapter, CHILD, "--parent", "base", check=False)
    assert f"--parent says base, but the adapter was trained on a composition of {PARENT}@1" in done.stderr
    shell("publish", adapter, CHILD, "--parent", f"{PARENT}@1")
    assert shown_pin(shell, CHILD) == (PARENT, "explicit")


def test_a_pulled_ref_that_is_not_here_names_no_parent(shell: Shell, adapter: Path) -> None:
    name_base(adapter, f"{PARENT}@sha256:{'0' * 64}")
    done = shell("publish", adapter, CHILD, check=False)
    assert "which is not here: import it from the registry that has it, or overrule it with --parent and" in done.stderr
    assert f"--parent {PARENT}" not in done.stderr
    shell("publish", adapter, CHILD, "--parent", "base", "--force-parent")
    assert shown_pin(shell, CHILD) == (None, "forced")


def test_the_files_of_a_converted_base_are_known_to_everyone(shell: Shell, tmp_path: Path) -> None:
    """The registry knows them, not only the home of who added the base."""
    base = tmp_path / "mixtral"
    with quiet():
        peft_bases.mixtral().save_pretrained(base)  # type: ignore[operator]
        adapter = tiny.adapter(base, tmp_path / "adapter", targets=["q_proj"])
    shell("base", "add", "mixtral", base)
    shutil.rmtree(shell.home / "bases")
    done = shell("publish", adapter, "mixtral/medicine")
    assert "pinned to the base mixtral, which the adapter's config names" in done.stderr


def test_two_relative_folders_of_one_name_are_asked_about(shell: Shell, composed: Path, adapter: Path) -> None:
    """A composition lies here under the name that the base has beside the adapter."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "model"}))
    here, beside = composed.parent / "work" / "model", adapter.parent / "model"
    shutil.copytree(composed, here)
    shutil.copytree(composed, beside)
    state = shell.state()
    done = shell("publish", adapter, CHILD, cwd=here.parent, check=False)
    assert f"({here}; {beside}): say with --trained-on which it was trained on" in done.stderr
    assert (done.returncode, shell.state()) == (1, state)
    shell("publish", adapter, CHILD, "--trained-on", here / "loratree.json", cwd=here.parent)  # the remedy
    assert shown_pin(shell, CHILD) == (PARENT, "lockfile")
    shell("publish", adapter, f"{CHILD}/once", cwd=adapter.parent)  # one folder, found twice
    assert shown_pin(shell, f"{CHILD}/once") == (PARENT, "lockfile")


def test_a_flattened_chain_is_not_assumed_to_stand_on_its_own_levels(
    filled: Filled, shell: Shell, tmp_path: Path
) -> None:
    flat, other = tmp_path / "flat", filled.adapters[f"{PARENT}/diagnosis"]
    shell("compose", PARENT, "--mode", "flatten", "--out", flat)
    refused = shell("publish", flat, f"{PARENT}/flat", check=False)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert f"{flat} is the whole chain of {PARENT} in one adapter, as its loratree.json says" in refused.stderr
    assert refused.stderr.endswith("say --parent base\n")
    assert shell("publish", flat, "tiny/flat").returncode == 0  # nothing but the base is above it
    assert "pinned to the base tiny" in shell("publish", flat, f"{PARENT}/flat", "--parent", "base").stderr
    trained = Path(shutil.copytree(flat, tmp_path / "trained"))  # further, and saved over the flattened one
    shutil.copy(other / "adapter_model.safetensors", trained)
    config = json.loads((other / "adapter_config.json").read_text()) | {"base_model_name_or_path": None}
    (trained / "adapter_config.json").write_text(json.dumps(config))
    assert "does not say what it was trained on" in shell("publish", trained, f"{PARENT}/trained").stderr
