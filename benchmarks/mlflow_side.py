"""MLflow's side, in its own environment: its model registry over the database that is the first argument."""

import sys
import time
from pathlib import Path
from typing import Any

import sqlalchemy
from mlflow.store.model_registry.dbmodels.models import SqlModelVersion, SqlRegisteredModel, SqlRegisteredModelAlias
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore

from benchmarks.side import each_ms, per_second, serve

ALIAS = "stable"
_BATCH = 10_000


class Theirs:
    """What is measured of MLflow."""

    def __init__(self, address: str) -> None:
        self.store = SqlAlchemyStore(address)

    def load(self, models: int) -> float:
        """Makes registered models with one version and one alias each, through MLflow's own tables; the seconds."""
        start = time.perf_counter()
        for first in range(0, models, _BATCH):
            names = [f"model-{number:07}" for number in range(first, min(first + _BATCH, models))]
            with self.store.engine.begin() as connection:
                for table, row in (
                    (SqlRegisteredModel, {}),
                    (SqlModelVersion, {"version": 1, "source": "s3://models/1", "storage_location": "s3://models/1"}),
                    (SqlRegisteredModelAlias, {"alias": ALIAS, "version": 1}),
                ):
                    connection.execute(sqlalchemy.insert(table), [{"name": name} | row for name in names])
        return time.perf_counter() - start

    def settle(self) -> None:
        """Brings the planner's statistics up to date."""
        with self.store.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            postgresql = self.store.engine.dialect.name == "postgresql"
            connection.execute(sqlalchemy.text("VACUUM (ANALYZE)" if postgresql else "ANALYZE"))

    def size(self) -> int:
        """The bytes of the database, with its indexes."""
        if self.store.engine.dialect.name == "sqlite":
            return Path(self.store.engine.url.database or "").stat().st_size
        with self.store.engine.connect() as connection:
            return connection.execute(sqlalchemy.text("SELECT pg_database_size(current_database())")).scalar_one()

    def lookups(self, numbers: list[int]) -> list[float]:
        """Looks models up by alias."""
        arguments: list[list[Any]] = [[f"model-{number:07}", ALIAS] for number in numbers]
        return each_ms(self.store.get_model_version_by_alias, arguments)

    def publish(self, writers: int, each: int, turn: int, nodes: int) -> float:
        """Creates versions of as many models; returns how many a second."""
        names = [f"written-{turn}-{nodes}-{number}" for number in range(nodes)]
        for name in names:
            self.store.create_registered_model(name)
        shares = [[[names[writer % nodes], "s3://models/1"]] * each for writer in range(writers)]
        return per_second(self.store.create_model_version, shares)


if __name__ == "__main__":
    theirs = Theirs(sys.argv[1])
    serve({name: getattr(theirs, name) for name in ("load", "settle", "size", "lookups", "publish")})
