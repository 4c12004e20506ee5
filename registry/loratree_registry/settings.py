"""Where loratree keeps things, read from the environment."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from loratree_registry.errors import Invalid, Unavailable


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Where things are: this machine's folder, a registry's URL, the database and the blobs of an embedded one.

    `LORATREE_HOME` (default: the platform's data folder), `LORATREE_URL` (default: none, the embedded registry),
    `LORATREE_DATABASE` (default: the file HOME/loratree.db), `LORATREE_BLOBS` (default: HOME/blobs; or
    s3://bucket/prefix), `LORATREE_S3_ENDPOINT` (default: Amazon's) and `LORATREE_S3_PUBLIC_ENDPOINT` (where clients
    reach that server; default: the same). An empty value counts as none.

    `LORATREE_DIRECT=0` makes a server pass on what clients would else send to S3 and read from it themselves.
    """

    home: Path
    url: str | None
    database: str | Path
    blobs: str
    s3_endpoint: str | None
    s3_public_endpoint: str | None
    direct: bool

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Settings":
        """Reads the variables; what is not set follows from LORATREE_HOME."""
        home = Path(environment.get("LORATREE_HOME") or _data_folder()).expanduser().absolute()
        return cls(
            home=home,
            url=environment.get("LORATREE_URL") or None,
            database=environment.get("LORATREE_DATABASE") or home / "loratree.db",
            blobs=environment.get("LORATREE_BLOBS") or str(home / "blobs"),
            s3_endpoint=environment.get("LORATREE_S3_ENDPOINT") or None,
            s3_public_endpoint=environment.get("LORATREE_S3_PUBLIC_ENDPOINT") or None,
            direct=_switch("LORATREE_DIRECT", environment.get("LORATREE_DIRECT") or "1"),
        )

    def make_home(self) -> Path:
        """Creates HOME, readable by its owner alone, and returns it. Raises Unavailable."""
        try:
            self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise Unavailable(
                f"the folder {self.home} cannot be made ({error.strerror}): set LORATREE_HOME to one that can"
            ) from error
        return self.home


def _switch(name: str, text: str) -> bool:
    if text not in ("0", "1"):
        raise Invalid(f"{name} is {text!r}: expected 0 or 1")
    return text == "1"


def _data_folder() -> str:
    import platformdirs  # a client with LORATREE_HOME set never needs it

    return platformdirs.user_data_dir("loratree", appauthor=False)
