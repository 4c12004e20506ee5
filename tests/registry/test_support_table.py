"""The page that says what is composed, against the code and the tests that it names."""

import importlib
from pathlib import Path

from tests import support_table
from tests.refused_adapters import BY_CONFIG, REFUSED

ROOT = Path(__file__).parents[2]


def test_the_page_is_what_the_code_prints() -> None:
    assert (ROOT / "docs" / "adapters.md").read_text() == support_table.page()


def test_every_refusal_has_a_line() -> None:
    said = [row.reason for row in REFUSED] + [reason for _, reason, _ in BY_CONFIG]
    assert [
        refusal.name for refusal in support_table.refusals() if not any(refusal.name in reason for reason in said)
    ] == []


def test_every_test_that_the_page_names_is_there() -> None:
    for node in {support_table.COMPOSED, support_table.FORMS, support_table.NAMED, *(test for _, _, test in BY_CONFIG)}:
        file, _, test = node.partition("::")
        module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
        assert callable(getattr(module, test))


def test_the_rows_have_names_of_their_own() -> None:
    names = [row.name for row in support_table.rows()]
    assert len(set(names)) == len(names)
