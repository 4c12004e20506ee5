from collections import Counter
from random import Random

import pytest

from loratree_cli.demo.corpus import CORPORA, MAX_BYTES, Corpus, lesson
from loratree_cli.demo.recipe import LEAF, RUNGS, Recipe

DEPTHS = range(len(CORPORA))


def written(corpus: Corpus, count: int = 1500) -> list[str]:
    random = Random(5)
    return [corpus.write(random) for _ in range(count)]


@pytest.mark.parametrize("depth", DEPTHS)
def test_the_same_seed_writes_the_same_lesson_and_another_seed_another(depth: int) -> None:
    assert lesson(depth, 5000, seed=1) == lesson(depth, 5000, seed=1)
    assert lesson(depth, 5000, seed=1) != lesson(depth, 5000, seed=2)


@pytest.mark.parametrize("corpus", CORPORA[1:], ids=lambda corpus: corpus.name)
def test_every_document_of_a_level_shows_its_marks_and_no_text_above_shows_any(corpus: Corpus) -> None:
    assert corpus.marks
    assert all(mark in document for document in written(corpus) for mark in corpus.marks)
    above = CORPORA[: CORPORA.index(corpus)]
    assert not [mark for other in above for document in written(other) for mark in corpus.marks if mark in document]


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_lesson_is_two_thirds_its_own_and_one_third_text_of_the_levels_above(depth: int) -> None:
    documents = lesson(depth, 100_000, seed=0)
    marks = CORPORA[depth].marks
    own = sum(all(mark in document for mark in marks) for document in documents) / len(documents)
    assert own == 1 if depth == 0 else 0.6 < own < 0.75


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_lesson_is_as_large_as_asked_and_never_repeats_a_document(depth: int) -> None:
    documents = lesson(depth, 60_000, seed=3)
    assert 60_000 <= sum(len(document.encode()) for document in documents) < 60_000 + MAX_BYTES
    assert Counter(documents).most_common(1)[0][1] == 1


@pytest.mark.parametrize("corpus", CORPORA, ids=lambda corpus: corpus.name)
def test_a_document_and_its_end_token_fit_one_training_sequence(corpus: Corpus) -> None:
    assert max(len(document.encode()) for document in written(corpus)) <= MAX_BYTES < Recipe().length


def test_held_out_documents_are_in_no_lesson_and_are_all_different() -> None:
    recipe = Recipe(held_out=50)
    lessons = {document for depth in DEPTHS for document in recipe.lesson(depth)}
    for text in recipe.held_out_text():
        assert len(set(text)) == 50
        assert not lessons & set(text)


def test_a_document_that_a_lesson_holds_is_passed_over() -> None:
    numbered = Corpus("numbered", (), lambda random: str(random.randrange(4)))
    assert sorted(numbered.held_out(3, seed=0, lessons={"2"})) == ["0", "1", "3"]


def test_the_tree_goes_from_the_base_to_alice_with_falling_ranks() -> None:
    assert [(rung.row, rung.rank) for rung in RUNGS] == [
        ("base", None),
        ("+domain", 16),
        ("+sub-domain", 8),
        ("+task", 4),
        ("+user", 2),
    ]
    assert LEAF.path == "tiny/medicine/cardiology/diagnosis/alice"
