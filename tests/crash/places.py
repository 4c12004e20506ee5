"""Where a registry keeps things: each database with each store, and equal copies of one state, as many as are asked."""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Protocol
from unittest.mock import patch

from loratree_registry.database.engine import upgrade_database
from loratree_registry.embedded.registry import EmbeddedRegistry, open_embedded
from loratree_registry.embedded.storage import open_storage
from loratree_registry.housekeeping.collecting import collect
from loratree_registry.settings import Settings
from tests import ceph, s3
from tests.long import LONG
from tests.postgresql import PostgreSQL, postgresql

BUCKET = "crash"
DATABASES = ("sqlite", "postgresql")
STORES = ("local", *(["moto"] if LONG else []), *(["ceph"] if ceph.wanted() else []))


class Store(Protocol):
    """What holds the blobs of copies."""

    def copy(self, source: str | None, sandbox: Path) -> Mapping[str, str]:
        """The variables of a new store that holds what that of the location `source` does."""
        ...

    def names(self, location: str) -> list[str]:
        """Every file or key of a store, what is on its way in too."""
        ...

    def remove(self, location: str) -> None:
        """Removes a store: a bucket that keeps those of every point is slow to list."""
        ...


@dataclass(frozen=True)
class Copy:
    """One registry of its own: the environment of those who use it."""

    sandbox: Path
    environment: Mapping[str, str]
    store: Store

    @contextmanager
    def registry(self) -> Iterator[EmbeddedRegistry]:
        """A fresh registry over it, in this process."""
        registry = open_embedded(Settings.from_environment(self.environment))
        try:
            yield registry
        finally:
            registry.close()

    @contextmanager
    def migrated(self) -> Iterator[EmbeddedRegistry]:
        """The same, with the schema of this release first."""
        upgrade_database(self.environment["LORATREE_DATABASE"])
        with self.registry() as registry:
            yield registry

    def collected(self) -> list[str]:
        """Collects what nothing needs, with no grace, and gives the blobs that are left."""
        settings = Settings.from_environment(self.environment)
        with open_storage(settings) as storage:
            list(collect(storage, settings.home / "uploads", grace=timedelta(0)))
        return [name for name in self.stored() if name.startswith("sha256/")]

    def stored(self) -> list[str]:
        """Every file or key in its store."""
        return self.store.names(self.environment["LORATREE_BLOBS"])


class Local:
    """Blobs in the copy's own folder."""

    def copy(self, source: str | None, sandbox: Path) -> Mapping[str, str]:
        """See Store.copy."""
        blobs = sandbox / "blobs"
        if source is not None and Path(source).exists():
            shutil.copytree(source, blobs)
        return {"LORATREE_BLOBS": str(blobs)}

    def names(self, location: str) -> list[str]:
        """See Store.names."""
        return sorted(str(path.relative_to(location)) for path in Path(location).rglob("*") if path.is_file())

    def remove(self, location: str) -> None:
        """See Store.remove; it goes with the copy's folder."""


class S3:
    """Blobs under a prefix of the copy's own."""

    def __init__(self, server: s3.S3Server) -> None:
        self._server, self._client = server, server.client()
        self._client.create_bucket(Bucket=BUCKET)

    def copy(self, source: str | None, sandbox: Path) -> Mapping[str, str]:
        """See Store.copy."""
        location = f"s3://{BUCKET}/{sandbox.name}"
        for name in self.names(source) if source else ():
            held = {"Bucket": BUCKET, "Key": f"{_prefix(source)}{name}"}
            self._client.copy_object(Bucket=BUCKET, Key=f"{_prefix(location)}{name}", CopySource=held)
        endpoint = {"LORATREE_BLOBS": location, "LORATREE_S3_ENDPOINT": self._server.endpoint}
        return endpoint | dict(self._server.environment)

    def names(self, location: str) -> list[str]:
        """See Store.names."""
        listed = self._client.list_objects_v2(Bucket=BUCKET, Prefix=_prefix(location)).get("Contents", [])
        return sorted(item["Key"].removeprefix(_prefix(location)) for item in listed)

    def remove(self, location: str) -> None:
        """See Store.remove."""
        keys = [{"Key": f"{_prefix(location)}{name}"} for name in self.names(location)]
        if keys:
            self._client.delete_objects(Bucket=BUCKET, Delete={"Objects": keys, "Quiet": True})

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()


class Places:
    """Databases and stores that are started when first asked for, and copies of registries on them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._running = ExitStack()
        self._stores: dict[str, Store] = {"local": Local()}
        self._postgresql: PostgreSQL | None = None
        self._numbers = count(1)

    @contextmanager
    def copy(self, database: str, store: str, of: Copy | None = None) -> Iterator[Copy]:
        """A registry that holds what `of` does, an empty one without; gone afterwards."""
        sandbox = self.folder / f"copy-{next(self._numbers)}"
        with ExitStack() as made:
            made.callback(shutil.rmtree, sandbox, ignore_errors=True)
            (sandbox / "home").mkdir(parents=True)
            environment = {"LORATREE_HOME": str(sandbox / "home"), "TMPDIR": str(sandbox), "OMP_NUM_THREADS": "1"}
            environment |= self._blobs(store).copy(of and of.environment["LORATREE_BLOBS"], sandbox)
            made.callback(self._blobs(store).remove, environment["LORATREE_BLOBS"])
            environment |= made.enter_context(self._database(database, sandbox, of))
            yield Copy(sandbox, environment, self._blobs(store))

    def close(self) -> None:
        """Stops what was started."""
        self._running.close()

    def _blobs(self, kind: str) -> Store:
        if kind not in self._stores:
            server = self._running.enter_context(s3.moto() if kind == "moto" else ceph.ceph())
            self._running.enter_context(patch.dict(os.environ, server.environment))  # for registries in this process
            store = self._stores[kind] = S3(server)
            self._running.callback(store.close)
        return self._stores[kind]

    def _database(self, kind: str, sandbox: Path, of: Copy | None) -> AbstractContextManager[Mapping[str, str]]:
        return _sqlite(sandbox, of) if kind == "sqlite" else self._on_server(of)

    @contextmanager
    def _on_server(self, of: Copy | None) -> Iterator[Mapping[str, str]]:
        if self._postgresql is None:
            self._postgresql = self._running.enter_context(postgresql())
        with self._postgresql.empty(template=of and of.environment["LORATREE_DATABASE"]) as url:
            yield {"LORATREE_DATABASE": url}


@contextmanager
def _sqlite(sandbox: Path, of: Copy | None) -> Iterator[Mapping[str, str]]:
    file = sandbox / "home" / "loratree.db"
    if of is not None:
        shutil.copyfile(of.environment["LORATREE_DATABASE"].removeprefix("sqlite:///"), file)
    yield {"LORATREE_DATABASE": f"sqlite:///{file}"}


def _prefix(location: str) -> str:
    return location.removeprefix(f"s3://{BUCKET}/") + "/"
