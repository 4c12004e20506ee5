"""Fresh registries of every kind for the contract suite, and what they are filled with."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from loratree_registry.core.registry import Registry
from loratree_registry.database.engine import upgrade_database
from loratree_registry.embedded.registry import EmbeddedRegistry
from loratree_registry.remote.registry import RemoteRegistry
from loratree_registry.settings import Settings
from tests import ceph
from tests.postgresql import PostgreSQL, postgresql
from tests.registry import material as made
from tests.registry.fresh import open_fresh
from tests.registry.housed import House, house
from tests.registry.many import one_process, two_servers
from tests.registry.serving import Served, served
from tests.s3 import S3Server, moto

Build = Callable[..., House]
_MEMORY = Path("/dev/shm")
_BASES = count(1)
_BUCKETS = count(1)


@dataclass(frozen=True)
class Storage:
    """Where a registry under test may keep things: an empty folder, databases, a server of ours, buckets."""

    folder: Path
    postgresql: Callable[[], PostgreSQL]
    served: Callable[[], Served]
    bucket: Callable[[], Mapping[str, str]]
    bucket_on_ceph: Callable[[], Mapping[str, str]]

    def settings(self, **environment: str) -> Settings:
        """Settings whose HOME is in the folder."""
        return Settings.from_environment({"LORATREE_HOME": str(self.folder / "home")} | environment)


@contextmanager
def embedded_sqlite(storage: Storage) -> Iterator[EmbeddedRegistry]:
    registry = open_fresh(storage.settings())
    yield registry
    registry.close()


@contextmanager
def embedded_postgresql(storage: Storage) -> Iterator[EmbeddedRegistry]:
    with storage.postgresql().migrated() as url:
        registry = open_fresh(storage.settings(LORATREE_DATABASE=url))
        yield registry
        registry.close()


@contextmanager
def embedded_postgresql_s3(storage: Storage) -> Iterator[EmbeddedRegistry]:
    with storage.postgresql().migrated() as url:
        registry = open_fresh(storage.settings(LORATREE_DATABASE=url, **storage.bucket()))
        yield registry
        registry.close()


@contextmanager
def remote_s3(storage: Storage) -> Iterator[RemoteRegistry]:
    """A client that sends to the store and reads from it by presigned URL."""
    behind = open_fresh(storage.settings(**storage.bucket()))
    registry = RemoteRegistry(storage.served().over(behind, storage.folder))
    yield registry
    registry.close()
    behind.close()


@contextmanager
def remote_through(storage: Storage) -> Iterator[RemoteRegistry]:
    """A client that cannot reach the store, so that everything passes through the server."""
    behind = open_fresh(storage.settings(LORATREE_DIRECT="0", **storage.bucket()))
    registry = RemoteRegistry(storage.served().over(behind, storage.folder))
    yield registry
    registry.close()
    behind.close()


def on_ceph(build: Callable[[Storage], AbstractContextManager[Registry]]) -> Callable[..., Any]:
    """The same registry, over a bucket on Ceph."""
    return lambda storage: build(replace(storage, bucket=storage.bucket_on_ceph))


@contextmanager
def remote(storage: Storage) -> Iterator[RemoteRegistry]:
    with embedded_sqlite(storage) as behind:
        registry = RemoteRegistry(storage.served().over(behind, storage.folder))
        yield registry
        registry.close()


# The registries that the contract suite runs against. Each factory gives one over fresh storage; add yours here.
REGISTRIES: dict[str, Callable[[Storage], AbstractContextManager[Registry]]] = {
    "embedded-sqlite": embedded_sqlite,
    "embedded-postgresql": embedded_postgresql,
    "remote": remote,
}

# The same over S3, where a store makes a difference: for the contract of what is sent and read back.
OVER_S3: dict[str, Callable[[Storage], AbstractContextManager[Registry]]] = {
    "embedded-postgresql-s3": embedded_postgresql_s3,
    "remote-s3": remote_s3,
    "remote-s3-through-the-server": remote_through,
}
if ceph.wanted():
    OVER_S3 |= {
        "embedded-postgresql-ceph": on_ceph(embedded_postgresql_s3),
        "remote-ceph": on_ceph(remote_s3),
        "remote-ceph-through-the-server": on_ceph(remote_through),
    }


@pytest.fixture(params=REGISTRIES)
def empty(request: pytest.FixtureRequest, storage: Storage) -> Iterator[Registry]:
    """A registry that holds nothing."""
    with REGISTRIES[request.param](storage) as registry:
        yield registry


@pytest.fixture
def registry(empty: Registry, material: made.Material) -> Registry:
    """A registry that holds the base `tiny`."""
    empty.add_base("tiny", material.base)
    return empty


@pytest.fixture
def storage(request: pytest.FixtureRequest) -> Iterator[Storage]:
    """A fresh folder, in memory where there is some: on a disk, the suite waits minutes for fsync alone."""
    with tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None) as folder:
        asked = request.getfixturevalue
        # each starts when asked for
        yield Storage(Path(folder), *(partial(asked, name) for name in ("server", "web", "bucket", "bucket_on_ceph")))


@pytest.fixture(scope="session")
def server() -> Iterator[PostgreSQL]:
    """One PostgreSQL server for all tests of a run, started when first asked for."""
    with postgresql() as running:
        yield running


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """One S3 server for all tests of a run, started when first asked for."""
    with moto() as running:
        yield running


@pytest.fixture(scope="session")
def ceph_server() -> Iterator[S3Server]:
    """One Ceph for all tests of a run, started when first asked for."""
    with ceph.ceph() as running:
        yield running


@pytest.fixture
def bucket(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, str]:
    """The settings of a bucket that holds nothing, and its keys in the environment."""
    return _new_bucket(s3, monkeypatch)


@pytest.fixture
def bucket_on_ceph(ceph_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, str]:
    """The same on Ceph."""
    return _new_bucket(ceph_server, monkeypatch)


def _new_bucket(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, str]:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    name = f"bucket-{next(_BUCKETS)}"
    with closing(server.client()) as client:
        client.create_bucket(Bucket=name)
    return {"LORATREE_BLOBS": f"s3://{name}/some/prefix", "LORATREE_S3_ENDPOINT": server.endpoint}


@pytest.fixture(scope="session")
def web() -> Iterator[Served]:
    """One web server for all tests of a run, started when first asked for."""
    with served() as running:
        yield running


@pytest.fixture
def build(request: pytest.FixtureRequest, storage: Storage) -> Iterator[Build]:
    """Builds registries on `sqlite` or `postgresql` with `local` blobs, as many as a test needs, or one on `s3`."""
    with ExitStack() as stack:

        def built(database: str = "sqlite", blobs: str = "local") -> House:
            variables: dict[str, str] = {}
            if database == "postgresql":
                variables["LORATREE_DATABASE"] = stack.enter_context(storage.postgresql().migrated())
            if blobs == "s3":
                variables |= request.getfixturevalue("bucket")
            return stack.enter_context(house(storage.folder, **variables))

        yield built


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> made.Material:
    """Real adapters, made once."""
    return made.make(tmp_path_factory.mktemp("material"))


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest) -> Iterator[tuple[Path, str]]:
    """A home folder, in memory where there is some, and a migrated database of each kind."""
    with ExitStack() as opened:
        home = Path(opened.enter_context(tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None)))
        if request.param == "postgresql":
            address = opened.enter_context(request.getfixturevalue("server").migrated())
        else:
            address = f"sqlite:///{home}/loratree.db"
            upgrade_database(address)
        yield home, address


@pytest.fixture(scope="module", params=[one_process, two_servers])
def registries(request: pytest.FixtureRequest, place: tuple[Path, str]) -> Iterator[list[Registry]]:
    """One registry in this process, or a client of each of two servers."""
    with request.param(*place) as opened:
        yield opened


@pytest.fixture
def node(registries: list[Registry], material: made.Material) -> str:
    """The path of a node that is not there yet, under a base of the test's own."""
    base = f"tiny-{next(_BASES)}"
    registries[0].add_base(base, material.base)
    return f"{base}/medicine"
