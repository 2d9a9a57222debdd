"""Actions of the tool environments, and what is read of their arguments."""

import contextlib
import json
import re
import time
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrm_jax.envs.tools.calls import FORMAT_ERROR, Call, ToolError, read_call
from agentrm_jax.envs.tools.score import agreement, same


@pytest.mark.parametrize(
    ("action", "name", "arguments"),
    [
        ("get_projects with Action Input: {}", "get_projects", {}),
        ('get_tasks with Action Input: {"project_id": "12"}', "get_tasks", {"project_id": "12"}),
        ("  f  with Action Input:{'a': [1, 2.5, None, -3]} ", "f", {"a": [1, 2.5, None, -3]}),
        ('f with Action Input: {"a": true, "b": null}', "f", {"a": True, "b": None}),
        ('f with Action Input: {"a": [[25.00 + 5], [59.0 - 5.5]]}', "f", {"a": [[30.0], [53.5]]}),
        ("f with Action Input: (1, 'x')", "f", (1, "x")),
    ],
)
def test_arguments_of_python_and_json(action, name, arguments):
    call = read_call(action)
    assert (call.name, call.arguments) == (name, arguments)


def test_a_regular_expression_as_agentboard_s_tasks_write_it():
    call = read_call("filter_cells with Action Input: {'query': re.compile('^(A|B)$')}")
    assert repr(call.arguments["query"]) == repr(re.compile("^(A|B)$"))
    assert call.arguments["query"].searcher()("B")


@pytest.mark.parametrize(
    "action", ["", "finish", "finish(3)", "with Action Input", "Action Input: {}", "\x00"]
)
def test_other_texts_are_no_actions(action):
    with pytest.raises(ToolError) as error:
        read_call(action)
    assert str(error.value) == FORMAT_ERROR


@pytest.mark.parametrize(
    "arguments",
    [
        '{"a": operator="SUM"}',
        "{",
        "",
        "__import__('os').getcwd()",
        "{'a': open('x')}",
        "[x for x in range(9)]",
        "9 ** 9 ** 9",
        "'a' * 100",
        "1 / 0",
        "1e308 * 10",
        "(" * 300 + ")" * 300,
        "-" * 15_000 + "1",
        "re.compile(1)",
        "re.compile('a', 'b')",
        "~1",
        "1" + " + 1" * 200,
        "9" * 5000,
        "re.compile('(')",
        '"' + "x" * 30_000 + '"',
        "{[]: 1}",
    ],
)
def test_nothing_else_is_evaluated(arguments):
    with pytest.raises(ToolError, match="Parameters in action input are not valid"):
        read_call(f"f with Action Input: {arguments}")


@given(st.text(max_size=60))
def test_any_arguments_are_answered(text):
    with contextlib.suppress(ToolError):
        assert read_call(f"f with Action Input: {text}").name == "f"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r'"\ud83d\ude00"', "\U0001f600"),
        (r"'\ud83d\ude00'", "\U0001f600"),
        (r'{"a": "\ud83d\ude00", ' + r"'b': '\/'}", {"a": "\U0001f600", "b": "/"}),
        (r'"\ud83d"', "\ufffd"),
        (r'"\ude00\ud83d"', "\ufffd\ufffd"),
        (r'"\ud83d" "\ude00"', "\U0001f600"),
        (r'"\/"', "/"),
        (r"'https:\/\/a\/b'", "https://a/b"),
        (r'"""a\/"b"""', 'a/"b'),
        (r'"a""\/"', "a/"),
        (r'"\\/"', r"\/"),
        (r'r"\/"', r"\/"),
        (r'"\d"', r"\d"),
        (r'"\"\\\b\f\n\r\t\u0041"', '"\\\b\f\n\r\tA'),
        (r'"a" # a comment "\/ ', "a"),
    ],
)  # fmt: skip
def test_escapes_are_those_of_python_and_json(text, value):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_call(f"f with Action Input: {text}").arguments == value


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
))  # fmt: skip
def test_all_of_json_is_read_as_json_reads_it(value):
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False)):
        assert read_call(f"f with Action Input: {text.replace('/', chr(92) + '/')}") == Call(
            "f", value
        )


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("(?=a)b", "looking ahead or behind"),
        (r"(a)\1", "references"),
        ("x" * 300, "200 characters"),
    ],
)
def test_a_pattern_that_is_refused_is_answered_with_the_reason(pattern, why):
    with pytest.raises(ToolError, match=why):
        read_call(f"filter_cells with Action Input: {{'query': re.compile({pattern!r})}}")


def test_no_action_takes_long():
    blank, quote = " " * 1_000_000, '"' + "\\"
    for action in (
        f"f{blank}",
        f"f with{blank}",
        "with " * 200_000,
        "f with Action Input: " + quote * 9000,
    ):
        begin = time.perf_counter()
        with pytest.raises(ToolError):
            read_call(action)
        assert time.perf_counter() - begin < 1.0


def test_places_nearby_are_the_same():
    here = {"latitude": 40.0, "longitude": -74.0, "daily": [1]}
    assert same(here, {**here, "latitude": 40.4})
    assert not same(here, {**here, "latitude": 40.5})
    assert not same(here, {**here, "daily": [2]})
    assert not same(here, 3)
    assert not same(here, {**here, "latitude": "40"})
    assert same([2], [2.0])


def test_agreement_of_what_both_have_or_either():
    shown, answer = [["a", "b"], ["c", "d"]], [["a", "x", "e"]]
    assert agreement(shown, answer, whole=False) == 1 / 2
    assert agreement(shown, answer, whole=True) == 1 / 6
    assert agreement([[]], answer, whole=False) == 0.0
    assert agreement(answer, answer, whole=True) == 1.0
