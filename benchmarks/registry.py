"""A registry of two trees of N users, beside MLflow with N models: `python -m benchmarks.registry --leaves N`.

One tree is balanced, four levels deep; the other is 100 tasks with 10,000 sibling users each. Both are in one database,
MLflow's models in another of the same server. Each side is a process of its own, asked in turn. Times are of the given
percentile, in milliseconds; MLflow's is its lookup of a model version by alias, or its create_model_version.
"""

import argparse
import random
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks import servers, trees
from benchmarks.rows import Row, print_table, write_json
from benchmarks.side import Side
from tests.postgresql import PostgreSQL, postgresql

SMALL = 1_000  # leaves that the growth is measured from
CLIENTS, WRITERS = 8, 16
OVERHEAD_S = 1.0  # of one turn of http-overhead
RANK = 17  # of an adapter of 35.7 MB
BUCKET = "adapters"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--leaves", type=int, default=1_000_000, help="users in each tree, and MLflow's models")
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--json", type=Path, help="write the rows here too")
    parser.add_argument("--only", nargs="*", choices=ROWS, default=list(ROWS), help="measure these rows alone")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each side")
    parser.add_argument("--calls", type=int, default=300, help="calls of one side in one turn")
    parser.add_argument("--loaded", metavar="ADDRESS", help="a database whose trees were loaded before")
    parser.add_argument("--without-mlflow", action="store_true", help="measure ours alone")
    options = parser.parse_args()
    rows: list[Row] = []
    try:
        with bench(options) as running:
            rows += running.loaded
            for name in options.only:
                rows += ROWS[name](running, name)
    finally:  # what was measured in an hour is not lost to a row that fails
        print_table(rows)
        if options.json:
            write_json(rows, options.json)


@dataclass
class Bench:
    """What is running: our side, its small twin, MLflow's side, and how much is asked."""

    options: argparse.Namespace
    folder: Path
    postgresql: PostgreSQL | None
    open: ExitStack
    pick: random.Random = field(default_factory=lambda: random.Random(7))

    @cached_property
    def loaded(self) -> list[Row]:
        """The seconds that loading took."""
        theirs = self.theirs.ask("load", models=self.leaves) if self.theirs else None
        if self.theirs:
            self.theirs.ask("settle")
        if self.options.loaded:
            return []
        seconds = {tree: self.ours.ask("load", tree=tree, leaves=self.leaves) for tree in trees.TREES}
        self.ours.ask("settle")
        return [
            Row("load", taken, theirs, None, _ratio(theirs, taken), "s", of=tree) for tree, taken in seconds.items()
        ]

    @property
    def leaves(self) -> int:
        """The users in each tree."""
        leaves: int = self.options.leaves
        return leaves

    @property
    def calls(self) -> int:
        """The calls of one side in one turn."""
        calls: int = self.options.calls
        return calls

    @property
    def turns(self) -> range:
        """The turns of each measurement."""
        return range(self.options.repeats)

    @cached_property
    def large(self) -> dict[str, str]:
        """The environment of the registry that holds the trees."""
        given = {"LORATREE_DATABASE": self.options.loaded} if self.options.loaded else {}
        return self._environment("large") | given

    @cached_property
    def ours(self) -> Side:
        """The registry that holds the trees."""
        return self._side("benchmarks.registry_side", environment=self.large)

    @cached_property
    def small(self) -> Side:
        """A registry of the same trees with 1,000 users each."""
        side = self._side("benchmarks.registry_side", environment=self._environment("small"))
        for tree in trees.TREES:
            side.ask("load", tree=tree, leaves=SMALL)
        side.ask("settle")
        return side

    @cached_property
    def client(self) -> Side:
        """The HTTP clients of both servers."""
        return self._side("benchmarks.client_side", environment={})

    @cached_property
    def our_port(self) -> int:
        """Where `loratree serve` listens, over the trees."""
        return self.open.enter_context(servers.loratree(self.large))

    @cached_property
    def mlflow(self) -> tuple[str, str] | None:
        """MLflow's interpreter and its database; None where it is left out."""
        if self.options.without_mlflow:
            return None
        address = self.open.enter_context(servers.database(self.postgresql, self.folder / "mlflow.db"))
        return servers.mlflow_python(), address

    @cached_property
    def theirs(self) -> Side | None:
        """MLflow's registry."""
        if self.mlflow is None:
            return None
        python, address = self.mlflow
        side = Side(python, "-m", "benchmarks.mlflow_side", address, environment={})
        self.open.callback(side.close)
        return side

    @cached_property
    def their_port(self) -> int | None:
        """Where `mlflow server` listens."""
        return None if self.mlflow is None else self.open.enter_context(servers.mlflow(*self.mlflow))

    def _environment(self, name: str) -> dict[str, str]:
        home = self.folder / name
        address = self.open.enter_context(servers.database(self.postgresql, home / "loratree.db"))
        return {"LORATREE_HOME": str(home), "LORATREE_DATABASE": address, "LORATREE_BLOBS": "", "LORATREE_URL": ""}

    def _side(self, module: str, *, environment: dict[str, str]) -> Side:
        side = Side(sys.executable, "-m", module, environment=environment)
        self.open.callback(side.close)
        return side

    def refs(self, leaves: int, times: int = 1) -> list[list[Any]]:
        """Users of both trees by alias."""
        picked = (self.pick.randrange(leaves) for _ in range(times * self.calls))
        return [[f"{trees.leaf(trees.TREES[n % 2], leaves, leaf)}@{trees.ALIAS}"] for n, leaf in enumerate(picked)]

    def warm_paths(self) -> list[str]:
        """Where to resolve users over HTTP whose pages of the database are in memory: our other process read them."""
        refs = self.refs(self.leaves, times=4)
        self.ours.ask("calls", method="resolve", arguments=refs)
        return [f"/v1/resolve/{ref}" for [ref] in refs]

    def warm_lookups(self) -> list[str]:
        """Where to look models up over HTTP whose pages of the database are in memory."""
        models = self.models()
        if self.theirs:
            self.theirs.ask("lookups", numbers=models)
        return _lookups(models)

    def models(self) -> list[int]:
        """MLflow's models."""
        return [self.pick.randrange(self.leaves) for _ in range(self.calls)]


@contextmanager
def bench(options: argparse.Namespace) -> Iterator[Bench]:
    """Starts what is needed when it is asked for, and stops it at the end."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(postgresql()) if options.database == "postgresql" else None
        yield Bench(options, folder, server, stack)


class Twice:
    """The times of the same questions asked twice: the first time, pages of the database may have to be read."""

    def __init__(self) -> None:
        self.first: list[float] = []
        self.again: list[float] = []

    def ask(self, side: Side, what: str, **how: Any) -> None:
        """Asks a side, and asks it again."""
        self.first += side.ask(what, **how)
        self.again += side.ask(what, **how)


def _bytes(running: Bench, name: str) -> list[Row]:
    """The size of the database by user, with indexes and what lies above the users."""
    size = running.ours.ask("size")
    theirs = running.theirs.ask("size") / running.leaves if running.theirs else None
    ours = size / (len(trees.TREES) * running.leaves)
    return [Row(name, ours, theirs, None, _ratio(theirs, ours), "B")]


def _resolve_in_process(running: Bench, name: str) -> list[Row]:
    ours, theirs, floor = Twice(), Twice(), []
    for _ in running.turns:
        ours.ask(running.ours, "calls", method="resolve", arguments=running.refs(running.leaves))
        floor += running.ours.ask("nothing", count=running.calls)
        if running.theirs:
            theirs.ask(running.theirs, "lookups", numbers=running.models())
    return [
        _times(name, 99, ours.first, theirs.first, floor, of="first time", bar="< 5"),
        _times(name, 99, ours.again, theirs.again, floor, of="again", bar="< 5"),
    ]


def _resolve_over_http(running: Bench, name: str) -> list[Row]:
    ours, theirs, floor = [], [], []
    for _ in running.turns:
        paths = [f"/v1/resolve/{ref}" for [ref] in running.refs(running.leaves)]
        ours += running.client.ask("latencies", host="127.0.0.1", port=running.our_port, paths=paths)
        health = ["/v1/health"] * running.calls
        floor += running.client.ask("latencies", host="127.0.0.1", port=running.our_port, paths=health)
        if running.their_port:
            paths = _lookups(running.models())
            theirs += running.client.ask("latencies", host="127.0.0.1", port=running.their_port, paths=paths)
    return [_times(name, 99, ours, theirs, floor, bar="< 25")]


def _throughput(running: Bench, name: str) -> list[Row]:
    ours, theirs, floor = [], [], []
    for _ in running.turns:
        paths = running.warm_paths()
        how = {"host": "127.0.0.1", "clients": CLIENTS}
        ours.append(running.client.ask("throughput", port=running.our_port, paths=paths, **how))
        health = ["/v1/health"] * (4 * running.calls)
        floor.append(running.client.ask("throughput", port=running.our_port, paths=health, **how))
        if running.their_port:
            paths = running.warm_lookups()
            theirs.append(running.client.ask("throughput", port=running.their_port, paths=paths, **how))
    return [_rates(name, ours, theirs, floor, bar="≥ 5×")]


def _overhead(running: Bench, name: str) -> list[Row]:
    """The rate of health and of resolving, beside that of a bare route of the same server, asked in turn."""
    port, floor = running.our_port, running.open.enter_context(servers.bare())
    [user], rates = (
        running.refs(running.leaves)[0],
        {"bare": [], "health": [], "resolve": [], "resolve, random users": []},
    )
    for _ in range(max(5, running.options.repeats)):
        others = running.warm_paths()
        asked = {
            "bare": (floor, ["/health"]),
            "health": (port, ["/v1/health"]),
            "resolve": (port, [f"/v1/resolve/{user}"]),
            "resolve, random users": (port, others),
        }
        for of, (at, paths) in asked.items():
            how = {"clients": CLIENTS, "seconds": OVERHEAD_S}
            rates[of].append(running.client.ask("rate", port=at, paths=paths, **how))
    least = statistics.median(rates.pop("bare"))
    bars = {"health": "≥ 0.6", "resolve": "≥ 0.35"}
    medians = {of: statistics.median(found) for of, found in rates.items()}
    return [
        Row(name, rate, None, least, rate / least, "/s", of=of, bar=bars.get(of, "")) for of, rate in medians.items()
    ]


def _growth(running: Bench, name: str) -> list[Row]:
    large, small, rows = Twice(), Twice(), []
    for _ in running.turns:
        large.ask(running.ours, "calls", method="resolve", arguments=running.refs(running.leaves))
        small.ask(running.small, "calls", method="resolve", arguments=running.refs(SMALL))
    for when, taken in (("first time", (large.first, small.first)), ("again", (large.again, small.again))):
        p50 = [statistics.median(each) for each in taken]
        of = f"{when}: {p50[0]:.2f} − {p50[1]:.2f}"
        rows.append(Row(name, p50[0] - p50[1], None, None, None, "ms", of=of, bar="≤ 0.5"))
    return rows


def _page(method: str, bar: str) -> Callable[[Bench, str], list[Row]]:
    """The median of a method's calls, a row a tree."""

    def measured(running: Bench, name: str) -> list[Row]:
        return [_times(name, 50, _asked(running, method, tree), [], [], of=tree, bar=bar) for tree in trees.TREES]

    return measured


def _asked(running: Bench, method: str, tree: str) -> list[float]:
    taken: list[float] = []
    for _ in running.turns:
        users = [trees.leaf(tree, running.leaves, running.pick.randrange(running.leaves)) for _ in range(running.calls)]
        if method == "lineage":
            arguments = [[user] for user in users]
        else:
            arguments = [[_above(user, running.pick)] for user in users]
        taken += running.ours.ask("calls", method=method, arguments=arguments)
    return taken


def _above(user: str, pick: random.Random) -> str:
    """One of the nodes above a user."""
    segments = user.split("/")
    return "/".join(segments[: pick.randrange(1, len(segments))])


def _publish(running: Bench, name: str) -> list[Row]:
    found = []
    for nodes, of in ((WRITERS, "a node each"), (1, "one node")):
        ours, theirs, each = [], [], max(1, running.calls // 30)
        above = trees.leaf("balanced", running.leaves, 0).rpartition("/")[0]
        for turn in running.turns:
            number = 2 * turn + (nodes == 1)
            ours.append(running.ours.ask("publish", above=above, writers=WRITERS, each=each, turn=number, nodes=nodes))
            if running.theirs:
                theirs.append(running.theirs.ask("publish", writers=WRITERS, each=each, turn=turn, nodes=nodes))
        found.append(_rates(name, ours, theirs, [], of=of, bar="≥ 2×"))
    return found


def _publish_s3(running: Bench, name: str) -> list[Row]:
    found = []
    for of, server in servers.s3_servers().items():
        with server() as running_server:
            environment = {"LORATREE_S3_ENDPOINT": running_server.endpoint, **running_server.environment}
            bare = running._side("benchmarks.s3_side", environment=environment)
            bare.ask("create", bucket=BUCKET)
            environment |= running._environment(f"over-{of}") | {"LORATREE_BLOBS": f"s3://{BUCKET}/registry"}
            side = running._side("benchmarks.registry_side", environment=environment)
            ours, floor = [], []
            for turn in range(running.options.repeats + 1):
                ours.append(side.ask("publish_file", tree="base", turn=turn, rank=RANK))
                floor.append(bare.ask("publish_file", bucket=BUCKET, turn=turn, rank=RANK))
            taken, least = statistics.median(ours[1:]), statistics.median(floor[1:])
            found.append(Row(name, taken, None, least, least / taken, "s", of=of, bar="≥ 0.85"))
    return found


def _lookups(models: list[int]) -> list[str]:
    place = "/api/2.0/mlflow/registered-models/alias"
    return [f"{place}?name=model-{number:07}&alias={trees.ALIAS}" for number in models]


def _times(
    name: str, percent: int, ours: list[float], theirs: list[float], floor: list[float], *, bar: str, of: str = ""
) -> Row:
    found = [_percentile(taken, percent) if taken else None for taken in (ours, theirs, floor)]
    assert found[0] is not None
    return Row(name, found[0], found[1], found[2], _ratio(found[1], found[0]), "ms", of=of, bar=bar)


def _rates(name: str, ours: list[float], theirs: list[float], floor: list[float], *, bar: str, of: str = "") -> Row:
    found = [statistics.median(rates) if rates else None for rates in (ours, theirs, floor)]
    assert found[0] is not None
    ratio = None if found[1] is None else found[0] / found[1]
    return Row(name, found[0], found[1], found[2], ratio, "/s", of=of, bar=bar)


def _ratio(theirs: float | None, ours: float) -> float | None:
    return None if theirs is None else theirs / ours


def _percentile(taken: list[float], percent: int) -> float:
    return statistics.quantiles(taken, n=100, method="inclusive")[percent - 1]


ROWS: dict[str, Callable[[Bench, str], list[Row]]] = {
    "bytes-per-leaf": _bytes,
    "resolve-p99-inprocess": _resolve_in_process,
    "resolve-p99-http": _resolve_over_http,
    "resolve-throughput-http": _throughput,
    "http-overhead": _overhead,
    "resolve-growth": _growth,
    "children-page": _page("children", "< 10"),
    "descendants-count": _page("count", "< 20"),
    "descendants-page": _page("descendants", "< 10"),
    "lineage": _page("lineage", "< 10"),
    "publish-metadata": _publish,
    "publish-s3": _publish_s3,
}

if __name__ == "__main__":
    main()
