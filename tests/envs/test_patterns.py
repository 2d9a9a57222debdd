"""The search without backtracking finds what Python's `re` finds, and never takes long."""

import random
import re
import time
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrm_jax.envs.tools.patterns import Pattern, PatternError


def found(pattern, text):
    return Pattern(pattern).searcher()(text)


_ATOMS = st.sampled_from(
    ["a", "b", "A", ".", r"\d", r"\w", r"\s", "[ab]", "[^a]", r"[\w-]", r"\b", r"\B", "^", "$",
     r"\A", r"\Z", "x", "é", "ß", r"\D", r"\W", r"\S", "[a-c0-2]", "-", "1"]
)  # fmt: skip


def _larger(inner):
    repeats = st.sampled_from(["*", "+", "?", "{2}", "{1,2}", "{0,2}", "{1,}", "*?", "+?", "{,2}"])
    return st.one_of(
        st.lists(inner, min_size=1, max_size=3).map("".join),
        st.tuples(inner, repeats).map(lambda p: f"(?:{p[0]}){p[1]}"),
        st.lists(inner, min_size=2, max_size=3).map(lambda p: f"({'|'.join(p)})"),
        st.tuples(st.sampled_from("imsx"), inner).map(lambda p: f"(?{p[0]}:{p[1]})"),
        inner.map(lambda p: f"(?-i:{p})"),
    )


_PATTERNS = st.recursive(_ATOMS, _larger, max_leaves=8)


@settings(max_examples=300, deadline=None)
@given(
    pattern=_PATTERNS,
    flags=st.sampled_from(["", "(?i)", "(?m)", "(?s)", "(?a)", "(?x)"]),
    texts=st.lists(st.text("aAbxé1 -\n_ßS", max_size=8), min_size=1, max_size=5),
)
def test_a_search_finds_what_python_finds(pattern, flags, texts):
    whole = flags + pattern
    try:
        expected = [re.search(whole, text) is not None for text in texts]
    except re.error:
        with pytest.raises(PatternError):
            Pattern(whole)
        return
    search = Pattern(whole).searcher()
    assert [search(text) for text in texts] == expected
    match = Pattern(whole).searcher(whole=True)
    assert [match(t) for t in texts] == [re.fullmatch(whole, t) is not None for t in texts]


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("^Toy.*", "Toy car", True),
        (r"^\d{4}-\d{2}-\d{2}$", "2024-01-31", True),
        (r"^\d{4}-\d{2}-\d{2}$", "2024-1-31", False),
        (r"\bpaid\b", "is Paid", False),
        (r"(?i)\bpaid\b", "is Paid", True),
        (r"(?x) p a # a comment (\n id", "paid", True),
        ("", "", True),
        ("(a*)*$", "aaab", True),
        ("(?:)*x", "yx", True),
        ("[[a]", "[", True),
        ("a{,2}$", "a", True),
        ("\\u00e9", "é", True),
        ("$", "line\n", True),
    ],
)
def test_values(pattern, text, expected):
    assert found(pattern, text) is expected
    assert (re.search(pattern, text) is not None) is expected


@pytest.mark.parametrize(
    ("pattern", "what"),
    [
        (r"(a)\1", "references to groups cannot be used"),
        ("(a)?(?(1)b|c)", "references to groups cannot be used"),
        ("(?=a)a", "looking ahead or behind cannot be used"),
        ("(?!a)b", "looking ahead or behind cannot be used"),
        ("(?<=a)b", "looking ahead or behind cannot be used"),
        ("(?<!a)b", "looking ahead or behind cannot be used"),
        ("(?>a*)b", "atomic groups cannot be used"),
        ("a*+b", "possessive repeats cannot be used"),
        ("(?:a{100}){100}", "the pattern is too large"),
        ("a{1000000}", "the pattern is too large"),
        ("a{99999999999999999999}", "too large"),
        ("a" * 201, "at most 200 characters"),
        ("(", "missing ), unterminated subpattern"),
        ("*", "nothing to repeat"),
        (r"\p{L}", "bad escape"),
        ("(?L)a", "cannot use 'L' flag"),
        ("[z-a]", "bad character range"),
    ],
)
def test_what_is_refused_says_why(pattern, what):
    with pytest.raises(PatternError, match=re.escape(what)):
        Pattern(pattern)


def test_deep_nesting_is_refused_or_searched():
    assert found("(?:" * 30 + "a" + ")*" * 30, "b") is True


_SLOW = [
    ".*.*.*x", "(a*)*b", "(a|a)*b", "(a|aa)+$", "(.*a){12}", "(?x) (a*) # comment\n *b", "(a+)+!",
    "(?:a?){90}a{90}", "((((a*)*)*)*)*b", "(?:[ab]|[ac]|a)*d", r"(\w+\s?)*!", ".*a.*a.*a.*a.*a!",
    "(?:a|b)*a(?:a|b){60}c", r"(?:\b|a)*b", "(?i)(A*)*B", "(?:.{1,30}){1,30}!", "(x+x+)+y",
    "[a-z]*[a-z]*[a-z]*[a-z]*[a-z]*[0-9]",
]  # fmt: skip


def _ended(search, texts):
    """How many texts were searched before the limit, or all."""
    for count, text in enumerate(texts):
        try:
            search(text)
        except PatternError:
            return count
    return len(texts)


@pytest.mark.parametrize("pattern", _SLOW)
def test_no_search_grows_beyond_its_limit(pattern):
    draw = random.Random(pattern)
    cells = ["a" * 1000, "ab" * 500, "".join(draw.choices("abcx 0", k=1000))] * 10
    seconds, ended = [], set()
    for _ in range(3):
        begin = time.perf_counter()
        try:
            ended.add(_ended(Pattern(pattern).searcher(), cells))
        except PatternError:
            ended.add("too large")
        seconds.append(time.perf_counter() - begin)
    assert len(ended) == 1  # the same on every machine
    assert min(seconds) < 1.0  # `re` would take longer than the universe has lasted


def test_the_limit_is_reached_in_the_end():
    text = "".join(random.Random(0).choices("ab", k=1000))
    texts = [text[n:] + str(n) for n in range(1000)]
    assert 0 < _ended(Pattern("(?:a|b)*a(?:a|b){60}c").searcher(), texts) < 900


def test_it_is_shown_as_python_shows_it():
    assert str(Pattern("a.b")) == str(re.compile("a.b")) == "re.compile('a.b')"


def test_patterns_warn_nobody():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert found("[[a]", "a") is True
