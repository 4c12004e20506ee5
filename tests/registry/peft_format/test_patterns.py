"""Pattern keys against Python's own `re`, which PEFT uses, and against keys made to take for ever."""

import re
import time
import warnings

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from peft.utils.other import get_pattern_key

from loratree_registry.errors import Invalid
from loratree_registry.peft_format.name_regex import NameRegex
from loratree_registry.peft_format.scaling import MAX_REGEXES, ModulePatterns

MODULES = [
    f"{prefix}layers.{layer}.{module}"
    for prefix in ("model.", "", "model.decoder.")
    for layer in (0, 1, 11)
    for module in ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj", "mlp-x.w_1")
]
NAMES = st.sampled_from(MODULES) | st.text("ab.0_-", max_size=8) | st.text("ab.>[ é中٣", max_size=8)
ATOMS = st.sampled_from(
    [
        r"a",
        r"b",
        r"q",
        r"proj",
        r".",
        r"\.",
        r"-",
        r"_",
        r"0",
        r"\d",
        r"\w",
        r"\D",
        r"\W",
        r"\s",
        r"[ab]",
        r"[^ab]",
        r"[a-c0]",
        r"[0-9]",
        r"[.-]",
        r"[]a]",
        r"[\d_]",
        r"layers",
        r"^",
        r"$",
        r"model",
        r"self_attn",
        r"x?",
        r"a*?",
        r"b{2}",
        r"b{,1}",
        r"\-",
    ]
)


def extended(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.lists(inner, max_size=4).map("".join),
        st.tuples(inner, inner).map("|".join),
        st.builds("({}){}".format, inner, st.sampled_from(["", "*", "+", "?", "{2}", "{1,3}", "{0,}", "*?", "+?"])),
        st.builds("(?:{})".format, inner),
    )


PATTERNS = st.recursive(ATOMS, extended, max_leaves=8)


def python_matches(pattern: str, name: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return re.match(rf"(.*\.)?({pattern})$", name) is not None


def answer(regex: NameRegex, pattern: str, name: str) -> bool | None:
    """Return what the regex says of a name; None if it refuses to, as it may for a class and a name outside ASCII."""
    if name.isascii() or not re.search(r"\\[dDwWsS]", pattern):
        return regex.matches(name)
    with pytest.raises(ValueError, match="is not ASCII, so it cannot be checked against"):
        regex.matches(name)
    return None


@given(PATTERNS, NAMES)
def test_a_key_matches_a_module_exactly_when_re_matches_it(pattern: str, name: str) -> None:
    try:
        regex = NameRegex(pattern)
    except ValueError:
        assume(False)
    assert answer(regex, pattern, name) in (None, python_matches(pattern, name))


@given(PATTERNS, NAMES)
def test_a_pattern_matches_a_whole_name_exactly_when_re_does(pattern: str, name: str) -> None:
    try:
        regex = NameRegex(pattern, whole=True)
    except ValueError:
        assume(False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert answer(regex, pattern, name) in (None, re.fullmatch(pattern, name) is not None)


@given(st.text("ab.*+?()[]{}|^$\\,-12:=!dwA >é", max_size=12), NAMES)
def test_any_text_is_matched_as_re_does_or_refused(pattern: str, name: str) -> None:
    try:
        regex = NameRegex(pattern)
    except ValueError:
        return
    assert answer(regex, pattern, name) in (None, python_matches(pattern, name))


KEYS = st.sampled_from(
    [
        r"q_proj",
        r"v_proj",
        r"self_attn.q_proj",
        r"layers.0.self_attn.q_proj",
        r"^model.layers.1.mlp.up_proj",
        r"up_proj",
        r"layers.1",
        r"proj",
        r"w_1",
        r"model.layers.0.self_attn.v_proj",
        r"1.mlp.up_proj",
        r"mlp.x.w_1",
        r"mlp-x.w_1",
        r"odel.layers",
        r"^layers.0.self_attn.q_proj",
        r"...proj",
        r"layers\.[01]\..*",
        r".*\.(q|v)_proj",
        r"layers\.\d+\.mlp.*",
    ]
)


@given(st.dictionaries(KEYS, st.integers(1, 4), max_size=6), st.sampled_from(MODULES))
def test_the_first_key_is_the_one_that_peft_takes_from_a_sorted_file(values: dict[str, int], module: str) -> None:
    in_order = dict(sorted(values.items()))
    expected = in_order.get(get_pattern_key(list(in_order), module), 99)
    assert ModulePatterns("rank_pattern", in_order).first(module, 99) == expected
    assert ModulePatterns("rank_pattern", in_order).matching(module) == [
        key for key in in_order if python_matches(key, module)
    ]


def test_a_key_is_the_whole_end_of_a_name_from_a_dot_on() -> None:
    patterns = ModulePatterns("rank_pattern", {"q_proj": 2})
    assert patterns.first("model.q_proj", 8) == 2
    assert patterns.first("q_proj", 8) == 2
    assert patterns.first("model.xq_proj", 8) == 8
    assert patterns.first("model.q_proj.x", 8) == 8


def test_an_order_that_a_save_would_change_is_refused_where_it_matters() -> None:
    patterns = ModulePatterns("rank_pattern", {"v_proj": 2, "self_attn.v_proj": 3, "q_proj": 4})
    assert patterns.first("model.self_attn.q_proj", 8) == 4
    with pytest.raises(Invalid, match=r"gives model.self_attn.v_proj 2 by 'v_proj', but 3 by 'self_attn.v_proj'"):
        patterns.first("model.self_attn.v_proj", 8)


@pytest.mark.parametrize(
    ("key", "phrase"),
    [
        (r"(a)\1", r"uses \\1"),
        (r"\bq_proj", r"uses \\b"),
        ("(?=a)", r"uses \(\?=…\)"),
        ("(?i)q_proj", r"uses \(\?i…\)"),
        ("(?P<x>a)", r"uses \(\?P…\)"),
        ("a++", "bad repetition operator"),
        ("a**", "multiple repeat"),
        ("^*", "nothing to repeat"),
        ("(a", "unterminated subpattern"),
        ("a)|(b", "unbalanced parenthesis"),
        ("((a", "unterminated subpattern"),
        ("[a", "unterminated character set"),
        ("[b-a]", "bad character range b-a"),
        ("[[:alpha:]]", r"uses \[:"),
        ("a{,3}", r"uses \{,"),
        ("a{3,1}", "min repeat greater than max repeat"),
        ("*a", "nothing to repeat"),
        ("\\", "uses"),
        ("(" * 400, "no regular expression"),
        ("a?" * 257, "at most 512"),
        ("((a{99}){99}){99}", "RE2 does not take it"),
        ("a{1001}", "invalid repetition size"),
    ],
)
def test_a_key_that_is_not_matched_here_is_refused_by_what_it_uses(key: str, phrase: str) -> None:
    with pytest.raises(Invalid, match=f"rank_pattern has the key .*{phrase}"):
        ModulePatterns("rank_pattern", {key: 1})


@pytest.mark.parametrize("key", ["(a+)+b", "(a|a)*b", "(a*)*b", "a*" * 60 + "b", "(a?){60}a*b", "(.*)*b", "([a-z]+)*b"])
def test_a_key_that_makes_re_take_for_ever_is_matched_at_once(key: str) -> None:
    patterns = ModulePatterns("rank_pattern", {key: 1})
    start = time.perf_counter()
    assert patterns.first("a" * 500, 8) == 8
    assert patterns.first("a" * 500 + "b", 8) == 1
    assert time.perf_counter() - start < 3


def test_many_regular_expressions_are_refused_and_many_plain_names_are_not() -> None:
    with pytest.raises(Invalid, match=f"33 regular expressions, at most {MAX_REGEXES}"):
        ModulePatterns("rank_pattern", {f"a*{number}": 1 for number in range(33)})
    names = [f"model.layers.{layer}.mlp.experts.{expert}.up_proj" for layer in range(60) for expert in range(128)]
    start = time.perf_counter()
    patterns = ModulePatterns("rank_pattern", {name: number for number, name in enumerate(names)})
    assert [patterns.first(name, -1) for name in names[::10]] == list(range(0, len(names), 10))
    assert time.perf_counter() - start < 5


def test_a_key_whose_states_double_with_each_letter_is_matched_all_the_same() -> None:
    key = "|".join(["[ab]*a" + "[ab]" * 12] * 9)
    patterns = ModulePatterns("rank_pattern", {key: 1})
    names = [f"{number:012b}".replace("0", "a").replace("1", "b") * 30 for number in range(1, 2**12, 7)]
    start = time.perf_counter()
    assert [patterns.first(name, 8) for name in names] == [1 if name[-13] == "a" else 8 for name in names]
    assert time.perf_counter() - start < 10


def test_a_name_outside_ascii_is_not_checkable_by_a_class_of_characters_and_is_by_all_else() -> None:
    for key in ("schicht_é", "schicht_.*", "[^x]+_é"):
        assert ModulePatterns("rank_pattern", {key: 2}).first("model.schicht_é", 8) == 2
    with pytest.raises(Invalid, match=r"rank_pattern has the key .*: the name .* is not ASCII"):
        ModulePatterns("rank_pattern", {r"\w+": 2}).first("model.é", 8)
