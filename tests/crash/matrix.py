"""The matrix: who dies or is cut off, at which step of which command, over which database and store."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from threading import Lock
from typing import Literal, TypeVar

from loratree_registry.embedded.storage import open_storage
from loratree_registry.housekeeping.exports.exporting import export
from loratree_registry.settings import Settings
from loratree_registry.workspace.base_transfer import push_base
from tests import tiny
from tests.crash.child import Child, Outcome, Sabotage, nothing
from tests.crash.effects import Fault, Harm, Kind
from tests.crash.places import DATABASES, STORES, Copy, Places
from tests.crash.soundness import Seen, seen, violations
from tests.registry import material

Role = Literal["publisher", "client", "server", "store", "database"]
ROLES: tuple[Role, ...] = ("publisher", "client", "server", "store", "database")
COMMANDS = (
    "publish",
    "alias set",
    "base add",
    "base push",
    "withdraw",
    "quarantine",
    "delete",
    "retain",
    "import",
    "gc",
)
_TOUCH_BYTES = ("publish", "base push", "import", "gc")
_RUN_AT_THE_DATABASE = ("import", "gc")
_HARMS: dict[Role, tuple[Harm, ...]] = {
    "publisher": ("kill",),
    "client": ("kill",),
    "server": ("kill",),
    "store": ("cut", "cut for good"),
    "database": ("cut", "cut for good"),
}
_KILLED = -9
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One row of the matrix; `sabotage` is done to `loratree` in the process that a fault befalls."""

    database: str
    store: str
    role: Role
    command: str
    sabotage: Sabotage = nothing

    @property
    def name(self) -> str:
        """Its place in the table."""
        return f"{self.database}, {self.store}, {self.role}, {self.command}"


def scenes() -> list[Scene]:
    """Every row of the matrix."""
    return [
        Scene(database=d, store=s, role=r, command=c)
        for d in DATABASES
        for s in STORES
        for r in ROLES
        for c in COMMANDS
        if c not in _RUN_AT_THE_DATABASE or r not in ("client", "server")
        if r != "store" or c in _TOUCH_BYTES
    ]


@dataclass(slots=True, kw_only=True)
class Row:
    """What came of a scene: how many points it has, how many were tried, and what was broken at each."""

    scene: Scene
    points: int
    tried: int = 0
    hit: int = 0
    broken: list[str] = field(default_factory=list)

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """Points, tried, hit, violations."""
        return self.points, self.tried, self.hit, len(self.broken)


@dataclass(frozen=True, slots=True)
class Expected:
    """A command that nothing befell: what could be seen before and after it, what it printed, and its effects."""

    before: Seen
    after: Seen
    out: str
    effects: tuple[str, ...]
    kept: list[str]  # the blobs that are left when all that nothing needs was collected


class Matrix:
    """Plays scenes over `places`, on copies of one small tree."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._kept = ExitStack()
        self._trees: dict[tuple[str, str], tuple[Copy, Seen]] = {}
        self._numbers = count(1)
        self._making = Lock()  # for those who play in several threads
        folder = places.folder
        base = self._base = tiny.llama(folder / "base")
        self._trained = [tiny.adapter(base, folder / f"rank{rank}", seed=rank, rank=rank) for rank in (4, 2)]
        self._manifest = material.manifest(base)
        self._arguments: dict[str, Sequence[str]] = {
            "publish": (
                "publish",
                str(self._trained[1]),
                "tiny/medicine/cardiology/alice",
                "--parent",
                "tiny/medicine@1",
            ),
            "alias set": ("alias", "set", "tiny/medicine", "stable", "2"),
            "base add": ("base", "add", "other", str(tiny.llama(folder / "other", seed=9))),
            "base push": ("base", "push", "tiny", str(base)),
            "withdraw": ("withdraw", "tiny/medicine@3", "--reason", "it diverges"),
            "quarantine": ("quarantine", "tiny/medicine@3", "--reason", "it leaks"),
            "delete": ("delete", "tiny/medicine@3", "--reason", "a mistake"),
            "retain": ("retain", "tiny/medicine", "--keep", "1"),
            "import": ("import", str(self._export(folder / "export"))),
            "gc": ("gc", "--grace", "0s"),
        }

    def play(self, scene: Scene, *, limit: int | None = None) -> Row:
        """Tries every point of a scene, or at most `limit` of them, evenly spaced."""
        expected = self.expected(scene)
        steps = range(1, len(expected.effects) + 1)
        faults = [Fault(at, harm, self._kinds(scene)) for harm in _HARMS[scene.role] for at in steps]
        row = Row(scene=scene, points=len(faults))
        for fault in faults if limit is None else _spread(faults, limit):
            self._try(row, expected, fault)
        return row

    def expected(self, scene: Scene) -> Expected:
        """What a scene comes to where nothing befalls it."""
        tree, before = self._tree(scene.database, scene.store)
        with self._places.copy(scene.database, scene.store, tree) as copy:
            outcome = self._run(scene, copy, Fault(kinds=self._kinds(scene)))
            assert outcome.status == 0, outcome.err
            return Expected(before, _look(copy)[0], outcome.out, outcome.effects, copy.collected())

    def close(self) -> None:
        """Removes the trees."""
        self._kept.close()

    def _try(self, row: Row, expected: Expected, fault: Fault) -> None:
        tree, _ = self._tree(row.scene.database, row.scene.store)
        with self._places.copy(row.scene.database, row.scene.store, tree) as copy:
            outcome = self._run(row.scene, copy, fault)
            now, broken = _look(copy)
            where = f"{fault.harm} before {outcome.effects[-1] if outcome.effects else 'anything'} ({fault.at})"
            row.tried += 1
            row.hit += len(outcome.effects) >= fault.at
            broken += [*_ending(outcome), *_state(now, expected, outcome)]
            broken += self._again(row.scene, copy, expected, done=now == expected.after)
            row.broken += [f"{where}: {what}" for what in broken]

    def _again(self, scene: Scene, copy: Copy, expected: Expected, *, done: bool) -> Iterator[str]:
        """The same command once more, with nothing in its way."""
        outcome = self._run(scene, copy, Fault())
        if not _same(scene, outcome, expected, done=done):
            yield f"the same command again ended with {outcome.status}: {outcome.out}{outcome.err}"
        if (left := copy.collected()) != expected.kept:
            yield f"collecting left {left} for {expected.kept}"
        now, broken = _look(copy)
        yield from broken
        if now != expected.after:
            yield "the same command again left something else than it leaves undisturbed"

    def _run(self, scene: Scene, copy: Copy, fault: Fault) -> Outcome:
        """The command in its scene; the effects are those of whom the fault befalls."""
        arguments = self._arguments[scene.command]
        if scene.role not in ("client", "server"):
            return self._child(copy, arguments, fault, scene.sabotage).wait()
        server = self._child(copy, ["serve", "--port", "0"], fault if scene.role == "server" else None, scene.sabotage)
        try:
            url = server.first_line() or "http://127.0.0.1:9"  # it died before it listened
            client = self._child(copy, arguments, fault if scene.role == "client" else None, scene.sabotage, url).wait()
        finally:
            server.kill()
        if scene.role == "client":
            return client
        return Outcome(client.status, client.out, client.err, server.wait().effects)

    def _child(
        self, copy: Copy, arguments: Sequence[str], fault: Fault | None, sabotage: Sabotage, url: str | None = None
    ) -> Child:
        environment = dict(copy.environment)
        if url is not None:
            environment |= {"LORATREE_URL": url, "LORATREE_HOME": str(copy.sandbox / "client")}
        folder = copy.sandbox / f"child-{next(self._numbers)}"
        return Child(arguments, environment, folder, fault, sabotage if fault and fault.at else nothing)

    def _kinds(self, scene: Scene) -> tuple[Kind, ...]:
        if scene.role == "store":
            return ("blob",) if scene.store == "local" else ("net",)
        return ("sql",) if scene.role == "database" else ("file", "blob", "sql", "net", "end")

    def _export(self, out: Path) -> Path:
        """Another registry's: the same base with its weights, a version that every tree holds, and a new one below."""
        with self._places.copy("sqlite", "local") as copy, copy.migrated() as registry:
            registry.add_base("tiny", self._manifest)
            push_base(registry, "tiny", self._base)
            adapter = material.read(self._trained[0])
            material.publish(registry, "tiny/medicine", adapter, "base")
            material.publish(registry, "tiny/medicine/bob", adapter.variant(9), "tiny/medicine@1")
            with open_storage(Settings.from_environment(copy.environment)) as storage:
                export(storage, None, out)
        return out

    def _tree(self, database: str, store: str) -> tuple[Copy, Seen]:
        """A base, three versions of one node, an alias on the first, bytes that nothing needs; and what is seen."""
        with self._making:
            if (database, store) in self._trees:
                return self._trees[database, store]
            copy = self._kept.enter_context(self._places.copy(database, store))
            with copy.migrated() as registry:
                registry.add_base("tiny", self._manifest)
                adapter = material.read(self._trained[0])
                for variant in (adapter, *map(adapter.variant, (1, 2, 3))):
                    material.publish(registry, "tiny/medicine", variant, "base")
                registry.delete("tiny/medicine@4", reason="a mistake")
                registry.set_alias("tiny/medicine", "stable", version=1, expected=None)
                self._trees[database, store] = copy, seen(registry)
            return self._trees[database, store]


def _look(copy: Copy) -> tuple[Seen, list[str]]:
    """What a fresh registry shows, and what is broken of it."""
    with copy.registry() as registry:
        return seen(registry), violations(registry, copy.stored())


def _state(now: Seen, expected: Expected, outcome: Outcome) -> Iterator[str]:
    if now not in (expected.before, expected.after):
        yield "something is half-written"
    if outcome.status == 0 and now != expected.after:
        yield "it said that it was done, and it was not"


def _same(scene: Scene, outcome: Outcome, expected: Expected, *, done: bool) -> bool:
    """Tells whether a command that was sent again answers as the first would have."""
    if scene.command == "delete" and done:
        return outcome.status == 1 and "was deleted" in outcome.err
    told = scene.command in ("gc", "retain")  # what this run has removed, nothing where an earlier one did
    return outcome.status == 0 and (told or outcome.out == expected.out)


def _ending(outcome: Outcome) -> Iterator[str]:
    """Whoever lives says what happened in one sentence, after which files it was sending."""
    said = [line for line in outcome.err.splitlines() if not line.startswith("sending ")]
    sentence = len(said) == 1 and said[0].startswith("loratree: ")
    if outcome.status not in (0, _KILLED) and not (outcome.status == 1 and sentence):
        yield f"it ended with {outcome.status}: {outcome.err}"


def _spread(points: Sequence[T], limit: int) -> list[T]:
    """At most `limit` of the points, each from the middle of its share of them."""
    shares = min(limit, len(points))
    return [points[(2 * share + 1) * len(points) // (2 * shares)] for share in range(shares)]
