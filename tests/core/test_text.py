"""Text and JSON from outside become valid and bounded, or are refused in one line."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrm_jax.core.json_values import MAX_DEPTH, parse_json
from agentrm_jax.core.text import admit_text, first_line, printable

ANY_TEXT = st.text(st.characters(exclude_categories=()))  # surrogates included


@pytest.mark.parametrize(
    ("text", "admitted"),
    [
        ("plain", "plain"),
        ("\ud83d\ude00", "\U0001f600"),
        ("a\ud83d", "a\ufffd"),
        ("\ude00\ud83d", "\ufffd\ufffd"),
        ("\x00\x1b[31m\u202e", "\x00\x1b[31m\u202e"),
    ],
)
def test_surrogates_become_characters_or_the_replacement_character(text, admitted):
    assert admit_text(text) == admitted


def test_long_text_is_cut_and_says_so():
    assert admit_text("abcdef", limit=4) == "abcd ... [2 more characters]"
    assert admit_text("abcd", limit=4) == "abcd"


def test_a_pair_that_the_limit_divides_is_replaced():
    assert admit_text("abc\ud83d\ude00", limit=4) == "abc\ufffd ... [1 more characters]"


class _Named(str):  # as members of enumerations that are texts
    def __str__(self):
        return "Colour.RED"


class _Lying(str):
    def __str__(self):
        raise RuntimeError

    def __len__(self):
        return 10**9


@pytest.mark.parametrize(
    ("text", "admitted"), [(_Named("red \ud800"), "red \ufffd"), (_Lying("abc"), "abc")]
)
def test_a_kind_of_text_is_read_by_its_characters(text, admitted):
    assert type(admit_text(text)) is str
    assert admit_text(text) == admitted


def test_only_text_is_admitted():
    with pytest.raises(TypeError, match="expected text, got bytes"):
        admit_text(b"a")  # type: ignore[arg-type]


@settings(deadline=None)
@given(ANY_TEXT)
def test_admitted_text_is_utf_8_and_admitting_again_changes_nothing(text):
    admitted = admit_text(text)
    assert admitted.encode().decode() == admitted
    assert admit_text(admitted) == admitted


@settings(deadline=None)
@given(ANY_TEXT)
def test_printable_text_has_no_character_that_moves_a_cursor(text):
    shown = printable(admit_text(text))
    assert len(shown.splitlines()) <= 1
    assert not {"\x1b", "\x00", "\u202e", "\u2028"} & set(shown)


def test_printable_escapes_controls_and_keeps_what_it_is_told_to_keep():
    assert printable("a\x1b[2Jb\u202ec\nd") == "a\\x1b[2Jb\\u202ec\\nd"
    assert printable("a\x07\nb", keep="\n") == "a\\x07\nb"


def test_the_first_line_of_an_error_is_never_empty():
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(ValueError()) == "ValueError"
    assert first_line(ValueError("\ud83d\x1b")) == "\ufffd\\x1b"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000 + "]" * 100_000, f"nested more than {MAX_DEPTH}"),
        ("[" * (MAX_DEPTH + 2) + "]" * (MAX_DEPTH + 2), f"nested more than {MAX_DEPTH}"),
        ("7" * 5_000, "Exceeds the limit"),
        ("1e400", "not a finite number"),
        ("[NaN]", "NaN is not a finite number"),
        (b"\xff", "utf-8"),
    ],
)
def test_json_that_would_exhaust_something_is_one_value_error(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse_json(text)
    assert len(str(caught.value).splitlines()) == 1


def test_json_says_its_line():
    with pytest.raises(json.JSONDecodeError) as caught:
        parse_json('{"a":\n oops}')
    assert caught.value.lineno == 2


def test_json_of_ordinary_depth_is_read():
    assert parse_json('{"a": [1, 2.5, {"b": null}]}') == {"a": [1, 2.5, {"b": None}]}
    assert parse_json("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    with pytest.raises(ValueError, match="larger than 3 bytes"):
        parse_json("[1, 2]", max_bytes=3)
