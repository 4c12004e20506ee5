"""--rank and --energy as a user types them."""

import json
from pathlib import Path

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

from tests import tiny
from tests.cli.conftest import LEAF, Filled, Shell
from tests.cli.test_bad_input import refused

MED, CARDIO = "tiny/medicine", "tiny/medicine/cardiology"
FLATTEN = ["--mode", "flatten", "--out"]
WEIGHTS = "adapter_model.safetensors"


def delta(folder: Path, name: str) -> torch.Tensor:
    tensors = load_file(folder / WEIGHTS)
    a, b = (tensors[f"base_model.model.{name}.lora_{side}.weight"].double() for side in "AB")
    return b @ a


def test_a_chain_of_rank_20_becomes_one_of_rank_8_that_peft_loads(shell: Shell, filled: Filled, tmp_path: Path) -> None:
    shell("compose", LEAF, *FLATTEN, tmp_path / "whole")
    done = shell("compose", LEAF, *FLATTEN, tmp_path / "out", "--rank", "8", "--json")
    printed = json.loads(done.stdout)
    assert printed["artifact"]["rank"] == 8
    lockfile = json.loads((tmp_path / "out" / "loratree.json").read_text())
    compression = json.loads((tmp_path / "out" / "compression.json").read_text())
    assert printed == lockfile | {"compression": compression}
    modules = compression["modules"]
    assert len(modules) == 14
    assert {(module["rank_before"], module["rank"]) for module in modules} == {(20, 8)}
    for module in modules:
        exact = delta(tmp_path / "whole", module["name"])
        squares = torch.linalg.svdvals(exact).square()
        assert module["energy"] == pytest.approx(float(squares[:8].sum() / squares.sum()), abs=1e-6)
        error = (exact - delta(tmp_path / "out", module["name"])).square().sum()
        assert float(error) == pytest.approx(float(squares[8:].sum()), rel=1e-4)
    base = transformers.AutoModelForCausalLM.from_pretrained(filled.base)
    model = peft.PeftModel.from_pretrained(base, tmp_path / "out")
    assert model.peft_config["default"].r == model.peft_config["default"].lora_alpha == 8
    assert model(tiny.tokens()).logits.isfinite().all()


def test_an_energy_is_kept_by_every_module_and_people_are_told_the_least(shell: Shell, tmp_path: Path) -> None:
    done = shell("compose", LEAF, *FLATTEN, tmp_path / "out", "--energy", "0.9")
    compression = json.loads((tmp_path / "out" / "compression.json").read_text())
    least = min(compression["modules"], key=lambda module: module["energy"])
    assert least["energy"] >= 0.9
    assert compression["energy"] >= least["energy"]
    assert max(module["rank"] for module in compression["modules"]) < 20
    all_of_it, least_of_it = (int(share * 1e4) / 100 for share in (compression["energy"], least["energy"]))
    kept = f"energy 0.9: {all_of_it:g} % of the energy is kept, at least {least_of_it:g} % of a module's"
    assert f"{kept} ({least['name']})" in done.stderr
    digest = json.loads((tmp_path / "out" / "loratree.json").read_text())["composition"]
    assert done.stdout == digest + "\n"


def test_a_limit_above_the_chains_rank_changes_nothing(shell: Shell, tmp_path: Path) -> None:
    shell("compose", CARDIO, *FLATTEN, tmp_path / "whole")
    done = shell("compose", CARDIO, *FLATTEN, tmp_path / "out", "--rank", "32")
    assert "rank 32: 100 % of the energy is kept, at least 100 % of a module's" in done.stderr
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()


def test_a_level_weight_counts_before_the_cut(shell: Shell, tmp_path: Path) -> None:
    weighted = ["--weight", f"{MED}=0.001"]
    shell("compose", CARDIO, *FLATTEN, tmp_path / "whole", *weighted)
    done = shell("compose", CARDIO, *FLATTEN, tmp_path / "out", *weighted, "--rank", "6", "--json")
    for module in json.loads(done.stdout)["compression"]["modules"]:
        assert module["energy"] > 0.9999  # what medicine adds is small now, and cardiology has rank 6
        exact = delta(tmp_path / "whole", module["name"])
        assert (exact - delta(tmp_path / "out", module["name"])).norm() < 0.01 * exact.norm()


def test_a_folder_takes_the_same_limit_again_and_no_other(shell: Shell, tmp_path: Path) -> None:
    command = ["compose", CARDIO, *FLATTEN, tmp_path / "out"]
    first = shell(*command, "--energy", "0.9", "--json").stdout
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    assert shell(*command, "--energy", "0.90", "--json").stdout == first
    for other in ([], ["--energy", "0.91"], ["--rank", "4"]):
        assert "flatten to energy 0.9, " in refused(shell, *command, *other)
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--rank", "0"], "a rank to compress to is a whole number from 1, got 0"),
        (["--rank", "-8"], "got -8"),
        (["--rank", "many"], "many"),
        (["--energy", "0"], "an energy to keep is a number above 0 and at most 1, such as 0.99, got 0.0"),
        (["--energy", "99"], "got 99.0"),
        (["--energy", "nan"], "got nan"),
        (["--rank", "8", "--energy", "0.9"], "to a rank or to an energy: give one of the two"),
        (["--rank", "8", "--mode", "merge"], "--rank and --energy go with --mode flatten, got --mode merge"),
    ],
)
def test_a_limit_that_makes_no_sense_is_wrong_usage(
    options: list[str], said: str, shell: Shell, tmp_path: Path
) -> None:
    assert said in refused(shell, "compose", LEAF, *FLATTEN, tmp_path / "out", *options, status=2)
    assert not (tmp_path / "out").exists()
