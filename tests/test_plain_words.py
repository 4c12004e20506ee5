from tests.plain_words import FOLDERS, ROOT, all_problems


def test_the_docstring_of_every_function_begins_with_a_verb() -> None:
    assert all_problems([ROOT / name for name in FOLDERS]) == []
