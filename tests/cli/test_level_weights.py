"""--weight as a user types it: in resolve, in compose, and in what may be published on the result."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests import tiny
from tests.cli.conftest import LEAF, Shell
from tests.cli.test_bad_input import refused

MED, CARDIO = "tiny/medicine", "tiny/medicine/cardiology"
WEIGHT = "model.layers.0.self_attn.q_proj.weight"


def test_resolve_tells_every_weight_and_names_another_composition(shell: Shell) -> None:
    weighted = json.loads(
        shell("resolve", LEAF, "--weight", f"{MED}=0.5", "--weight", f"{CARDIO}=-1e-3", "--json").stdout
    )
    assert [link["weight"] for link in weighted["chain"]] == [0.5, -0.001, 1.0, 1.0]
    header, *rows = shell("resolve", LEAF, "--weight", f"{MED}=.5").stdout.splitlines()
    column = header.split("\t").index("weight")
    assert [row.split("\t")[column] for row in rows[:-1]] == ["0.5", "1", "1", "1"]
    plain = shell("resolve", LEAF, "--json").stdout
    assert json.loads(plain)["composition"] not in (weighted["composition"], rows[-1])
    assert shell("resolve", LEAF, "--weight", f"{MED}=1", "--json").stdout == plain


@pytest.mark.parametrize("weight", ["tiny/medicine", "tiny/medicine=", "tiny/medicine=half", "=", "tiny/medicine:0.5"])
def test_a_weight_that_cannot_be_read_is_wrong_usage(shell: Shell, weight: str) -> None:
    assert "PATH=NUMBER, such as tiny/medicine=0.5" in refused(shell, "resolve", LEAF, "--weight", weight, status=2)


def test_a_path_that_is_weighted_twice_is_wrong_usage(shell: Shell) -> None:
    twice = ["--weight", f"{MED}=0.5", "--weight", f"{MED}=0.5"]
    assert "tiny/medicine is given twice" in refused(shell, "resolve", LEAF, *twice, status=2)


@pytest.mark.parametrize("command", ["resolve", "compose"])
def test_weights_that_the_chain_does_not_take_are_refused_in_one_sentence(
    shell: Shell, command: str, tmp_path: Path
) -> None:
    out = ["--mode", "merge", "--out", tmp_path / "out"] if command == "compose" else []
    said = refused(shell, command, CARDIO, *out, "--weight", "tiny/law=1", "--weight", f"{MED}=nan")
    assert "tiny/law is not in its chain; tiny/medicine has NaN, expected a finite number" in said
    assert f"its levels are {MED}; {CARDIO}" in said
    assert not (tmp_path / "out").exists()


def test_compose_multiplies_a_level_and_writes_its_weight_into_the_lockfile(shell: Shell, tmp_path: Path) -> None:
    found = {}
    for weight, said in {"1": f"tiny + {MED}@1", "0.5": f"tiny + 0.5 × {MED}@1", "0": f"tiny + 0 × {MED}@1"}.items():
        out = tmp_path / weight
        done = shell("compose", CARDIO, "--mode", "merge", "--out", out, "--weight", f"{MED}={weight}")
        document = json.loads((out / "loratree.json").read_text())
        assert [step["weight"] for step in document["chain"]] == [float(weight), 1]
        assert (done.stdout.strip(), f"{said} + {CARDIO}@1" in done.stderr) == (document["composition"], True)
        found[weight] = load_file(out / "model.safetensors")[WEIGHT].double()
    assert not torch.equal(found["1"], found["0.5"])
    torch.testing.assert_close(found["1"] - found["0.5"], found["0.5"] - found["0"], rtol=0, atol=1e-6)


def test_a_folder_takes_the_same_weights_again_and_no_others(shell: Shell, tmp_path: Path) -> None:
    out = ["--mode", "flatten", "--out", tmp_path / "out"]
    shell("compose", CARDIO, *out, "--weight", f"{MED}=0.5")
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    shell("compose", CARDIO, *out, "--weight", f"{MED}=0.50")
    for other in ([], ["--weight", f"{MED}=0.25"]):
        assert "does not hold what is asked for" in refused(shell, "compose", CARDIO, *out, *other)
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before


def test_what_is_trained_on_a_weighted_composition_has_no_pin(shell: Shell, tmp_path: Path) -> None:
    shell("compose", CARDIO, "--mode", "merge", "--out", tmp_path / "halved", "--weight", f"{MED}=0.5")
    trained = tiny.adapter(tmp_path / "halved", tmp_path / "bob", seed=9, rank=2)
    said = refused(shell, "publish", trained, f"{CARDIO}/diagnosis/bob")
    assert f"is not what {CARDIO}@1 resolves to by its pins: it was composed with --follow or level weights" in said
    shell("compose", CARDIO, "--mode", "merge", "--out", tmp_path / "whole", "--weight", f"{MED}=1")
    trained = tiny.adapter(tmp_path / "whole", tmp_path / "carol", seed=9, rank=2)
    pin = json.loads(shell("publish", trained, f"{CARDIO}/diagnosis/carol", "--json").stdout)["version"]["pin"]
    assert (pin["path"], pin["version"], pin["found"]) == (CARDIO, 1, "lockfile")
