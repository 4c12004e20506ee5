"""A sample of the crash matrix, over every database, store and role; `python -m tests.crash` is all of it."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.crash import sabotage
from tests.crash.child import Sabotage
from tests.crash.matrix import ROLES, Matrix, Role, Row, Scene
from tests.crash.places import DATABASES, STORES, Places
from tests.long import LONG

FEW: list[tuple[Role, str]] = [("server", "base push"), ("database", "delete"), ("publisher", "import")]
OTHERS: list[tuple[Role, str]] = [
    ("publisher", "base add"),
    ("server", "base push"),
    ("client", "withdraw"),
    ("client", "quarantine"),
    ("server", "alias set"),
    ("database", "delete"),
    ("database", "retain"),
    ("publisher", "import"),
    ("store", "import"),
    ("publisher", "gc"),
    ("store", "gc"),
    ("database", "gc"),
]
_MEMORY = Path("/dev/shm")


@pytest.fixture(scope="module")
def places() -> Iterator[Places]:
    with tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None) as folder:
        places = Places(Path(folder))
        yield places
        places.close()


@pytest.fixture(scope="module")
def matrix(places: Places) -> Iterator[Matrix]:
    matrix = Matrix(places)
    yield matrix
    matrix.close()


def _measured(row: Row) -> str:
    return "{}: {} points, {} tried, {} hit, {} violations".format(row.scene.name, *row.counts)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("database", DATABASES)
def test_whatever_dies_at_whichever_step_nothing_is_lost_and_publishing_again_converges(
    matrix: Matrix, database: str, store: str, role: Role, record_property: Callable[[str, object], None]
) -> None:
    # one point for the seconds of `make test`; every point is `make soak`'s
    row = matrix.play(Scene(database=database, store=store, role=role, command="publish"), limit=1)
    record_property("measured", _measured(row))
    assert (row.tried, row.hit, row.broken) == (1, 1, [])


@pytest.mark.parametrize(("role", "command"), OTHERS if LONG else FEW)
def test_the_other_commands_lose_nothing_either(
    matrix: Matrix, role: Role, command: str, record_property: Callable[[str, object], None]
) -> None:
    row = matrix.play(Scene(database="sqlite", store="local", role=role, command=command), limit=1)
    record_property("measured", _measured(row))
    assert (row.tried, row.hit, row.broken) == (1, 1, [])


@pytest.mark.parametrize(
    ("broken", "role", "limit", "noticed"),
    [
        (sabotage.row_before_bytes, "publisher", 14, "is said to be stored, and is not"),
        (sabotage.two_transactions, "publisher", 6, "something is half-written"),
        (sabotage.hushed_failure, "database", 2, "it said that it was done, and it was not"),
    ],
)
def test_the_matrix_notices_what_is_broken_on_purpose(
    matrix: Matrix, broken: Sabotage, role: Role, limit: int, noticed: str
) -> None:
    scene = Scene(database="sqlite", store="local", role=role, command="publish", sabotage=broken)
    row = matrix.play(scene, limit=limit)
    assert [line for line in row.broken if noticed in line] != []
