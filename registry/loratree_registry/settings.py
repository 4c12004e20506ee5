"""Settings of loratree, read from the environment."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from loratree_registry.disk.private import make_private
from loratree_registry.errors import Invalid, Unavailable


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The folder of this machine, the URL of a registry, and the database and blobs of an embedded registry.

    `LORATREE_HOME` (default: the platform's data folder), `LORATREE_URL` (default: none, the embedded registry),
    `LORATREE_DATABASE` (default: the file HOME/loratree.db), `LORATREE_BLOBS` (default: HOME/blobs; or
    s3://bucket/prefix), `LORATREE_S3_ENDPOINT` (default: Amazon's) and `LORATREE_S3_PUBLIC_ENDPOINT` (the address at
    which clients reach the S3 server; default: LORATREE_S3_ENDPOINT). An empty value counts as not set.

    By default clients send bytes to S3 and read them from S3; with `LORATREE_DIRECT=0` all bytes go through the server.
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
        """Read the settings from the variables; the defaults of the others follow from LORATREE_HOME."""
        home = Path(environment.get("LORATREE_HOME") or _find_data_folder()).expanduser().absolute()
        return cls(
            home=home,
            url=environment.get("LORATREE_URL") or None,
            database=environment.get("LORATREE_DATABASE") or home / "loratree.db",
            blobs=environment.get("LORATREE_BLOBS") or str(home / "blobs"),
            s3_endpoint=environment.get("LORATREE_S3_ENDPOINT") or None,
            s3_public_endpoint=environment.get("LORATREE_S3_PUBLIC_ENDPOINT") or None,
            direct=_parse_switch("LORATREE_DIRECT", environment.get("LORATREE_DIRECT") or "1"),
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


def _parse_switch(name: str, text: str) -> bool:
    if text not in ("0", "1"):
        raise Invalid(f"{name} is {text!r}: expected 0 or 1")
    return text == "1"


def _find_data_folder() -> str:
    import platformdirs  # a client with LORATREE_HOME set does not need this package

    return platformdirs.user_data_dir("loratree", appauthor=False)
