"""Actions of the tool environments, and what is read of their arguments."""

import contextlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrm_jax.envs.tools.calls import FORMAT_ERROR, ToolError, compiled, read_call
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
    assert call.arguments["query"] == re.compile("^(A|B)$")


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
        "re.compile('(a+)+$')",
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


@pytest.mark.parametrize("pattern", ["(a|b)*", "a*b*c*d*", "(x)+", "x" * 300, "(ab){3}", None])
def test_patterns_that_could_take_long_are_refused(pattern):
    with pytest.raises(ValueError, match=r"repeats|string"):
        compiled(pattern)


def test_repeats_inside_brackets_are_characters():
    assert compiled(r"[*+]{2}\d+").search("a*+7")


def test_places_nearby_are_the_same():
    here = {"latitude": 40.0, "longitude": -74.0, "daily": [1]}
    assert same(here, {**here, "latitude": 40.4})
    assert not same(here, {**here, "latitude": 40.5})
    assert not same(here, {**here, "daily": [2]})
    assert not same(here, 3)
    assert same([2], [2.0])


def test_agreement_of_what_both_have_or_either():
    shown, answer = [["a", "b"], ["c", "d"]], [["a", "x", "e"]]
    assert agreement(shown, answer, whole=False) == 1 / 2
    assert agreement(shown, answer, whole=True) == 1 / 6
    assert agreement([[]], answer, whole=False) == 0.0
    assert agreement(answer, answer, whole=True) == 1.0
