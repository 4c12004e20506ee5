"""The adapters in a folder of folders, and the manifest that lists them."""

import json
from pathlib import Path

import pytest

from loratree_registry.errors import Invalid, NotFound
from loratree_registry.workspace.find_adapters import find_adapters
from loratree_registry.workspace.manifest_lines import read_rows, to_line

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def adapter(folder: Path) -> Path:
    """A folder that looks like an adapter's; only publishing reads what is in it."""
    folder.mkdir(parents=True)
    for name in (CONFIG, WEIGHTS):
        (folder / name).touch()
    return folder


def found(directory: Path) -> dict[str, str]:
    return {
        each.path: str(Path(each.directory).relative_to(directory.resolve()))
        for each in find_adapters(directory, "tiny/clinic").adapters
    }


def test_folders_names_become_paths(tmp_path: Path) -> None:
    for name in ("radiology", "Night Shift", "team/éva", "team/deep/er"):
        adapter(tmp_path / name)
    (tmp_path / "notes").mkdir()
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / CONFIG).touch()
    adapter(tmp_path / ".cache" / "x")
    assert found(tmp_path) == {
        "tiny/clinic/night-shift": "Night Shift",
        "tiny/clinic/radiology": "radiology",
        "tiny/clinic/team/deep/er": "team/deep/er",
        "tiny/clinic/team/va": "team/éva",
    }


def test_of_a_run_the_adapter_beside_its_checkpoints_counts_or_else_the_last_checkpoint(tmp_path: Path) -> None:
    for steps in (9, 10, 100):
        adapter(tmp_path / "ended" / f"checkpoint-{steps}")
        adapter(tmp_path / "stopped" / f"checkpoint-{steps}")
    for name in (CONFIG, WEIGHTS):
        (tmp_path / "ended" / name).touch()
    (tmp_path / "stopped" / "checkpoint-100" / WEIGHTS).unlink()
    assert found(tmp_path) == {"tiny/clinic/ended": "ended", "tiny/clinic/stopped": "stopped/checkpoint-10"}


def test_what_looks_like_an_adapter_and_is_left_out_is_told(tmp_path: Path) -> None:
    for name in ("whole", "half", "pickled", "bare", "mlx", "run/checkpoint-1", "run/checkpoint-2"):
        adapter(tmp_path / "in" / name)
    (tmp_path / "in" / "half" / WEIGHTS).unlink()
    (tmp_path / "in" / "bare" / CONFIG).unlink()
    (tmp_path / "in" / "pickled" / WEIGHTS).rename(tmp_path / "in" / "pickled" / "adapter_model.bin")
    (tmp_path / "in" / "mlx" / WEIGHTS).rename(tmp_path / "in" / "mlx" / "adapters.safetensors")
    (tmp_path / "in" / "run" / "checkpoint-2" / WEIGHTS).unlink()
    (tmp_path / "in" / "notes").mkdir()
    (tmp_path / "in" / "notes" / "README.md").touch()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "in" / "whole")
    folder = find_adapters(tmp_path / "in", "tiny")
    assert [each.path for each in folder.adapters] == ["tiny/run", "tiny/whole"]
    said = {Path(reason.partition(" ")[0]).name: reason for reason in folder.left_out}
    assert {name: said[name].partition(" ")[2][:28] for name in sorted(said)} == {
        "bare": f"holds {WEIGHTS} and no"[:28],
        "checkpoint-2": f"holds no {WEIGHTS}"[:28],
        "half": f"holds no {WEIGHTS}"[:28],
        "link": "is a link, and links are not",
        "mlx": "holds an adapter of MLX (ada",
        "pickled": "holds pickled weights (adapt",
    }


def test_links_are_not_followed(tmp_path: Path) -> None:
    adapter(tmp_path / "in" / "real")
    adapter(tmp_path / "out" / "other")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "out")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    assert found(tmp_path / "in") == {"tiny/clinic/real": "real"}


def test_what_cannot_be_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="is not a folder: give one that holds folders of adapters"):
        find_adapters(tmp_path / "nowhere", "tiny")
    with pytest.raises(Invalid, match=f"no folder in .* holds {CONFIG} and {WEIGHTS}"):
        find_adapters(tmp_path, "tiny")
    adapter(tmp_path / "A b")
    adapter(tmp_path / "a-B")
    with pytest.raises(Invalid, match=r"A b; .*a-B would have one path: rename the folders but one"):
        find_adapters(tmp_path, "tiny")
    with pytest.raises(Invalid, match="has the segment 'Tiny'"):
        find_adapters(tmp_path, "Tiny")


def test_the_lines_are_a_manifest(tmp_path: Path) -> None:
    adapter(tmp_path / "adapters" / "x")
    lines = [
        {"directory": each.directory, "path": each.path}
        for each in find_adapters(tmp_path / "adapters", "tiny").adapters
    ]
    manifest = tmp_path / "elsewhere" / "adapters.jsonl"
    manifest.parent.mkdir()
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [(row.directory, row.path) for row in read_rows(manifest)] == [
        ((tmp_path / "adapters" / "x").resolve(), "tiny/x")
    ]


def test_a_folder_that_is_itself_an_adapter_is_told_so(tmp_path: Path) -> None:
    run = adapter(tmp_path / "run")
    for folder in (run, adapter(run / "checkpoint-9")):
        with pytest.raises(Invalid) as refused:
            find_adapters(folder, "tiny/x")
        assert str(refused.value) == f"{folder} is itself an adapter: loratree publish {folder} PATH"
    adapter(run / "other")
    both = find_adapters(run, "tiny/x")
    assert [each.path for each in both.adapters] == ["tiny/x/other"]
    assert both.left_out == [f"{run} is itself an adapter: loratree publish {run} PATH"]
    (run / "checkpoint-9" / WEIGHTS).rename(run / "checkpoint-9" / "adapter_model.bin")
    with pytest.raises(Invalid, match=r"holds pickled weights \(adapter_model.bin\)"):
        find_adapters(run / "checkpoint-9", "tiny/x")


def test_a_run_takes_the_path_itself_so_a_base_alone_is_refused(tmp_path: Path) -> None:
    adapter(tmp_path / "run" / "checkpoint-9")
    assert found(tmp_path / "run") == {"tiny/clinic": "checkpoint-9"}
    with pytest.raises(Invalid, match="tiny is a base alone, which has no versions: write tiny/DOMAIN"):
        find_adapters(tmp_path / "run", "tiny")


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ({"parent": "../x"}, "segment"),
        ({"note": "two\nlines"}, "control characters and line breaks"),
        ({"note": "x" * 70_000}, "more than 65536 bytes"),
        ({"path": "tiny"}, "names a base alone"),
        ({"directory": "/in/bytes\udcff"}, "has a name that is not UTF-8"),
    ],
)
def test_no_line_is_written_that_a_manifest_refuses(field: dict[str, str], said: str) -> None:
    with pytest.raises(Invalid, match=said):
        to_line({"directory": "/x", "path": "tiny/x"} | field)


@pytest.mark.parametrize("name", ["plain", "éva", "two\nlines"])
def test_a_line_names_every_folder_that_it_was_made_of(tmp_path: Path, name: str) -> None:
    manifest = tmp_path / "x.jsonl"
    manifest.write_text(to_line({"directory": f"/in/{name}", "path": "tiny/x"}) + "\n", encoding="utf-8")
    assert [str(row.directory) for row in read_rows(manifest)] == [f"/in/{name}"]
