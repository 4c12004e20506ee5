"""`loratree doctor` never dies: each check fails alone, with one sentence, whatever is wrong with this machine."""

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path

import pytest

from tests import forked
from tests.cli.test_full_disk import on_a_full_disk
from tests.registry.serving import answering
from tests.s3 import moto

from .conftest import Filled

KEYS = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": "/nonexistent",
    "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
}
S3 = {"LORATREE_BLOBS": "s3://bucket/prefix", "LORATREE_S3_ENDPOINT": "http://127.0.0.1:9"}
ALWAYS = ["release", "part composer", "part demo"]  # checks that nothing here can stop
DATABASE = ["migrations", "database is writable"]
BLOBS = ["blobs: writable", "blobs: leftovers"]

Run = Callable[[list[str], Mapping[str, str]], subprocess.CompletedProcess[str]]


def run_forked(arguments: list[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LORATREE_", "AWS_"))}
    return forked.run(arguments, kept | environment)


def check_doctor(
    environment: Mapping[str, str], failing: Mapping[str, str], others: list[str], run: Run = run_forked
) -> None:
    """Asserts that exactly the `failing` checks fail, with those words, and that `others` ran, in text and in JSON."""
    told, listed = run(["doctor"], environment), run(["doctor", "--json"], environment)
    assert (told.returncode, listed.returncode) == (1, 1), (told.stdout, listed.stdout)
    assert "Traceback" not in told.stderr + listed.stderr + told.stdout + listed.stdout
    checks = json.loads(listed.stdout)
    assert {check["name"] for check in checks if check["ok"] is False} == set(failing)
    for name, words in failing.items():
        [line] = [line for line in told.stdout.splitlines() if line.startswith(f"fail  {name}: ")]
        assert words in line
        assert len(line) <= 600
    names = [check["name"] for check in checks]
    assert set(ALWAYS + others) <= set(names)
    assert len(names) == len(told.stdout.splitlines()), "a check says one sentence on one line"


@pytest.fixture
def home(filled: Filled, shell: Callable[..., object], tmp_path: Path) -> Path:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "a-file").write_text("text")
    (tmp_path / "a-folder").mkdir()
    (tmp_path / "text.db").write_bytes(b"no database, but long enough to be taken for one" * 40)
    (tmp_path / "broken").write_text("[default\nregion")
    (tmp_path / "settings" / "loratree").mkdir(parents=True)
    (tmp_path / "settings" / "loratree" / "loratree.toml").write_text('databse = "x"')
    return tmp_path / "home"


LONG = "/" + "a" * 300
ALL = DATABASE + BLOBS
WRONG: dict[str, tuple[dict[str, str], dict[str, str], list[str]]] = {
    "a file of settings that is not TOML": (
        {"LORATREE_CONFIG": "{here}/broken"},
        {"setting LORATREE_CONFIG": "is not TOML"},
        ALL,
    ),
    "a file of settings that is not there": (
        {"LORATREE_CONFIG": "{here}/none", "XDG_CONFIG_HOME": "{here}/settings"},
        {"setting LORATREE_CONFIG": "cannot be read"},
        ALL,
    ),
    "the usual file of settings with a typing error": (
        {"XDG_CONFIG_HOME": "{here}/settings"},
        {"settings": "has the key 'databse' (did you mean 'database'?)"},
        ALL,
    ),
    "the usual file of settings and a variable": (
        {"XDG_CONFIG_HOME": "{here}/settings", "LORATREE_DIRECT": "yes"},
        {"settings": "did you mean 'database'?", "setting LORATREE_DIRECT": "expected 0 or 1"},
        ALL,
    ),
    "a switch": ({"LORATREE_DIRECT": "yes"}, {"setting LORATREE_DIRECT": "expected 0 or 1"}, ALL),
    "a user that there is not": (
        {"LORATREE_HOME": "~nobody-of-this-name/x"},
        {"setting LORATREE_HOME": "begins with a user that this machine does not know"},
        [],
    ),
    "a home with too long a name": (
        {"LORATREE_HOME": LONG},
        {"home": "set LORATREE_HOME", "database": "check LORATREE_DATABASE", "blobs": "check LORATREE_BLOBS"},
        [],
    ),
    "a home that is a loop": (
        {"LORATREE_HOME": "{here}/loop"},
        {"home": "set LORATREE_HOME", "database": "check LORATREE_DATABASE", "blobs: writable": "set LORATREE_BLOBS"},
        [],
    ),
    "a home that is a file": (
        {"LORATREE_HOME": "{here}/a-file"},
        {
            "home": "is not a folder",
            "database": "make that folder",
            "blobs: writable": "set LORATREE_BLOBS to a folder",
        },
        [],
    ),
    "a database that is a folder": (
        {"LORATREE_DATABASE": "sqlite:///{here}/a-folder"},
        {"database": "is a folder: set LORATREE_DATABASE to a file"},
        ["home", *BLOBS],
    ),
    "a database that is text": (
        {"LORATREE_DATABASE": "sqlite:///{here}/text.db"},
        {"database": "name another file, or restore this one"},
        ["home", *BLOBS],
    ),
    "a database with a query": (
        {"LORATREE_DATABASE": "sqlite:///{here}/x.db?mode=ro"},
        {"database": "has a query"},
        ["home", *BLOBS],
    ),
    "a database in memory": (
        {"LORATREE_DATABASE": "sqlite:///:memory:"},
        {"database": "expected sqlite:///FILE"},
        ["home", *BLOBS],
    ),
    "a database of a kind that is none": (
        {"LORATREE_DATABASE": "mysql://root:sekret@host/x"},
        {"database": "expected sqlite:///FILE or postgresql://"},
        ["home", *BLOBS],
    ),
    "a PostgreSQL that is down": (
        {"LORATREE_DATABASE": "postgresql://loratree:sekret@127.0.0.1:9/x"},
        {"database": "check that it is running"},
        ["home", *BLOBS],
    ),
    "a PostgreSQL on a host that cannot be": (
        {"LORATREE_DATABASE": f"postgresql://loratree:sekret@{'a' * 80}.example/x"},
        {"database": "correct LORATREE_DATABASE"},
        ["home", *BLOBS],
    ),
    "a URL of another kind": ({"LORATREE_URL": "ftp://sekret@x"}, {"server": "expected a URL"}, ["home"]),
    "a URL with a host that cannot be": (
        {"LORATREE_URL": f"http://{'a' * 80}.example"},
        {"server": "expected a URL"},
        ["home"],
    ),
    "a URL with another host that cannot be": (
        {"LORATREE_URL": "http://xn--a-ecp.example"},
        {"server": "expected a URL"},
        ["home"],
    ),
    "no network": (
        {"LORATREE_URL": "http://server.invalid"},
        {"server": "check LORATREE_URL, and that `loratree serve` is running there"},
        ["home"],
    ),
    "certificates that are not there": (
        {"LORATREE_URL": "https://127.0.0.1:9", "SSL_CERT_FILE": "/nonexistent"},
        {"server": "check SSL_CERT_FILE"},
        ["home"],
    ),
    "a store of an unknown kind": (
        {"LORATREE_BLOBS": "gopher://x"},
        {"blobs": "expected a folder or s3://bucket/prefix"},
        ["home", *DATABASE],
    ),
    "a store that is a file": (
        {"LORATREE_BLOBS": "{here}/a-file"},
        {"blobs: writable": "set LORATREE_BLOBS to a folder"},
        ["home", *DATABASE],
    ),
    "a store with too long a name": ({"LORATREE_BLOBS": LONG}, {"blobs": "check LORATREE_BLOBS"}, ["home", *DATABASE]),
    "S3 without credentials": (
        {**KEYS, **S3, "AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""},
        {"blobs: reachable": "set AWS_ACCESS_KEY_ID"},
        ["home", *DATABASE],
    ),
    "S3 at a server that does not answer": (
        {**KEYS, **S3},
        {"blobs: reachable": "check LORATREE_BLOBS, LORATREE_S3_ENDPOINT and the network"},
        ["home", *DATABASE],
    ),
    "S3 at no URL": (
        {**KEYS, **S3, "LORATREE_S3_ENDPOINT": "server"},
        {"blobs: reachable": "expected a URL"},
        ["home", *DATABASE],
    ),
    "S3 with a profile that there is not": (
        {**KEYS, **S3, "AWS_PROFILE": "nobody"},
        {"blobs: reachable": "check AWS_PROFILE"},
        ["home", *DATABASE],
    ),
    "S3 with a broken file of settings": (
        {**KEYS, **S3, "AWS_CONFIG_FILE": "{here}/broken"},
        {"blobs: reachable": "the files in ~/.aws"},
        ["home", *DATABASE],
    ),
    "S3 in no region": (
        {**KEYS, **S3, "AWS_DEFAULT_REGION": "no region!"},
        {"blobs: reachable": "AWS_DEFAULT_REGION"},
        ["home", *DATABASE],
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_one_failing_check_and_the_others_go_on(home: Path, tmp_path: Path, case: str) -> None:
    given, failing, others = WRONG[case]
    environment = {name: value.replace("{here}", str(tmp_path)) for name, value in given.items()}
    environment = {"HOME": str(tmp_path / "of-the-user"), "LORATREE_HOME": str(home)} | environment
    check_doctor(environment, failing, others)
    assert "sekret" not in run_forked(["doctor"], environment).stdout


def test_several_faults_are_told_together(home: Path) -> None:
    environment = {
        "LORATREE_HOME": str(home),
        "LORATREE_DIRECT": "2",
        "LORATREE_DATABASE": "postgresql://127.0.0.1:9/x",
        "LORATREE_BLOBS": "gopher://x",
    }
    failing = {"setting LORATREE_DIRECT": "expected 0 or 1", "database": "check that", "blobs": "expected a folder"}
    check_doctor(environment, failing, ["home"])


def test_a_bucket_that_there_is_not_and_keys_that_are_refused(home: Path) -> None:
    with moto() as server:
        environment = {**KEYS, **S3, "LORATREE_HOME": str(home), "LORATREE_S3_ENDPOINT": server.endpoint}
        check_doctor(environment, {"blobs: reachable": "create the bucket or set LORATREE_BLOBS"}, DATABASE)


JSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: "
NONSENSE = {
    "no HTTP": b"SSH-2.0-OpenSSH_9.2\r\n",
    "nothing": b"",
    "a page": b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 4\r\n\r\nhome",
    "a page that says no": b"HTTP/1.1 502 Bad Gateway\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
    "broken compression": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nhome",
    "another record": JSON + b'13\r\n\r\n{"status": 1}',
    "deep JSON": JSON + b"100000\r\n\r\n" + b"[" * 100_000,
    "half an answer": JSON + b"100\r\n\r\n{",
}


@pytest.mark.parametrize("answer", NONSENSE)
@pytest.mark.parametrize("of", ["server", "store"])
def test_a_server_that_answers_nonsense(home: Path, answer: str, of: str) -> None:
    with answering(NONSENSE[answer]) as (url, _):
        if of == "server":
            settings = {"LORATREE_HOME": str(home), "LORATREE_URL": url}
            check_doctor(settings, {"server": "check LORATREE_URL"}, ["home"])
        else:
            settings = {**KEYS, **S3, "LORATREE_HOME": str(home), "LORATREE_S3_ENDPOINT": url}
            check_doctor(settings, {"blobs: reachable": "check"}, DATABASE)


@pytest.mark.parametrize(
    ("package", "settings", "failing"),
    [
        ("boto3", S3, {"blobs: reachable": "install loratree[s3]"}),
        ("psycopg", {"LORATREE_DATABASE": "postgresql://h/x"}, {"database": "pip install 'loratree[postgres]'"}),
    ],
)
def test_a_package_that_is_missing(home: Path, package: str, settings: dict[str, str], failing: dict[str, str]) -> None:
    program = f"import sys; sys.modules[{package!r}] = None; from loratree_cli.main import main; main()"

    def run(arguments: list[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", program, *arguments]
        return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)

    check_doctor({"LORATREE_HOME": str(home), **settings}, failing, ["home"], run)


def test_a_schema_of_a_newer_release(home: Path) -> None:
    with closing(sqlite3.connect(home / "loratree.db")) as database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
        database.commit()
    settings = {"LORATREE_HOME": str(home)}
    check_doctor(settings, {"migrations": "upgrade loratree"}, ["database", "database is writable", *BLOBS])


def test_a_table_that_is_gone_fails_its_own_check_alone(home: Path) -> None:
    with closing(sqlite3.connect(home / "loratree.db")) as database:
        database.execute("DROP TABLE uploads")
        database.commit()
    check_doctor({"LORATREE_HOME": str(home)}, {"leftovers": "no such table"}, ["database", *ALL])


NEEDED = "import loratree_cli.commands.doctor, loratree_registry.housekeeping.doctor, sqlalchemy.dialects.sqlite; "


def test_a_home_that_this_user_may_not_enter(home: Path) -> None:
    """As a user who is not root: root may enter everywhere."""
    program = "import os, sys; os.geteuid() or os.setuid(65534); from loratree_cli.main import main; main()"
    (home.parent / "locked").mkdir(mode=0o000)

    def run(arguments: list[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        # Imports first: nobody else than root may be able to read the packages.
        command = [sys.executable, "-c", NEEDED + program, *arguments]
        return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)

    failing = {"home": "set LORATREE_HOME", "database": "check LORATREE_DATABASE", "blobs": "check LORATREE_BLOBS"}
    check_doctor({"LORATREE_HOME": str(home.parent / "locked" / "home")}, failing, [], run)


def test_a_disk_that_is_full(filled: Filled, tmp_path: Path) -> None:
    done = on_a_full_disk(filled, tmp_path, ["ls"], ["fill"], ["doctor", "--json"], ["doctor"])
    for status, _, err, _ in done[2:]:
        assert (status, err) == (1, "")
    failing = [check for check in json.loads(done[2][1]) if check["ok"] is False]
    assert [check["name"] for check in failing] == ["blobs: writable"]
    assert "is full" in failing[0]["says"]
    assert "free some space or set LORATREE_BLOBS" in failing[0]["says"]
