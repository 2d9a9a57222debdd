"""Nothing that an agent says makes an environment raise, and the pool's contract holds for it."""

import contextlib
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentrm_jax.core.records import Task
from agentrm_jax.envs import contract
from agentrm_jax.envs.registry import environment_names, load_family
from agentrm_jax.envs.tools.academia_world import AcademiaWorld
from agentrm_jax.envs.tools.calls import Call
from agentrm_jax.envs.tools.episode import ToolEpisode
from agentrm_jax.envs.tools.http import NotRecordedError, Reply
from agentrm_jax.envs.tools.movie_world import MovieWorld
from agentrm_jax.envs.tools.patterns import Pattern
from agentrm_jax.envs.tools.score import Parts
from agentrm_jax.envs.tools.weather_world import WeatherWorld

pytest.importorskip("openpyxl")

_NET = {
    "nodes": {"A": [{"year": 1}, [["B", 0]]], "B": [{"year": 2}, [["A", 0], ["C", 9]]]},
    "edges": [{"weight": 1}],
    "aliases": {"a": "A", "d": "D"},
    "unnamed": ["B"],
}
_TASK = Task(environment="toolquery", task_id="t", kind="any", split="test", problem="p",
             max_steps=1000, spec={"goal": "Find it."})  # fmt: skip
_PARTS = ({"latitude": 1.0, "longitude": 2.0}, [1, 2], "x")


def _query(world):
    score = Parts(left=_PARTS, count=len(_PARTS))
    return ToolEpisode(lambda task: (world, score, "")), _TASK


def _operation(kind):
    family = load_family("tooloperation")
    return family.create(), family.tasks("train", kinds=[kind], n=1)[0]


_EPISODES = {
    "sheet": lambda: _operation("sheet_generated"),
    "todo": lambda: _operation("todo_generated"),
    "weather": lambda: _query(WeatherWorld(today="2023-05-01", city="Paris")),
    "movie": lambda: _query(MovieWorld()),
    "academia": lambda: _query(AcademiaWorld({"PaperNet": _NET, "AuthorNet": _NET})),
}

_HUGE = int("7" * 320)
_SCALARS = st.one_of(
    st.sampled_from(
        [_HUGE, -_HUGE, int("7" * 308), float("1e308"), 1e400, -1e400, 0, -1, 1, 2, 3, 10**9, 0.5,
         -0.0, True, False, None, "", "A1", "B2", "ZZZ9999999", "A0", "a1", "B2:A1", "A1\n",
         "rows", "row", "col", "columns", "asc", "des", "SUM", "MINUS", "Sheet1", "1e999", "nan",
         "inf", "=A1", "=SUM(A:A)", "=A2:A1", "=" + "(" * 400, "=1/0", "=A1+A1&A1^A1", "TRUE",
         "2023-04-01", "9999-12-31", "0001-01-01", "2023-02-30", "x" * 3000, "\ud800", "\x00",
         "\U0001f600", "PaperNet", "AuthorNet", "A", "B", "D", 91, "91", "-181", "90.0"]
    ),
    st.integers(), st.floats(), st.text(max_size=5),
)  # fmt: skip
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(st.lists(inner, max_size=3), max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=2),
        st.just({"latitude": "x", "longitude": None}),
        st.just({"latitude": 1.0, "longitude": _HUGE}),
    ),
    max_leaves=5,
)


def _written(value):
    """The value as an agent writes it."""
    return repr(value).replace("inf", "1e400").replace("nan", "NaN")


def _tools(name):
    environment, task = _EPISODES[name]()
    environment.reset(task)
    return environment, list(environment._world.tools)


@st.composite
def _calls(draw, tools):
    tool = draw(st.sampled_from(tools))
    parameters = list(tool.parameters)
    match draw(st.integers(0, 9)):
        case 0:
            return f"{tool.name} with Action Input: {_written(draw(_VALUES))}"
        case 1:
            parameters = parameters[:-1]
        case 2:
            parameters.append("other")
        case 3:
            parameters = [p for p in parameters if p != "position_list"]
    given = {name: draw(_VALUES) for name in parameters}
    return f"{tool.name} with Action Input: {_written(given)}"


@pytest.mark.parametrize("name", _EPISODES)
def test_no_call_of_any_tool_raises(name):
    _, tools = _tools(name)

    @settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(_calls(tools), min_size=1, max_size=6))
    def play(actions):
        environment, task = _EPISODES[name]()
        episode, _ = contract.reset(environment, task)
        for action in actions:
            with contextlib.suppress(NotRecordedError):  # nothing is made up
                episode.step(action)  # a breach of the contract would raise as well
            if episode.done:
                break
        assert 0.0 <= episode.total <= 1.0

    play()


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        ('update_cell with Action Input: {"position": "B2", "value": ' + "7" * 320 + "}",
         "OverflowError('int too large to convert to float')"),
        ('get_A1_annotation with Action Input: {"row": 1e400, "col": 1}',
         "OverflowError('cannot convert float infinity to integer')"),
        ('update_cell with Action Input: {"position": "B2", "value": 1e400}',
         "ValueError('Out of range float values are not JSON compliant')"),
        ('freeze_data with Action Input: {"dimension": "rows", "num": [1]}',
         "TypeError(\"int() argument must be a string, a bytes-like object or a real number, not "
         "'list'\")"),
        ('update_cell with Action Input: {"position": "B2"}', "ERROR | KeyError('value')"),
    ],
)  # fmt: skip
def test_sheets_answer_as_agentboard_does(call, answer):
    environment, task = _operation("sheet_generated")
    environment.reset(task)
    transition = environment.step(call)
    assert (transition.observation, transition.valid) == (answer, False)


def test_whatever_a_service_replies_is_answered(monkeypatch):
    replies = ["{}", "[]", "null", "3", "{", '{"results": []}', '{"results": 3}', "[" * 5000,
               '{"daily": null}', '{"x": ' + "9" * 5000 + "}", '{"results": [{"id": "\\ud800"}]}',
               '{"hourly": {"time": [1]}, "hourly_units": {}, "latitude": 1, "longitude": 2}',
               '{"cast": [null]}', '{"crew": [{"id": []}]}', "NaN", "\ud800"]  # fmt: skip
    draw = random.Random(0)
    monkeypatch.setattr(
        "agentrm_jax.envs.tools.http.Service.get",
        lambda self, endpoint, parameters: Reply(
            draw.choice((200, 200, 404)), draw.choice(replies)
        ),
    )
    for name in ("weather", "movie"):
        environment, tools = _tools(name)
        episode = contract.Episode(environment, _TASK)
        values = {"start_date": "2023-04-01", "end_date": "2023-04-02", "latitude": 1.0}
        for _ in range(400):
            tool = draw.choice(tools[:-1])
            given = {p: values.get(p, "2023-04-02") for p in tool.parameters}
            answer = episode.step(f"{tool.name} with Action Input: {given}")
            answer.observation.encode()
            if episode.steps > 900:
                break
    assert episode.total <= 1.0


def _said(draw, plan):
    """Garbage, or an expert's action with something changed."""
    junk = [
        "",
        " ",
        "\x00",
        "\ud800",
        "\U0001f600" * 30,
        "\u202e",
        "x" * 5000,
        "a\nb",
        "]" * 99,
        "[" * 500,
        "\\",
        "%s{}",
        "\x1b[2J",
        "check",
        "look around",
        "help",
        "0",
        "-1",
        "save",
        "search[" + "[" * 300 + "]",
        "click[]",
        "search[ ]",
        "f with Action Input: {",
        "....",
    ]
    action = draw.choice(plan or ["go"])
    where = draw.randrange(len(action) + 1)
    return draw.choice([
        draw.choice(junk), action, action[:where], action[where:], action + draw.choice(junk),
        action.upper(), action[:where] + draw.choice(junk) + action[where:], f"{action} {action}",
    ])  # fmt: skip


@pytest.mark.parametrize("name", environment_names())
def test_no_action_of_any_environment_raises(name):
    family = load_family(name)
    if family.missing():
        pytest.skip(f"{name} is not complete here")
    draw, steps = random.Random(name), 0
    tasks = [t for s in ("train", "test") for t in family.tasks(s, kinds=family.kinds(), n=2)]
    for task in tasks:
        plan = [turn.action for turn in family.demonstrate(task) or []]
        episode, text = contract.reset(family.create(), task)
        text.encode()
        while not episode.done and steps < 400:
            episode.step(_said(draw, plan)).observation.encode()
            steps += 1
    assert steps > 20


def test_calls_are_shown_with_their_patterns():
    assert repr(Call("f", Pattern("a"))) == "Call(name='f', arguments=re.compile('a'))"
