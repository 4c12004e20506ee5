"""A chain that is truncated on its way into files, and compression.json beside it."""

import json
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file

from loratree_composer.compose_files import compose
from loratree_composer.flatten.compression import COMPRESSION, Compression, Kept, read_compression
from loratree_registry.core.chain import Limit, Mode
from loratree_registry.errors import Conflict, Invalid
from loratree_registry.workspace.adapter_directory import read_adapter_directory
from loratree_registry.workspace.lockfile import Lockfile, check_artifact, read_lockfile
from tests.composer import chains
from tests.composer.conftest import Catalog

WEIGHTS = "adapter_model.safetensors"
Compose = Callable[..., Lockfile]


@pytest.fixture
def make(catalog: Catalog, tmp_path: Path) -> Compose:
    """Flattens the leaf into tmp_path/out, within a limit."""

    def made(limit: Limit | None, out: Path = tmp_path / "out", mode: Mode = "flatten") -> Lockfile:
        return compose(catalog.registry, catalog.leaf, mode, out, home=catalog.home, limit=limit)

    return made


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / WEIGHTS)


def delta(folder: Path, name: str) -> torch.Tensor:
    a, b = (tensors(folder)[f"base_model.model.{name}.lora_{side}.weight"].double() for side in "AB")
    return b @ a


def test_every_module_has_the_rank_and_the_files_say_what_was_kept(make: Compose, tmp_path: Path) -> None:
    make(None, tmp_path / "whole")
    lockfile = make(Limit(rank=3))
    assert lockfile.artifact.limit == Limit(rank=3)
    assert read_lockfile(tmp_path / "out") == lockfile
    check_artifact(lockfile, tmp_path / "out")
    assert {file.name for file in lockfile.artifact.files} == {"adapter_config.json", WEIGHTS, COMPRESSION}
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["r"] == 3
    ranks = {
        tensor.shape[0] if "lora_A" in key else tensor.shape[1] for key, tensor in tensors(tmp_path / "out").items()
    }
    assert ranks == {3}
    assert tensors(tmp_path / "out").keys() == tensors(tmp_path / "whole").keys()
    compression = read_compression(tmp_path / "out")
    lost = whole = 0.0
    for module in compression.modules:
        exact = delta(tmp_path / "whole", module.name)
        left = exact - delta(tmp_path / "out", module.name)
        assert module.norm == pytest.approx(float(exact.norm()), rel=1e-6)
        assert 1 - module.energy == pytest.approx(float((left.norm() / exact.norm()) ** 2), abs=1e-6)
        lost, whole = lost + float(left.square().sum()), whole + float(exact.square().sum())
    assert compression.energy == pytest.approx(1 - lost / whole, abs=1e-6)
    assert {(module.rank_before, module.rank) for module in compression.modules} >= {(8 + 4, 3), (8 + 6 + 4, 3)}


def test_peft_loads_it_and_gives_the_logits_of_the_whole_chain_where_all_energy_is_kept(
    make: Compose, catalog: Catalog, tmp_path: Path
) -> None:
    make(None, tmp_path / "whole")
    logits, limits = {}, {"all": Limit(energy=1), "most": Limit(energy=0.999), "few": Limit(rank=1)}
    for name, limit in ({"whole": None} | limits).items():
        make(limit, tmp_path / name)
        logits[name] = chains.logits(peft.PeftModel.from_pretrained(chains.load(catalog.tree.base), tmp_path / name))
    off = [chains.relative(logits[name], logits["whole"]) for name in ("all", "most", "few")]
    assert off[0] < 1e-5 < off[1] < 0.05 < off[2]


def test_a_rank_that_the_chain_does_not_reach_gives_the_adapter_of_no_limit(make: Compose, tmp_path: Path) -> None:
    make(None, tmp_path / "whole")
    make(Limit(rank=32))
    for name in (WEIGHTS, "adapter_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert read_compression(tmp_path / "out").energy == 1


def test_a_rank_above_the_size_of_every_layer_is_refused_and_nothing_is_written(make: Compose, tmp_path: Path) -> None:
    before = set(tmp_path.iterdir())
    with pytest.raises(Invalid, match=r"no layer that the chain changes is of a size for rank 33: .* at most 32, or"):
        make(Limit(rank=33))
    assert set(tmp_path.iterdir()) == before


def test_the_same_limit_gives_the_same_bytes_and_is_the_answer_where_it_is_there(make: Compose, tmp_path: Path) -> None:
    first, written = make(Limit(energy=0.95)), (tmp_path / "out" / WEIGHTS).stat()
    assert make(Limit(energy=0.95)) == first
    assert (tmp_path / "out" / WEIGHTS).stat() == written
    make(Limit(energy=0.95), tmp_path / "again")
    for path in (tmp_path / "out").iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_a_folder_of_another_limit_is_refused_and_stays(make: Compose, tmp_path: Path) -> None:
    make(Limit(rank=3))
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    for other, named in ((Limit(rank=4), "flatten to rank 4"), (Limit(energy=0.5), "energy 0.5"), (None, "flatten;")):
        with pytest.raises(Conflict, match=rf"it holds .* as flatten to rank 3, expected .*{named}"):
            make(other)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_merging_takes_no_limit(make: Compose, tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="got merge to rank 3: compose it with flatten"):
        make(Limit(rank=3), mode="merge")
    assert not (tmp_path / "out").exists()


def test_the_truncated_adapter_can_itself_be_published(make: Compose, catalog: Catalog, tmp_path: Path) -> None:
    make(Limit(rank=3))
    summary = read_adapter_directory(tmp_path / "out").spec(catalog.tree.manifest).summary()
    assert (summary.scales, summary.ranks) == ([1.0], [3])


def test_the_share_of_all_is_weighted_by_what_each_module_adds() -> None:
    modules = (Kept("a", 9, 2, 0.5, 3.0), Kept("b", 9, 2, 1.0, 4.0), Kept("c", 1, 1, 1.0, 0.0))
    compression = Compression(Limit(rank=2), modules)
    assert compression.energy == pytest.approx((0.5 * 9 + 16) / 25)
    assert compression.least == modules[0]
    huge = tuple(Kept(module.name, 9, 2, module.energy, module.norm * 1e200) for module in modules)
    assert Compression(Limit(rank=2), huge).energy == pytest.approx((0.5 * 9 + 16) / 25)


@pytest.mark.parametrize("modules", [(), (Kept("a", 1, 1, 1.0, 0.0),)])
def test_of_nothing_all_is_kept(modules: tuple[Kept, ...]) -> None:
    assert Compression(Limit(rank=2), modules).energy == 1


def test_compression_json_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    for limit in (Limit(rank=2), Limit(energy=0.99)):
        written = Compression(limit, (Kept("a", 9, 2, 0.1 + 0.2, 1 / 3), Kept("b", 1, 1, 1.0, 0.0)))
        written.write(tmp_path)
        assert read_compression(tmp_path) == written


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"limit": {"rank": 0, "energy": null}, "modules": []}',
        '{"limit": {"rank": 1}, "modules": [{}]}',
    ],
)
def test_a_file_that_does_not_say_what_was_kept_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / COMPRESSION).write_text(content)
    with pytest.raises(Invalid, match=COMPRESSION):
        read_compression(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=COMPRESSION):
        read_compression(tmp_path)
