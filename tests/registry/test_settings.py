"""Settings: what the environment says, and what follows where it says nothing."""

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from loratree_registry.errors import Invalid
from loratree_registry.settings import Settings, check_variables


def test_everything_follows_from_the_home(tmp_path: Path) -> None:
    settings = Settings.from_environment({"LORATREE_HOME": str(tmp_path)})
    assert settings == Settings(
        home=tmp_path,
        url=None,
        database=tmp_path / "loratree.db",
        blobs=f"{tmp_path}/blobs",
        s3_endpoint=None,
        s3_public_endpoint=None,
        direct=True,
    )


def test_each_part_may_be_elsewhere() -> None:
    settings = Settings.from_environment(
        {
            "LORATREE_HOME": "/somewhere",
            "LORATREE_URL": "http://127.0.0.1:8321",
            "LORATREE_DATABASE": "postgresql://h/loratree",
            "LORATREE_BLOBS": "s3://bucket/prefix",
            "LORATREE_S3_ENDPOINT": "http://127.0.0.1:9000",
            "LORATREE_S3_PUBLIC_ENDPOINT": "https://s3.example.org",
        }
    )
    assert settings.home == Path("/somewhere")
    assert (settings.url, settings.database) == ("http://127.0.0.1:8321", "postgresql://h/loratree")
    assert (settings.blobs, settings.s3_endpoint) == ("s3://bucket/prefix", "http://127.0.0.1:9000")
    assert settings.s3_public_endpoint == "https://s3.example.org"


def test_no_setting_with_a_password_is_in_the_repr() -> None:
    names = ("URL", "DATABASE", "BLOBS", "S3_ENDPOINT", "S3_PUBLIC_ENDPOINT")
    settings = Settings.from_environment({f"LORATREE_{name}": f"x://user:sekret-{name}@host" for name in names})
    assert "sekret" not in repr(settings)


UNDER_NO_UMASK = """
import io, os, pathlib, sys
os.umask(0)
home = pathlib.Path(sys.argv[1])
from loratree_registry.blobs.local import LocalBlobStore
from loratree_registry.embedded.staged_uploads import StagedUploads
from loratree_registry.embedded.storage import open_prepared
from loratree_registry.errors import Invalid
from loratree_registry.settings import Settings, check_variables
from loratree_registry.workspace.base_locations import remember_base
from loratree_registry.disk.whole_folder import whole_folder
digest = "sha256:2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"  # of x
for name in ("a", "b", "c", "d"):
    where = home / name / "deep"
    if name == "a":
        remember_base(where, digest, home)
    elif name == "b":
        LocalBlobStore(where / "cache").put(digest, 1, io.BytesIO(b"x"))
    elif name == "c":
        uploads = StagedUploads(where / "uploads", None)
        upload = uploads.begin(digest, 1)
        with uploads.receive(upload.id, 1) as part:
            part.write(b"x")
    else:
        storage = open_prepared(Settings.from_environment({"LORATREE_HOME": str(where)}))
        storage.close()
with whole_folder(home / "out") as out:
    (out / "file").write_text("x")
"""


def test_what_is_private_is_private_under_any_umask_and_an_out_is_the_umasks(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", UNDER_NO_UMASK, str(tmp_path)], check=True, timeout=60)
    found = {path.relative_to(tmp_path): stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    private = {path: mode for path, mode in found.items() if path.parts[0] != "out"}
    assert len([path for path in private if (tmp_path / path).is_file()]) == 6
    expected = {path: 0o700 if (tmp_path / path).is_dir() else 0o600 for path in private}
    assert private == expected
    assert (found[Path("out")], found[Path("out/file")]) == (0o777, 0o666)


def test_an_empty_variable_counts_as_not_set(tmp_path: Path) -> None:
    names = ("URL", "DATABASE", "BLOBS", "S3_ENDPOINT", "S3_PUBLIC_ENDPOINT")
    empty = {f"LORATREE_{name}": "" for name in names}
    home = {"LORATREE_HOME": str(tmp_path)}
    assert Settings.from_environment(home | empty) == Settings.from_environment(home)


def test_the_default_home_is_the_platforms_data_folder() -> None:
    home = Settings.from_environment({}).home
    assert home.is_absolute()
    assert home.name == "loratree"


def test_a_home_may_be_written_with_a_tilde_or_relative(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert Settings.from_environment({"LORATREE_HOME": "~/x"}).home == tmp_path / "x"
    assert Settings.from_environment({"LORATREE_HOME": "x"}).home == tmp_path / "x"


def test_a_file_sets_what_no_variable_does(tmp_path: Path) -> None:
    file = tmp_path / "loratree" / "loratree.toml"
    file.parent.mkdir()
    file.write_text('home = "/somewhere"\nurl = "http://127.0.0.1:1"\nblobs = "s3://bucket/x"\ndirect = false\n')
    settings = Settings.from_environment({"XDG_CONFIG_HOME": str(tmp_path)})
    assert (settings.home, settings.url) == (Path("/somewhere"), "http://127.0.0.1:1")
    assert (settings.blobs, settings.direct) == ("s3://bucket/x", False)
    mixed = {"LORATREE_CONFIG": str(file), "LORATREE_HOME": "/other", "LORATREE_URL": "", "LORATREE_DIRECT": "1"}
    settings = Settings.from_environment(mixed)
    assert (settings.home, settings.url, settings.direct) == (Path("/other"), None, True)
    assert Settings.from_environment({"LORATREE_HOME": "/other"}).url is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("home = ", "is not TOML"),
        ("\xff", "is not TOML"),
        ('databse = "x"', "has the key 'databse' (did you mean 'database'?): expected home, url, database"),
        ("url = 1", "has url = 1: expected a text in quotes"),
        ("direct = 'yes'", "has direct = yes: expected true or false"),
        ("[home]", "has home = {}: expected a text in quotes"),
        ("x" * 70_000, "is larger than 65536 bytes"),
        (None, "cannot be read: No such file"),
    ],
)
def test_a_file_that_is_wrong_is_refused(tmp_path: Path, text: str | None, said: str) -> None:
    file = tmp_path / "file.toml"
    if text is not None:
        file.write_text(text, encoding="latin-1")
    with pytest.raises(Invalid) as error:
        Settings.from_environment({"LORATREE_CONFIG": str(file)})
    assert said in str(error.value)
    assert str(file) in str(error.value)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("LORATREE_DATABSE", "DATABASE"),
        ("LORATREE_BLOB", "BLOBS"),
        ("LORATREE_S3_ENDPONT", "S3_ENDPOINT"),
        ("loratree_home", "HOME"),
        ("LORATREE_URLS", "URL"),
    ],
)
def test_a_variable_that_is_nearly_ours_is_refused(name: str, meant: str) -> None:
    with pytest.raises(Invalid, match=rf"no variable {name} \(did you mean LORATREE_{meant}\?\)"):
        Settings.from_environment({name: "x"})


def test_a_variable_that_means_nothing_is_named(tmp_path: Path) -> None:
    assert check_variables({"LORATREE_FOO": "1", "LORATREE_TEST_X": "1", "LORATREE_HOME": "x"}) == ["LORATREE_FOO"]


@pytest.mark.parametrize(
    "name",
    [
        "LORATRE_HOME",
        "LORA_TREE_HOME",
        "LORATREEHOME",
        "LORTREE_HOME",
        "LORATERE_URL",
        "lora_tree_blobs",
        "LOARTREE_HOME",
    ],
)
def test_a_variable_that_begins_nearly_as_ours_do_is_named(name: str) -> None:
    assert check_variables({name: "x", "LORATREE_FOO": "1"}) == sorted([name, "LORATREE_FOO"])


def test_variables_of_other_programs_are_not_ours_and_cost_no_import() -> None:
    others = ("LORA_HOME", "LOGNAME", "LANG", "LD_LIBRARY_PATH", "HOME", "TREE_HOME", "_LORATREE_COMPLETE")
    assert check_variables(dict.fromkeys((*others, "LORA_PATH", "LOOT_HOME", "LOCATION"), "x")) == []
    code = (
        "import sys; from loratree_registry.settings import check_variables; "
        f"check_variables(dict.fromkeys({others}, 'x')); print('difflib' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "False\n"


def test_a_tilde_is_expanded_in_every_place_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    given = {"LORATREE_HOME": "~/h", "LORATREE_BLOBS": "~/b", "LORATREE_DATABASE": "sqlite:///~/d.db"}
    settings = Settings.from_environment(given)
    assert settings.home == tmp_path / "h"
    assert (settings.blobs, settings.database) == (f"{tmp_path}/b", f"sqlite:///{tmp_path}/d.db")
    with pytest.raises(Invalid, match="begins with a user that this machine does not know"):
        Settings.from_environment({"LORATREE_HOME": "~no-such-user/h"})
