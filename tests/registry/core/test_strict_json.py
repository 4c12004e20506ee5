"""The strict JSON parser agrees with Python's own, or refuses documents that Python's accepts."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loratree_registry.core.strict_json import parse_json

DOCUMENTS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**19) + 1, 10**19 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(DOCUMENTS, st.booleans())
def test_a_document_is_read_as_python_reads_it(document: Any, ascii_only: bool) -> None:
    text = json.dumps(document, ensure_ascii=ascii_only).encode()
    assert parse_json(text) == json.loads(text) == document


@given(st.text('{}[]":,\\ud8cf0e9-. NaIinty') | st.text())
def test_any_text_is_read_as_python_reads_it_or_refused(text: str) -> None:
    try:
        found = parse_json(text.encode())
    except ValueError:
        return
    assert found == json.loads(text)


@given(st.text().map(lambda text: text + "\ud800") | st.text().map(lambda text: "\udfff" + text))
def test_half_a_character_is_refused_wherever_it_stands(text: str) -> None:
    for document in (text, [text], {text: 1}, {"a": {"b": text}}):
        with pytest.raises(ValueError, match="half a character"):
            parse_json(json.dumps(document).encode())


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        (b'{"a": 1, "a": 1}', "'a' stands twice"),
        (rb'{"a": 1, "\u0061": 1}', "'a' stands twice"),
        (b'[{"a": {"b": 1, "b": 2}}]', "'b' stands twice"),
        (b"NaN", "NaN is not JSON"),
        (b"[-Infinity]", "-Infinity is not JSON"),
        (b"1e999", "larger than any float"),
        (b"-1e999", "larger than any float"),
        (b"9" * 20, "more than 19 digits"),
        (b"9" * 1_000_000, "more than 19 digits"),
        (b"[" * 100_000, "nested too deep"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b"\xff", "utf-8"),
        (b'"\xed\xa0\x80"', "utf-8"),
        (b"", "Expecting value"),
        (b"{} {}", "Extra data"),
    ],
)
def test_what_two_readers_may_read_differently_is_refused(text: bytes, phrase: str) -> None:
    with pytest.raises(ValueError, match=phrase):
        parse_json(text)


def test_an_escaped_backslash_before_a_u_is_no_escape_of_half_a_character() -> None:
    assert parse_json(rb'["\\ud800", "\\\\udfff", "\ud83d\ude00"]') == ["\\ud800", "\\\\udfff", "\U0001f600"]
