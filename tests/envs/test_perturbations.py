"""Environments in other words: actions there and back, episodes with the same rewards, no leaks."""

import dataclasses
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import EnvironmentFamily
from agentrm_jax.envs.alfworld.wordings import WORDINGS
from agentrm_jax.envs.maze import Maze
from agentrm_jax.envs.pddl.family import Pddl
from agentrm_jax.envs.perturbations import (
    Wording,
    perturbed,
    reworded,
    said,
    shown,
    understood,
)
from agentrm_jax.envs.registry import load_family
from agentrm_jax.pipeline.config import EnvironmentConfig, RunConfig
from tests.envs.alfworld_house import write_house

STEPPING = Wording(
    name="stepping",
    actions=(("move {d}", "step {d}wards"),),
    texts=(("position", "place"),),
    instruction="Walk. For example: move up",
)
OBJECTS = st.sampled_from(["mug 1", "butterknife 12", "cd 3"])
PLACES = st.sampled_from(["cabinet 1", "sinkbasin 2", "drawer 10"])


@pytest.mark.parametrize(
    ("wording", "own", "other"),
    [
        ("using", "clean mug 1 with sinkbasin 2", "clean mug 1 using sinkbasin 2"),
        ("using", "heat mug 1 with microwave 1", "heat mug 1 using microwave 1"),
        ("move_to", "go to drawer 10", "move to drawer 10"),
        ("from_take", "take cd 3 from shelf 1", "from shelf 1 take cd 3"),
        ("from_take", "go to shelf 1", "go to shelf 1"),
        ("original", "take cd 3 from shelf 1", "take cd 3 from shelf 1"),
        ("paraphrase", "take cd 3 from shelf 1", "take cd 3 from shelf 1"),
    ],
)
def test_the_papers_wordings(wording, own, other):
    assert said(own, WORDINGS[wording]) == other
    assert understood(other, WORDINGS[wording]) == own
    assert understood(f"  {other.upper()} ", WORDINGS[wording]).lower().strip() == own
    if own != other:
        assert understood(own, WORDINGS[wording]) == ""


@given(st.sampled_from(sorted(WORDINGS)), OBJECTS, PLACES)
def test_actions_there_and_back(name, thing, place):
    wording = WORDINGS[name]
    for action in (
        f"go to {place}",
        f"take {thing} from {place}",
        f"put {thing} in/on {place}",
        f"clean {thing} with {place}",
        f"cool {thing} with {place}",
        f"open {place}",
        "look",
    ):
        assert understood(said(action, wording), wording) == action


@settings(deadline=None)
@given(st.sampled_from(sorted(WORDINGS)), st.text(max_size=60))
def test_any_text_can_be_said_and_shown(name, text):
    wording = WORDINGS[name]
    assert isinstance(understood(text, wording), str)
    assert isinstance(shown(text, wording), str)


def test_actions_inside_texts():
    assert shown("take (object) from (receptacle): takes it", WORDINGS["from_take"]) == (
        "from (receptacle) take (object): takes it"
    )
    assert shown("take {thing} from {place}\nlook", WORDINGS["from_take"]) == (
        "from {place} take {thing}\nlook"
    )
    assert shown("I take mug 1 from side table 2, then.", WORDINGS["from_take"]) == (
        "I from side table 2 take mug 1, then."
    )
    assert shown("Now I go to the shelf 1.", WORDINGS["move_to"]) == "Now I move to the shelf 1."
    asking = Wording(name="ask", actions=(("guess {number}", "is it {number} ?"),))
    assert shown("First guess the number.", asking) == "First is it the number ?."
    assert shown("guess <number>", asking) == "is it <number> ?"


def test_slots_have_to_agree():
    with pytest.raises(UserError, match="different slots"):
        Wording(name="bad", actions=(("go to {r}", "go"),))


def test_a_maze_in_other_words():
    maze, other = Maze(), perturbed(Maze(), STEPPING)
    assert isinstance(other, EnvironmentFamily)
    assert (other.name, other.metric, other.pooled) == ("maze@stepping", maze.metric, False)
    assert other.counts() == maze.counts()
    prompt = other.prompt()
    assert prompt.instruction == "Walk. For example: step upwards"
    assert prompt.example[1].endswith("\nAction: step rightwards")
    for own, task in zip(
        maze.tasks("train", kinds=maze.kinds(), n=10),
        other.tasks("train", kinds=other.kinds(), n=10),
        strict=True,
    ):
        assert task.environment == "maze@stepping"
        assert task.task_id == own.task_id.replace("maze/", "maze@stepping/")
        assert task.problem == own.problem
        check_alike(maze, own, other, task, STEPPING, r"\bmove \w+\b|position")


def check_alike(family, task, other, other_task, wording, old):
    """The expert's episode in the wording: the same rewards, texts in the wording, no old words.

    In between, everything is also said in the old words (in a fork): it is not understood.
    """
    turns, other_turns = family.demonstrate(task), other.demonstrate(other_task)
    assert turns is not None
    assert other_turns is not None
    episode, changed = family.create(), other.create()
    texts = [changed.reset(other_task)]
    assert texts[0] == shown(episode.reset(task), wording)
    for turn, other_turn in zip(turns, other_turns, strict=True):
        assert understood(other_turn.action, wording) == turn.action
        if other_turn.action != turn.action:
            assert not changed.fork().step(turn.action).valid
        own, answer = episode.step(turn.action), changed.step(other_turn.action)
        texts += [answer.observation, other_turn.thought, other_turn.action]
        assert dataclasses.replace(answer, observation="") == dataclasses.replace(
            own, observation=""
        )
    assert answer.success
    prompt = other.prompt()
    texts += [*prompt.example]
    if wording.instruction is None or wording.name != "paraphrase":
        texts.append(prompt.instruction)
    for text in texts:
        assert not re.search(old, text), text


OLD = {
    "original": r"(?!)",
    "paraphrase": r"(?!)",
    "using": r"\b(clean|heat|cool|slice) [^.\n]*? with\b",
    "move_to": r"(?i)\bgo to\b",
    "from_take": r"(?i)\btake [^.:\n]*? from\b",
}


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    pytest.importorskip("alfworld")
    folder = tmp_path_factory.mktemp("data")
    write_house(folder / "alfworld")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AGENTRM_DATA", str(folder))
        patch.setenv("ALFWORLD_DATA", str(folder / "none"))
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield


@pytest.mark.parametrize("name", sorted(WORDINGS))
def test_alfworld_in_the_papers_wordings(house, name):
    family, other = load_family("alfworld"), load_family(f"alfworld@{name}")
    assert other.name == f"alfworld@{name}"
    assert len(WORDINGS) == 5
    pairs = [
        pair
        for split in ("test", "paper", "train")
        for pair in zip(
            family.tasks(split, kinds=family.kinds(), n=6),
            other.tasks(split, kinds=other.kinds(), n=6),
            strict=True,
        )
    ]
    for task, other_task in pairs:
        check_alike(family, task, other, other_task, WORDINGS[name], OLD[name])
    hints = other.create()
    hints.reset(pairs[0][1])
    text = hints.step("help").observation
    assert "Available commands" in text
    assert not re.search(OLD[name], text)
    assert {"move_to": "move to (rec", "using": "heat (object) using"}.get(
        name, "help"
    ) in text + "help"


def test_the_paraphrase_tells_another_instruction():
    prompt = load_family("alfworld").prompt()
    other = reworded(prompt, WORDINGS["paraphrase"])
    assert other.example == prompt.example
    lines = set(prompt.instruction.split("\n"))
    commands = {line for line in lines if "{" in line or line in ("look", "inventory")}
    assert commands <= set(other.instruction.split("\n"))  # the same actions
    assert len(set(other.instruction.split("\n")) - lines) >= 6  # and nearly nothing else


def test_hints_of_pddl_never_leak_the_old_verb():
    """`check valid actions` lists actions; in the wording it lists them in the wording."""
    wording = Wording(name="roll", actions=(("move from {a} to {b}", "roll to {b} from {a}"),))
    family, other = Pddl(), perturbed(Pddl(), wording)
    task = other.tasks("train", kinds=["gripper"], n=1)[0]
    episode = other.create()
    episode.reset(task)
    hints = episode.step("check valid actions").observation
    assert "roll to room" in hints
    assert not re.search(r"(?i)\bmove\b", hints)
    assert family.tasks("train", kinds=["gripper"], n=1)[0].problem == task.problem


@pytest.mark.parametrize(
    ("name", "level", "old"),
    [
        ("move_to", "GoToLocal", "go to "),
        ("grab", "PickupLoc", "pick"),
        ("rotate", "GoToObj", "turn"),
    ],
)
def test_babyai_in_other_words(name, level, old):
    """The expert solves tasks in the wording, and neither reads nor says the old word."""
    family = load_family(f"babyai@{name}")
    said_new = 0
    for task in family.tasks("train", kinds=[level], n=6):
        turns = family.demonstrate(task)
        if turns is None:
            continue
        episode = family.create()
        texts = [episode.reset(task)]
        steps = [episode.step(turn.action) for turn in turns]
        texts += [step.observation for step in steps]
        assert steps[-1].success
        assert all(step.valid for step in steps)
        assert not any(old in text.lower() for text in texts)
        assert not any(turn.action.lower().startswith(old) for turn in turns)
        said_new += any(turn.action.split()[0] in ("move", "grab", "rotate") for turn in turns)
    assert said_new


def test_unknown_wordings_name_the_known_ones():
    with pytest.raises(
        UserError, match=r"'alfworld': no wording 'usin'; choose from original, usi"
    ):
        load_family("alfworld@usin")
    with pytest.raises(UserError, match=r"'maze': no wording 'x'; it has none"):
        load_family("maze@x")


def test_a_wording_in_a_configuration():
    both = [EnvironmentConfig(name="alfworld"), EnvironmentConfig(name="alfworld", wording="using")]
    config = RunConfig(environments=both)
    assert [one.registered for one in config.environments] == ["alfworld", "alfworld@using"]
    with pytest.raises(UserError, match="must name at least one environment, each once"):
        RunConfig(environments=[both[1], EnvironmentConfig(name="alfworld@using")])
