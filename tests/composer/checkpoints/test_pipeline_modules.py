"""An encoder of sentence-transformers is composed with the folders of its modules."""

import json
import shutil
from pathlib import Path

import pytest

from loratree_composer.compose_files import compose
from loratree_registry.errors import Conflict, Invalid
from loratree_registry.workspace.lockfile import Lockfile, check_artifact, read_lockfile
from tests.composer.conftest import Catalog

MODULES = [{"idx": 0, "name": "0", "path": "", "type": "Transformer"}]
MODULES += [
    {"idx": n, "name": str(n), "path": path} for n, path in ((1, "1_Pooling"), (2, "2_Dense"), (3, "3_Normalize"))
]


@pytest.fixture
def pipeline(catalog: Catalog, tmp_path: Path) -> Path:
    """The base in the layout of sentence-transformers, with links into the blobs of the hub's cache."""
    folder = tmp_path / "models--tiny" / "snapshots" / "0123"
    shutil.copytree(catalog.tree.base, folder)
    (folder / "modules.json").write_text(json.dumps(MODULES))
    for name, content in (("1_Pooling/config.json", "{}"), ("2_Dense/model.safetensors", "w"), ("2_Dense/run.py", "!")):
        (folder / name).parent.mkdir(exist_ok=True)
        blob = folder.parent.parent / "blobs" / name.replace("/", "-")
        blob.parent.mkdir(exist_ok=True)
        blob.write_text(content)
        (folder / name).symlink_to(Path("../../../blobs") / blob.name)
    return folder


def composed(catalog: Catalog, base: Path, out: Path) -> Lockfile:
    return compose(catalog.registry, catalog.leaf, "merge", out, base_directory=base, home=catalog.home)


def test_the_folders_of_modules_are_copied_as_files_of_the_composition(
    catalog: Catalog, pipeline: Path, tmp_path: Path
) -> None:
    lockfile = composed(catalog, pipeline, out := tmp_path / "out")
    assert (out / "1_Pooling" / "config.json").read_text() == "{}"
    assert [path.name for path in (out / "2_Dense").iterdir()] == ["model.safetensors"]  # and no program
    assert not (out / "2_Dense" / "model.safetensors").is_symlink()
    assert {"1_Pooling/config.json", "2_Dense/model.safetensors"} <= {file.name for file in lockfile.artifact.files}
    assert composed(catalog, pipeline, out) == lockfile == read_lockfile(out)
    check_artifact(lockfile, out)
    (out / "1_Pooling" / "config.json").write_text("[]")
    with pytest.raises(Conflict, match=r"1_Pooling/config\.json changed since it was composed"):
        composed(catalog, pipeline, out)


@pytest.mark.parametrize("path", ["../elsewhere", "/etc", "a/b", "..", 7])
def test_a_module_elsewhere_is_refused(catalog: Catalog, pipeline: Path, tmp_path: Path, path: object) -> None:
    (pipeline / "modules.json").write_text(json.dumps([{"path": path}]))
    with pytest.raises(Invalid, match=r"modules\.json (names the file|is no list of modules)"):
        composed(catalog, pipeline, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_link_of_a_module_leads_out_of_the_folder(catalog: Catalog, pipeline: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (pipeline / "1_Pooling" / "notes.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(Invalid, match=r"notes\.txt is a link to .*secret, outside of its folder"):
        composed(catalog, pipeline, tmp_path / "out")
    shutil.rmtree(pipeline / "1_Pooling")
    (pipeline / "1_Pooling").symlink_to(tmp_path)
    with pytest.raises(Invalid, match="1_Pooling is a link, expected a folder of its own"):
        composed(catalog, pipeline, tmp_path / "out")
    assert not (tmp_path / "out").exists()
