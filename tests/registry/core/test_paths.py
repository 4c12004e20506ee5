"""The grammar of paths, refs, aliases and levels."""

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loratree_registry.core import paths
from loratree_registry.errors import Invalid

segments = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,12}", fullmatch=True)
valid_paths = st.lists(segments, min_size=1, max_size=paths.MAX_DEPTH).map("/".join)
ALPHABET = set(string.ascii_lowercase + string.digits + "._-")


@given(valid_paths)
def test_a_path_of_the_grammar_is_taken_as_it_is(path: str) -> None:
    assert paths.parse_path(path) == path
    assert str(paths.parse_ref(path)) == path


@given(st.text() | st.text("ab./-_A@ \n", max_size=12))
def test_only_paths_of_the_grammar_are_taken(text: str) -> None:
    fits = all(
        part and part[0] in ALPHABET - set("._-") and set(part) <= ALPHABET and len(part) <= 128
        for part in text.split("/")
    )
    if fits and text.count("/") < paths.MAX_DEPTH:
        assert paths.parse_path(text) == text
    else:
        with pytest.raises(Invalid):
            paths.parse_path(text)


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("tiny/..", "the segment '..'"),
        ("tiny/..", "a path is no folder"),
        ("./tiny", "a path is no folder, and begins with the name of a base"),
        ("tiny//x", "has a slash too many: write 'tiny/x'"),
        ("tiny/", "has a slash too many: write 'tiny'"),
        ("/tiny", "has a slash too many: write 'tiny'"),
        ("", "path '' is empty"),
        ("//", "path '//' is empty: a path begins with the name of a base"),
        ("tiny/x@1", "names a version, and only a path fits here: write 'tiny/x'"),
        ("tiny/@1", "names a version, and only a path fits here: write 'tiny'"),
        ("tiny/x:2", "a version is written after an @, such as 'x@2'"),
        ("tiny/x#v2", "such as 'x@2'"),
        ("tiny/x:vocal", "such as 'x@vocal'"),
        (r"tiny\x", "names are parted by a slash, such as 'tiny/x'"),
        ("tiny/Medicine", "use lower case, such as 'medicine'"),
        ("tiny/x\n", r"the segment 'x\\n'"),
        ("tiny/" + "x" * 200, "it has 200 characters, at most 128"),
        ("/".join("x" * 33), "has 33 segments, at most 32"),
        ("tiny/x y", "expected a letter or digit first.*, such as 'x-y'"),
        ("tiny/My Adapter ", "such as 'my-adapter'"),
        ("tiny/é", "'_' or '-'$"),
        ("tiny/-x", "expected a letter or digit first"),
    ],
)
def test_a_wrong_path_is_refused_by_a_sentence_that_says_what_is_wrong(path: str, sentence: str) -> None:
    with pytest.raises(Invalid, match=sentence):
        paths.parse_path(path)


@given(st.text("aB1./-_@: \\\\é", max_size=12))
def test_what_a_refusal_of_a_path_tells_to_write_is_not_refused(text: str) -> None:
    try:
        paths.parse_path(text)
    except Invalid as error:
        if told := re.search(r"(?:write|such as) '([^']*)'$", str(error)):
            paths.parse_ref(told[1])


selectors = st.one_of(
    st.integers(1, 10**9 - 1),
    st.from_regex(r"[a-z][a-z0-9._-]{0,20}", fullmatch=True).filter(lambda name: name != paths.HEAD),
    st.from_regex(r"sha256:[0-9a-f]{64}", fullmatch=True),
)


@given(valid_paths, selectors)
def test_a_ref_is_read_back_as_it_is_written(path: str, selector: int | str) -> None:
    ref = paths.Ref(path, selector)
    assert paths.parse_ref(str(ref)) == ref


def test_latest_and_no_selector_are_the_head() -> None:
    assert paths.parse_ref("tiny/x@latest") == paths.parse_ref("tiny/x") == paths.Ref("tiny/x")


@pytest.mark.parametrize(
    "selector", ["", "0", "01", "-1", "1.5", "Stable", "sha256:ab", "9" * 10, "a@b", "x" * 65, " ", "٣"]
)
def test_a_selector_that_is_no_number_alias_or_digest_is_refused(selector: str) -> None:
    with pytest.raises(Invalid, match="selector"):
        paths.parse_ref(f"tiny@{selector}")


@pytest.mark.parametrize(
    ("ref", "sentence"),
    [
        ("@", "no path before the @: write both, as in tiny/medicine@2"),
        ("@1", "ref '@1' has no path before the @"),
        ("tiny/x@", "no selector after the @: .*, or tiny/x alone for its head"),
        ("tiny/x/@1", "path 'tiny/x/' has a slash too many: write 'tiny/x'"),
        ("tiny/x @1", "such as 'x'"),
    ],
)
def test_a_wrong_ref_is_refused_by_a_sentence_that_says_what_is_wrong(ref: str, sentence: str) -> None:
    with pytest.raises(Invalid, match=sentence):
        paths.parse_ref(ref)


@given(valid_paths)
def test_ancestors_are_the_proper_prefixes_by_whole_segments(path: str) -> None:
    above = paths.ancestors_of(path)
    assert len(above) == path.count("/")
    assert all(paths.is_ancestor(upper, path) for upper in above)
    assert paths.parent_of(path) == (above[-1] if above else None)
    assert paths.base_of(path) == [*above, path][0]
    assert not paths.is_ancestor(path, path)


@given(valid_paths, valid_paths)
def test_the_descendant_range_holds_exactly_the_descendants(path: str, other: str) -> None:
    first, end = (bound.encode() for bound in paths.descendant_range(path))
    for candidate in (other, f"{path}/{other}", f"{path}-{other}", f"{path}{other}", path):
        assert (first <= candidate.encode() < end) == paths.is_ancestor(path, candidate)


@given(st.sampled_from(paths.LEVELS), st.sampled_from(paths.LEVELS))
def test_a_child_is_deeper_than_its_parent_and_a_subdomain_may_repeat(child: paths.Level, parent: paths.Level) -> None:
    order = ["base", "domain", "subdomain", "task", "user"]
    if order.index(child) > order.index(parent) or child == parent == "subdomain":
        assert paths.check_level(child, parent, "tiny/x") == child
    else:
        with pytest.raises(Invalid, match=f"tiny/x cannot be a {child} under a {parent}"):
            paths.check_level(child, parent, "tiny/x")


def test_the_default_level_is_the_next_one_down_and_nothing_is_below_a_user() -> None:
    assert [paths.default_level(level) for level in paths.LEVELS[:-1]] == ["domain", "subdomain", "task", "user"]
    with pytest.raises(Invalid, match="a user is the lowest level"):
        paths.default_level("user")


def test_an_alias_may_not_be_named_latest() -> None:
    with pytest.raises(Invalid, match="always names the head"):
        paths.parse_alias("latest")
