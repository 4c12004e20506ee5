"""Our side: the registry that the environment names, in this process."""

import io
import itertools
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, text

from benchmarks import trees
from benchmarks.loading import load
from benchmarks.side import each_ms, per_second, serve
from loratree_registry.core.digests import FileDigest, digest_stream
from loratree_registry.core.records import ADAPTER_WEIGHTS, Submission
from loratree_registry.database.engine import open_engine, reading, writing
from loratree_registry.embedded.registry import open_embedded
from loratree_registry.embedded.storage import upgrade
from loratree_registry.settings import Settings
from loratree_registry.workspace.publish import publish_directory

_TOGETHER = 10  # batches in one transaction
SETTINGS = Settings.from_environment()


class Ours:
    """What is measured of a registry."""

    def __init__(self) -> None:
        upgrade(SETTINGS)
        self.registry = open_embedded(SETTINGS)
        self.engine = open_engine(SETTINGS.database)

    def load(self, tree: str, leaves: int) -> float:
        """Makes a tree, and returns the seconds that loading it took."""
        self.registry.add_base(tree, trees.base())
        start = time.perf_counter()
        batches = trees.batches(tree, leaves)
        while together := list(itertools.islice(batches, _TOGETHER)):
            with writing(self.engine) as connection:
                self._enlarge_cache(connection)
                for batch in together:
                    load(connection, batch)
        return time.perf_counter() - start

    def settle(self) -> None:
        """Brings the planner's statistics up to date, as autovacuum does in time."""
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            if self.engine.dialect.name == "postgresql":
                connection.execute(text("VACUUM (ANALYZE)"))
            else:
                connection.execute(text("PRAGMA analysis_limit = 1000"))  # else it reads every index whole
                connection.execute(text("ANALYZE"))

    def size(self) -> int:
        """The bytes of the database, with its indexes."""
        if self.engine.dialect.name == "sqlite":
            with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.execute(text("PRAGMA wal_checkpoint(TRUNCATE)"))
            return Path(self.engine.url.database or "").stat().st_size
        with reading(self.engine) as connection:
            size: int = connection.execute(text("SELECT pg_database_size(current_database())")).scalar_one()
            return size

    def calls(self, method: str, arguments: list[list[Any]], options: dict[str, Any] | None = None) -> list[float]:
        """Calls one of the registry's methods."""
        called = getattr(self.registry, method)
        return each_ms(lambda *given: called(*given, **(options or {})), arguments)

    def nothing(self, count: int) -> list[float]:
        """The floor of a call: a transaction that reads nothing."""
        return each_ms(self._select_one, [[]] * count)

    def publish(self, above: str, writers: int, each: int, turn: int, nodes: int) -> float:
        """Publishes adapters whose bytes are stored, at as many nodes; returns how many a second."""
        paths = [f"{above}/w{turn}-{number}" for number in range(nodes)]
        for path in paths:
            self.registry.create_node(path)
        submissions = [self._stored(above, 1000 * turn + number) for number in range(writers * each)]
        shares = [
            [[paths[writer % nodes], submission] for submission in submissions[writer::writers]]
            for writer in range(writers)
        ]
        return per_second(self.registry.publish, shares)

    def publish_file(self, tree: str, turn: int, rank: int) -> float:
        """Publishes a large adapter from its folder; returns the seconds."""
        if not self.registry.bases().items:
            self.registry.add_base(tree, trees.base())
        with tempfile.TemporaryDirectory() as folder:
            directory = Path(folder)
            (directory / ADAPTER_WEIGHTS).write_bytes(trees.adapter(rank, seed=turn))
            (directory / "adapter_config.json").write_text(json.dumps(trees.config(rank)))
            start = time.perf_counter()
            publish_directory(self.registry, directory, f"{tree}/n{turn}", parent="base", home=SETTINGS.home)
            return time.perf_counter() - start

    def _stored(self, above: str, seed: int) -> Submission:
        weights = trees.adapter(1, layers=1, seed=seed)
        sha256, size = digest_stream(io.BytesIO(weights))
        self.registry.upload(io.BytesIO(weights), sha256=sha256, size=size)
        file = FileDigest(ADAPTER_WEIGHTS, size, sha256)
        return Submission(config=trees.config(1), files=[file], parent=f"{above}@1", found="explicit")

    def _enlarge_cache(self, connection: Connection) -> None:
        """Digests come in no order, so each batch touches most pages of their indexes: SQLite keeps 2 MB of them."""
        if self.engine.dialect.name == "sqlite":
            connection.exec_driver_sql("PRAGMA cache_size = -1000000")

    def _select_one(self) -> None:
        with reading(self.engine) as connection:
            connection.execute(text("SELECT 1"))


if __name__ == "__main__":
    ours = Ours()
    operations = ("load", "settle", "size", "calls", "nothing", "publish", "publish_file")
    serve({name: getattr(ours, name) for name in operations})
