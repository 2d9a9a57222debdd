"""The Maze family: AgentGym's texts, the paper's starts, generated mazes, the shortest paths."""

import collections
import dataclasses
import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import EnvironmentFamily
from agentrm_jax.core.records import Task, is_test_problem
from agentrm_jax.envs.maze import Maze

FAMILY = Maze()
PAPER = FAMILY.tasks("paper", kinds=FAMILY.kinds(), n=1000)
MOVES = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}


def started(of):
    episode = FAMILY.create()
    return episode, episode.reset(of)


def test_the_family_is_one():
    assert isinstance(FAMILY, EnvironmentFamily)


def test_the_paper_s_25_starts():
    starts = [tuple(t.spec["start"]) for t in PAPER]
    assert len(set(starts)) == len({t.problem for t in PAPER}) == len(PAPER) == 25
    assert starts[:2] == [(1, 1), (1, 2)]
    assert starts[-1] == (2, 9)
    assert {t.max_steps for t in PAPER} == {15}
    grid = PAPER[0].spec["grid"]
    cells = {(r, c) for r, row in enumerate(grid) for c, cell in enumerate(row) if cell == "."}
    assert cells - set(starts) == {(8, 6)}  # every cell but the goal
    assert FAMILY.tasks("paper", kinds=["double_t"], n=4) == PAPER[:4]
    assert FAMILY.tasks("paper", kinds=["generated"], n=4) == []
    assert FAMILY.tasks("train", kinds=["double_t"], n=4) == []


@pytest.mark.parametrize(
    ("index", "text"),
    [
        (0, "1, 1. There are walls to your left, above you, below you."),
        (4, "1, 5. There are walls to your right, above you, below you."),
        (2, "1, 3. There is a wall above you."),
        (11, "3, 3. There are walls to your right, to your left."),
        (13, "5, 3. There are walls to your left, below you."),
        (16, "5, 6. There is a wall above you."),
    ],
)
def test_first_observations(index, text):
    where = "The goal is at position 8, 6. Your current position is at position "
    assert started(PAPER[index])[1] == where + text


def test_a_place_without_walls():
    open_grid = ["#####", "#...#", "#...#", "#...#", "#####"]
    spec = {"grid": open_grid, "goal": [1, 1], "start": [2, 2]}
    _, text = started(dataclasses.replace(PAPER[0], spec=spec))
    assert text.endswith("position 2, 2. There are no walls near you.")


def test_a_walk_to_the_goal():
    episode, _ = started(PAPER[17])  # (6, 6)
    transition = episode.step("move down")
    assert transition.observation == (
        "The goal is at position 8, 6. Your current position is at position 7, 6. "
        "There are walls to your right, to your left."
    )
    assert (transition.reward, transition.done, transition.valid) == (0.0, False, True)
    transition = episode.step("  Move   DOWN\n")
    assert transition.observation == "Success"
    assert (transition.reward, transition.done, transition.success) == (1.0, True, True)


@pytest.mark.parametrize("action", ["move up", "move left", "jump", "", "move", "up", "move up up"])
def test_blocked_and_unknown_actions_change_nothing(action):
    episode, first = started(PAPER[0])
    transition = episode.step(action)
    assert transition.observation == first
    assert (transition.valid, transition.reward, transition.done) == (False, 0.0, False)


def test_steps_run_out_with_the_usual_observation():
    episode, first = started(PAPER[0])
    answers = [episode.step("move up") for _ in range(15)]
    assert [answer.done for answer in answers] == [False] * 14 + [True]
    assert answers[-1].observation == first
    assert not answers[-1].success
    near, _ = started(dataclasses.replace(PAPER[18], max_steps=1))
    last = near.step("move down")
    assert (last.success, last.done, last.reward) == (True, True, 1.0)


def shortest(of):
    """The length of a shortest path, by letting all positions spread."""
    grid, goal = of.spec["grid"], tuple(of.spec["goal"])
    reached, count = {tuple(of.spec["start"])}, 0
    while goal not in reached:
        near = {(r + down, c + right) for r, c in reached for down, right in MOVES.values()}
        reached |= {(r, c) for r, c in near if grid[r][c] == "."}
        count += 1
        assert count < 200
    return count


@pytest.mark.parametrize(
    "tasks",
    [PAPER, FAMILY.tasks("train", kinds=["generated"], n=100)],
    ids=["paper", "generated"],
)
def test_the_expert_walks_a_shortest_path(tasks):
    for each in tasks:
        turns = FAMILY.demonstrate(each)
        assert turns is not None
        assert len(turns) == shortest(each)
        episode, _ = started(each)
        answers = [episode.step(turn.action) for turn in turns]
        assert all(answer.valid for answer in answers)
        assert [answer.success for answer in answers] == [False] * (len(turns) - 1) + [True]
        assert sum(answer.reward for answer in answers) == 1.0
        for turn in turns:
            direction = turn.action.removeprefix("move ")
            assert turn.thought.startswith("The goal is ")
            assert f"I move {direction}, " in turn.thought


def test_the_expert_gives_up_where_the_way_is_too_long():
    far = dataclasses.replace(PAPER[0], max_steps=11)
    assert shortest(far) == 12
    assert FAMILY.demonstrate(far) is None
    assert len(FAMILY.demonstrate(dataclasses.replace(far, max_steps=12))) == 12


def test_generated_tasks_are_stable_distinct_and_begin_alike():
    kinds = FAMILY.kinds()
    short, long = (FAMILY.tasks("train", kinds=kinds, n=n) for n in (20, 200))
    assert long[:20] == short
    assert len({t.problem for t in long}) == len({t.task_id for t in long}) == 200
    other = FAMILY.tasks("train", kinds=kinds, n=200, seed=1)
    assert not {t.problem for t in other} & {t.problem for t in long}
    distances = collections.Counter(map(shortest, long))
    assert set(distances) <= set(range(2, 13))
    assert len(distances) >= 9


def test_splits_share_no_problem():
    train = {t.problem for t in FAMILY.tasks("train", kinds=FAMILY.kinds(), n=400)}
    test = {t.problem for t in FAMILY.tasks("test", kinds=FAMILY.kinds(), n=150)}
    assert len(train) == 400
    assert len(test) == 150
    assert all(map(is_test_problem, test))
    assert not train & test
    assert not (train | test) & {t.problem for t in PAPER}
    grids = [t.spec["grid"] for t in FAMILY.tasks("train", kinds=["generated"], n=400)]
    assert PAPER[0].spec["grid"] not in grids


def test_generated_grids_are_walled_and_connected():
    for each in FAMILY.tasks("test", kinds=["generated"], n=100):
        grid = each.spec["grid"]
        assert (len(grid), {len(row) for row in grid}) == (10, {13})
        assert grid[0] == grid[-1] == "#" * 13
        assert all(row[0] == row[-1] == "#" for row in grid)
        cells = {(r, c) for r, row in enumerate(grid) for c, cell in enumerate(row) if cell == "."}
        reached, edge = set(), {tuple(each.spec["goal"])}
        while edge:
            reached |= edge
            near = {(r + down, c + right) for r, c in edge for down, right in MOVES.values()}
            edge = near & cells - reached
        assert reached == cells


def test_unknown_kind_names_the_kinds():
    with pytest.raises(UserError, match=r"no kind 'big': choose from double_t, generated"):
        FAMILY.tasks("train", kinds=["big"], n=1)


def test_a_task_is_plain_json():
    each = FAMILY.tasks("train", kinds=["generated"], n=1)[0]
    restored = Task(**json.loads(json.dumps(dataclasses.asdict(each))))
    assert started(restored)[1] == started(each)[1]


SAID = st.one_of(st.sampled_from([f"move {move}" for move in MOVES]), st.text(max_size=12))


@settings(deadline=None)
@given(st.sampled_from(PAPER), st.lists(SAID, max_size=10), st.lists(SAID, max_size=6))
def test_any_text_is_answered_and_copies_stay_apart(of, before, after):
    episode, _ = started(of)
    for said in before:
        assert episode.step(said).observation
    left, right = episode.fork(), episode.fork().fork()
    answers = [left.step(said) for said in after]
    assert [right.step(said) for said in after] == answers
    assert [episode.step(said) for said in after] == answers


def test_the_prompt_s_example_is_what_happens():
    prompt = FAMILY.prompt()
    spec = {"grid": ["####", "#.##", "#..#", "##.#", "####"], "goal": [3, 2], "start": [2, 1]}
    episode, first = started(dataclasses.replace(PAPER[0], spec=spec))
    assert first == prompt.example[0]
    for reply, answer in zip(prompt.example[1::2], prompt.example[2::2], strict=True):
        transition = episode.step(reply.partition("\nAction: ")[2])
        assert transition.observation == answer
    assert transition.success


def test_a_worker_needs_no_jax():
    code = (
        "import sys; from agentrm_jax.envs.maze import Maze; f = Maze();"
        "t = f.tasks('train', kinds=['generated'], n=1)[0]; f.demonstrate(t);"
        "sys.exit('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
