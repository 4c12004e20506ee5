"""Which small texts a version keeps."""

import pytest

from loratree_registry.core.documents import (
    MAX_BYTES,
    MAX_DOCUMENT,
    MAX_DOCUMENTS,
    Document,
    check_documents,
    choose,
    explain,
)
from loratree_registry.errors import Invalid


@pytest.mark.parametrize("name", ["README.md", "notes.TXT", "chat_template.jinja", "trainer_state.json", "größe.yml"])
def test_small_texts_are_kept(name: str) -> None:
    assert explain(name, "x" * MAX_DOCUMENT) is None
    check_documents({name: ""})


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("../README.md", "x", "expected a plain file name"),
        (".hidden.md", "x", "expected a plain file name"),
        ("a\x1b.md", "x", "expected a plain file name"),
        ("a" * 130 + ".md", "x", "expected a plain file name"),
        ("training_args.bin", "x", "expected the ending .md"),
        ("Adapter_Config.json", "x", "no name of the adapter's own files"),
        ("loratree.json", "x", "no name of the adapter's own files"),
        ("README.md", "x" * (MAX_DOCUMENT + 1), f"it has {MAX_DOCUMENT + 1} bytes, at most {MAX_DOCUMENT} are kept"),
        ("README.md", "é" * (MAX_DOCUMENT // 2 + 1), f"it has {MAX_DOCUMENT + 2} bytes"),
        ("README.md", "a\0b", "it holds the character NUL"),
        ("README.md", "\ud800", "expected text that can be written as UTF-8"),
    ],
)
def test_others_are_refused_with_the_reason(name: str, text: str, reason: str) -> None:
    assert reason in (explain(name, text) or "")
    with pytest.raises(Invalid, match="cannot be kept"):
        check_documents({name: text})


def test_their_number_and_their_sum_are_bounded() -> None:
    with pytest.raises(Invalid, match=f"17 documents were sent, a version keeps at most {MAX_DOCUMENTS}"):
        check_documents({f"{number}.md": "" for number in range(MAX_DOCUMENTS + 1)})
    with pytest.raises(
        Invalid, match=f"the documents have {5 * MAX_DOCUMENT} bytes, a version keeps at most {MAX_BYTES}"
    ):
        check_documents({f"{number}.md": "x" * MAX_DOCUMENT for number in range(5)})


def test_of_many_the_card_comes_first_and_what_does_not_fit_is_left() -> None:
    large = [Document(f"{number}.txt", "x" * MAX_DOCUMENT) for number in range(5)]
    kept = choose([*large, Document("README.md", "card"), Document("too-large.md", "x" * (MAX_DOCUMENT + 1))])
    assert list(kept) == ["README.md", "0.txt", "1.txt", "2.txt"]
    check_documents(kept)
    many = choose([Document(f"{number:02}.md", "") for number in range(20)])
    assert list(many) == [f"{number:02}.md" for number in range(MAX_DOCUMENTS)]
