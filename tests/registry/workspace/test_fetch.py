"""Bringing versions to this machine."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import peft
import pytest
import safetensors.torch
import torch
import transformers

from loratree_composer.base.manifest import read_base
from loratree_registry.core.records import Version
from loratree_registry.core.registry import Registry
from loratree_registry.embedded.registry import EmbeddedRegistry
from loratree_registry.errors import Conflict, Corrupt, Invalid, NotFound, Unavailable
from loratree_registry.remote.registry import RemoteRegistry
from loratree_registry.settings import Settings
from loratree_registry.workspace.fetch import fetch, pull
from loratree_registry.workspace.publish import publish_directory
from tests import tiny
from tests.registry.fresh import open_fresh
from tests.registry.serving import Served

REF = "tiny/medicine@1"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.llama(tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("adapter") / "adapter"
    return tiny.adapter(base, directory, rank=8, alpha=3, use_rslora=True, rank_pattern={"q_proj": 2})


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def registry(base: Path, adapter: Path, home: Path) -> Iterator[EmbeddedRegistry]:
    """A registry whose tiny/medicine@1 is the adapter."""
    opened = open_fresh(Settings.from_environment({"LORATREE_HOME": str(home)}))
    opened.add_base("tiny", read_base(base), source=str(base))
    publish_directory(opened, adapter, "tiny/medicine", home=home)
    yield opened
    opened.close()


@pytest.fixture
def remote(registry: EmbeddedRegistry, web: Served, tmp_path: Path) -> Iterator[RemoteRegistry]:
    """The same registry over HTTP, whose bytes are not this machine's."""
    opened = RemoteRegistry(web.over(registry, tmp_path / "home"))
    yield opened
    opened.close()


@pytest.fixture
def version(registry: EmbeddedRegistry) -> Version:
    return registry.version(REF)


def stored(home: Path) -> Path:
    """The one blob of the registry's store."""
    (blob,) = (file for file in (home / "blobs" / "sha256").rglob("*") if file.is_file())
    return blob


def test_what_this_machine_stores_itself_is_not_copied(
    registry: EmbeddedRegistry, version: Version, home: Path
) -> None:
    assert fetch(registry, home, REF, version.files[0]) == stored(home)
    assert not (home / "cache").exists()


def test_a_file_is_fetched_once_and_read_from_the_cache_afterwards(
    remote: RemoteRegistry, version: Version, home: Path, adapter: Path
) -> None:
    file = version.files[0]
    path = fetch(remote, home, REF, file)
    hexadecimal = file.sha256.removeprefix("sha256:")
    assert path == home / "cache" / "sha256" / hexadecimal[:2] / hexadecimal
    assert path.read_bytes() == (adapter / "adapter_model.safetensors").read_bytes()
    stored(home).unlink()
    assert fetch(remote, home, REF, file) == path


@pytest.mark.parametrize("damage", [b"", b"x", None])
def test_a_damaged_copy_in_the_cache_is_fetched_again(
    damage: bytes | None, remote: RemoteRegistry, version: Version, home: Path
) -> None:
    path = fetch(remote, home, REF, version.files[0])
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"\x01" if damage is None else damage)
    assert fetch(remote, home, REF, version.files[0]).read_bytes() == whole


@pytest.mark.parametrize("damage", ["changed", "cut", "longer"])
@pytest.mark.parametrize("kind", ["registry", "remote"])
def test_a_blob_that_is_damaged_in_the_store_is_named_and_never_given_out(
    damage: str, kind: str, request: pytest.FixtureRequest, version: Version, home: Path, tmp_path: Path
) -> None:
    registry: Registry = request.getfixturevalue(kind)
    whole = stored(home).read_bytes()
    stored(home).write_bytes({"changed": whole[:-1] + b"\x01", "cut": whole[:-1], "longer": whole + b"\0"}[damage])
    with pytest.raises(Corrupt, match=version.files[0].sha256):
        fetch(registry, home, REF, version.files[0])
    with pytest.raises(Corrupt):
        pull(registry, home, REF, tmp_path / "out")
    assert not [file for file in (home / "cache").rglob("*") if file.is_file()]
    assert [entry.name for entry in tmp_path.iterdir()] == ["home"]


def test_the_cache_is_private_to_its_owner(remote: RemoteRegistry, version: Version, home: Path) -> None:
    path = fetch(remote, home, REF, version.files[0])
    assert path.stat().st_mode & 0o077 == 0
    assert all(folder.stat().st_mode & 0o077 == 0 for folder in (path.parent, home / "cache"))


def test_a_pulled_version_is_the_adapter_as_peft_reads_it(
    registry: EmbeddedRegistry, home: Path, base: Path, adapter: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert pull(registry, home, "tiny/medicine", out) == registry.version(REF)
    names = ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    assert sorted(file.name for file in out.iterdir()) == names
    logits = []
    for directory in (adapter, out):
        assert peft.PeftConfig.from_pretrained(directory).base_model_name_or_path == str(base)
        model = transformers.AutoModelForCausalLM.from_pretrained(base)
        with torch.no_grad():
            logits.append(peft.PeftModel.from_pretrained(model, directory)(tiny.tokens()).logits)
    assert torch.equal(*logits)


def test_a_pulled_folder_names_the_base_where_no_source_is_recorded(
    registry: EmbeddedRegistry, home: Path, base: Path, adapter: Path, tmp_path: Path
) -> None:
    registry.add_base("unsourced", read_base(base))
    publish_directory(registry, adapter, "unsourced/medicine", parent="base", home=home)
    pull(registry, home, "unsourced/medicine", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == f"unsourced@{read_base(base).digest}"
    again = publish_directory(registry, tmp_path / "out", "unsourced/law", home=home)  # publish reads that back
    assert again.published.version.pin.found == "explicit"


def test_a_folder_that_holds_something_else_is_left_as_it_is(
    registry: EmbeddedRegistry, home: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    pull(registry, home, REF, out)  # an empty folder is filled
    before = {file.name: file.stat().st_mtime_ns for file in out.iterdir()}
    pull(registry, home, REF, out)  # the same adapter is left alone
    assert {file.name: file.stat().st_mtime_ns for file in out.iterdir()} == before
    tensors = safetensors.torch.load_file(out / "adapter_model.safetensors")
    safetensors.torch.save_file(
        {name: tensor + 1 for name, tensor in tensors.items()}, out / "adapter_model.safetensors"
    )
    with pytest.raises(Conflict, match=f"{out} holds something else than {REF}"):
        pull(registry, home, REF, out)
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(Conflict, match="holds something else"):
        pull(registry, home, REF, other)
    assert (other / "notes.txt").read_text() == "mine"
    with pytest.raises(Invalid, match="not a folder to write into"):
        pull(registry, home, REF, other / "notes.txt")


def test_a_ref_that_names_nothing_leaves_nothing(registry: EmbeddedRegistry, home: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        pull(registry, home, "tiny/medicine@7", tmp_path / "out")
    assert not (tmp_path / "out").exists()


FULL = """
import resource, signal, sys
from pathlib import Path
from loratree_registry.connect import connect
from loratree_registry.workspace.fetch import pull

registry = connect()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
try:
    pull(registry, Path(sys.argv[1]), "tiny/medicine", Path(sys.argv[2]))
except Exception as error:
    print(type(error).__name__, error)
"""


def test_a_disk_that_takes_no_more_leaves_nothing_half_written(
    registry: EmbeddedRegistry, web: Served, version: Version, home: Path, tmp_path: Path
) -> None:
    assert version.size > 8192  # the limit that stands in for a full disk: a write fails half-way
    for url in ("", web.over(registry, home)):
        done = subprocess.run(
            [sys.executable, "-B", "-c", FULL, str(home), str(tmp_path / "out")],  # keep no module cut off by the limit
            env={"LORATREE_HOME": str(home), "LORATREE_URL": url, "PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            check=True,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0)),
        )
        assert done.stdout.startswith(Unavailable.__name__), done.stdout + done.stderr
        assert [entry.name for entry in tmp_path.iterdir()] == ["home"]
        assert not [file for file in (home / "cache").rglob("*") if file.is_file()]
