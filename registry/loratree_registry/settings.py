"""Settings of loratree, read from the environment and from a file."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from loratree_registry.core.text import nearest, nearest_name
from loratree_registry.disk.plain_files import expand_home, read_plain
from loratree_registry.disk.private import make_private
from loratree_registry.errors import Invalid, Unavailable

CONFIG: Final = "loratree.toml"
_KEYS: Final = ("home", "url", "database", "blobs", "s3_endpoint", "s3_public_endpoint", "direct")
_VARIABLES: Final = {f"LORATREE_{key.upper()}": key for key in _KEYS}
_OTHERS: Final = ("LORATREE_CONFIG",)
_OF_TESTS: Final = "LORATREE_TEST_"
_NEARLY: Final = 0.9  # two letters of LORATREE_HOME may be swapped; LORA_HOME, which is not ours, has 0.76
_MAX_CONFIG: Final = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The folder of this machine, the URL of a registry, and the database and blobs of an embedded registry.

    `LORATREE_HOME` (default: the platform's data folder), `LORATREE_URL` (default: none, the embedded registry),
    `LORATREE_DATABASE` (default: the file HOME/loratree.db), `LORATREE_BLOBS` (default: HOME/blobs; or
    s3://bucket/prefix), `LORATREE_S3_ENDPOINT` (default: Amazon's) and `LORATREE_S3_PUBLIC_ENDPOINT` (the address at
    which clients reach the S3 server; default: LORATREE_S3_ENDPOINT). An empty value stands for the default.

    By default clients send bytes to S3 and read them from S3; with `LORATREE_DIRECT=0` all bytes go through the server.

    A setting without a variable is read from the file that `LORATREE_CONFIG` names, or else from
    loratree/loratree.toml in `XDG_CONFIG_HOME` (default: ~/.config). Its keys are home, url, database, …
    """

    home: Path  # the others may hold passwords, so no repr shows them
    url: str | None = field(repr=False)
    database: str | Path = field(repr=False)
    blobs: str = field(repr=False)
    s3_endpoint: str | None = field(repr=False)
    s3_public_endpoint: str | None = field(repr=False)
    direct: bool

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Settings":
        """Read the settings from the variables and the file; the defaults of the others follow from the home.

        Raises Invalid if a setting is wrong, or if a variable's name is nearly one of ours.
        """
        check_variables(environment)
        variables = {key: environment[name] for name, key in _VARIABLES.items() if name in environment}
        values = {key: text for key, text in (_read_config(environment) | variables).items() if text}
        home = expand_home(Path(values.get("home") or _find_data_folder())).absolute()
        return cls(
            home=home,
            url=values.get("url"),
            database=_expand(values.get("database")) or home / "loratree.db",
            blobs=_expand(values.get("blobs")) or str(home / "blobs"),
            s3_endpoint=values.get("s3_endpoint"),
            s3_public_endpoint=values.get("s3_public_endpoint"),
            direct=_parse_switch("LORATREE_DIRECT", values.get("direct") or "1"),
        )

    def make_home(self) -> Path:
        """Create HOME, accessible only to its owner, and return it. Raises Unavailable."""
        try:
            make_private(self.home)
        except OSError as error:
            raise Unavailable(
                f"the folder {self.home} cannot be made ({error.strerror}): set LORATREE_HOME to a folder that can"
            ) from error
        return self.home


def check_variables(environment: Mapping[str, str]) -> list[str]:
    """Return the variables that begin with LORATREE_, or with nearly that, and mean nothing to loratree.

    Raises Invalid if one begins with LORATREE_ and is nearly the name of a variable that does: a registry elsewhere
    would be used instead. One that begins otherwise, such as LORATRE_HOME, may be another program's.
    """
    known = (*_VARIABLES, *_OTHERS)
    unknown = sorted(
        name
        for name in environment
        if name.upper().startswith("LORATREE_") and name not in known and not name.startswith(_OF_TESTS)
    )
    for name in unknown:
        # What follows LORATREE_ is compared, which makes all names alike.
        meant = nearest_name(name.upper().removeprefix("LORATREE_"), [each.removeprefix("LORATREE_") for each in known])
        if meant is not None:
            raise Invalid(
                f"loratree has no variable {name[:80]} (did you mean LORATREE_{meant}?): correct its name, or unset it"
            )
    return sorted(unknown + [name for name in environment if _is_nearly_ours(name)])


def _is_nearly_ours(name: str) -> bool:
    """Return whether a name that does not begin with LORATREE_ is nearly one of ours, as LORA_TREE_HOME is.

    Most names fail the first test, so a command that has none of these does not import difflib.
    """
    upper = name.upper()
    plain = upper.replace("_", "")
    if not upper.startswith("LO") or "T" not in plain[2:8] or upper.startswith("LORATREE_") or len(name) > 80:
        return False
    import difflib

    known = [each.replace("_", "") for each in (*_VARIABLES, *_OTHERS)]
    return bool(difflib.get_close_matches(plain, known, n=1, cutoff=_NEARLY))


def _read_config(environment: Mapping[str, str]) -> dict[str, str]:
    """Read the settings of the file. Raises Invalid."""
    file = _find_config(environment)
    if file is None:
        return {}
    import tomllib

    try:
        document = tomllib.loads(read_plain(file, limit=_MAX_CONFIG, remedy="name a TOML file of settings").decode())
    except ValueError as error:  # TOMLDecodeError, or bytes that are no text
        raise Invalid(f"{file} is not TOML ({error}): correct it") from error
    values: dict[str, str] = {}
    for key, value in document.items():
        if key not in _KEYS:
            raise Invalid(f"{file} has the key {key[:80]!r}{nearest(key, _KEYS)}: expected {', '.join(_KEYS)}")
        if not isinstance(value, bool if key == "direct" else str):
            expected = "true or false" if key == "direct" else "a text in quotes"
            raise Invalid(f"{file} has {key} = {str(value)[:80]}: expected {expected}")
        values[key] = str(int(value)) if isinstance(value, bool) else value
    return values


def _find_config(environment: Mapping[str, str]) -> Path | None:
    if named := environment.get("LORATREE_CONFIG"):
        return None if named == os.devnull else expand_home(Path(named))
    folder = environment.get("XDG_CONFIG_HOME") or (f"{home}/.config" if (home := environment.get("HOME")) else None)
    file = Path(folder, "loratree", CONFIG) if folder else None
    return file if file is not None and file.is_file() else None


def _expand(location: str | None) -> str | None:
    """Expand `~` in a folder, and in an SQLite file's address; shells expand it only at the beginning of a word."""
    if location is None:
        return None
    scheme = "sqlite:///" if location.startswith("sqlite:///~") else ""
    rest = location.removeprefix(scheme)
    return scheme + str(expand_home(Path(rest))) if rest.startswith("~") else location


def _parse_switch(name: str, text: str) -> bool:
    if text not in ("0", "1"):
        raise Invalid(f"{name} is {text!r}: expected 0 or 1")
    return text == "1"


def _find_data_folder() -> str:
    import platformdirs  # a client with LORATREE_HOME set does not need this package

    return platformdirs.user_data_dir("loratree", appauthor=False)
