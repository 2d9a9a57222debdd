"""The BabyAI family: tasks and their splits, episodes, the expert, AgentBoard's labels."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("minigrid")

import gymnasium

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import EnvironmentFamily
from agentrm_jax.core.records import Task, is_test_problem
from agentrm_jax.envs.babyai import expert as babyai_expert
from agentrm_jax.envs.babyai import world as babyai_world
from agentrm_jax.envs.babyai.family import BabyAI

SIX = ("GoToObjDoor", "PickupDist", "OpenDoor", "ActionObjDoor", "GoToLocal", "PickupLoc")
FAMILY = BabyAI()


def task(level, seed, max_steps=20):
    return Task(
        environment="babyai",
        task_id=f"babyai/{level}/{seed}",
        kind=level,
        split="train",
        problem="0",
        max_steps=max_steps,
        spec={"level": level, "seed": seed},
    )


def started(level, seed, max_steps=20):
    episode = FAMILY.create()
    return episode, episode.reset(task(level, seed, max_steps))


def test_kinds_are_minigrids_levels():
    assert isinstance(FAMILY, EnvironmentFamily)
    registered = {name for name in gymnasium.registry if name.startswith("BabyAI-")}
    kinds = FAMILY.kinds()
    assert len(set(kinds)) == len(kinds)
    assert set(SIX) <= set(kinds)
    assert {f"BabyAI-{kind}-v0" for kind in kinds} - registered == {"BabyAI-GoToObjS6-v0"}


def test_paper_tasks_are_28_levels_by_4_seeds():
    tasks = FAMILY.tasks("paper", kinds=FAMILY.kinds(), n=1000)
    assert len(tasks) == len({t.task_id for t in tasks}) == 112
    assert {t.max_steps for t in tasks} == {30}
    assert FAMILY.tasks("paper", kinds=["OpenDoor"], n=9) == []


def test_splits_share_no_problem():
    # Few problems exist in these levels, so seeds meet the same ones again and again.
    kinds = ("GoToObjS4", "GoToObjS6", "OpenRedDoor", "GoToObj")
    train = FAMILY.tasks("train", kinds=kinds, n=400)
    test = FAMILY.tasks("test", kinds=kinds, n=100)
    paper = FAMILY.tasks("paper", kinds=FAMILY.kinds(), n=112)
    problems = [t.problem for t in train + test]
    assert len(set(problems)) == len(problems)
    assert not set(problems) & {t.problem for t in paper}
    assert all(is_test_problem(t.problem) for t in test)
    assert len(test) == 100


def test_a_level_with_few_problems_runs_out_and_others_fill_up():
    small = FAMILY.tasks("test", kinds=["GoToObjS4"], n=10_000)
    assert 0 < len(small) < 2_000
    both = FAMILY.tasks("test", kinds=["GoToObjS4", "GoToObj"], n=2 * len(small) + 10)
    assert len(both) == 2 * len(small) + 10


def test_tasks_are_stable_even_and_begin_alike():
    short = FAMILY.tasks("train", kinds=SIX, n=12)
    long = FAMILY.tasks("train", kinds=SIX, n=30)
    assert long[:12] == short
    assert [sum(t.kind == kind for t in short) for kind in SIX] == [2] * 6
    other = FAMILY.tasks("train", kinds=SIX, n=12, seed=1)
    assert not {t.problem for t in other} & {t.problem for t in short}


def test_problems_are_told_apart_by_what_matters():
    world = babyai_world.build("OpenDoor", 3)
    form = babyai_world.problem_form(world)
    assert form == babyai_world.problem_form(babyai_world.build("OpenDoor", 3))
    world.agent_dir = (world.agent_dir + 1) % 4
    assert babyai_world.problem_form(world) != form
    world.agent_dir = (world.agent_dir - 1) % 4
    door = next(item for item in world.grid.grid if item is not None and item.type == "door")
    door.is_open = True
    assert babyai_world.problem_form(world) != form


def test_unknown_kind_names_the_kinds():
    with pytest.raises(UserError, match=r"no kind 'OpenDoors'.*OpenDoorLoc"):
        FAMILY.tasks("train", kinds=["OpenDoors"], n=1)


def test_missing_minigrid_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "minigrid", None)
    babyai_world._level.cache_clear()
    with pytest.raises(UserError, match=r"pip install 'agentrm-jax\[babyai\]'"):
        FAMILY.tasks("train", kinds=["OpenDoor"], n=1, seed=99)  # levels that no test has listed


def test_first_observation_states_the_goal():
    _, text = started("GoToRedBallGrey", 1235)
    goal, room = text.split("\n")
    assert goal == "Goal: go to the red ball"
    assert room.startswith("In front of you in this room")
    again = FAMILY.create()
    assert again.reset(task("GoToRedBallGrey", 1235)) == text


@pytest.mark.parametrize(
    ("action", "answer"),
    [
        ("", "No change in state."),
        ("open the pod bay doors", "The action is not recognized."),
        ("drop", "You cannot drop the object, as you are not carrying anything."),
        ("pick up red key 7", "The action is not recognized."),
        ("go to\x00", "The action is not recognized."),
    ],
)
def test_impossible_actions_are_answered(action, answer):
    episode, _ = started("GoToLocal", 1)
    transition = episode.step(action)
    assert transition.observation.startswith(answer)
    assert (transition.valid, transition.reward, transition.done) == (False, 0.0, False)


def test_actions_are_listed_and_read_leniently():
    episode, _ = started("GoToLocal", 1)
    listed = episode.step("check valid actions")
    assert listed.valid
    names = listed.observation.removeprefix("You can take the following actions: ").split(", ")
    assert {"turn left", "turn right", "check available actions"} <= set(names)
    name = next(name for name in names if name.startswith("pickup"))
    for spelling in (name, f"  {name.upper()} ", name.replace("pickup", "pick up")):
        transition = episode.fork().step(spelling)
        assert transition.valid
        assert "You are carrying" in transition.observation or transition.success


def test_steps_run_out():
    episode, _ = started("GoToObjMazeS7", 4, max_steps=3)
    assert [episode.step("check").done for _ in range(3)] == [False, False, True]


def test_success_pays_one_however_late():
    """Minigrid's own reward falls below zero when the moves exceed its step limit."""
    episode, _ = started("GoToObjS4", 5, max_steps=200)
    for _ in range(100):
        episode.world.step(0)
    rng = random.Random(0)
    for _ in range(199):
        names = episode.fork().step("check").observation.partition(": ")[2].split(", ")
        transition = episode.step(rng.choice(names))
        if transition.done:
            break
    assert transition.success
    assert transition.reward == 1.0
    assert transition.observation.endswith("The task is completed.")


def test_a_fork_answers_as_the_original_and_stays_apart():
    rng = random.Random(3)
    for level in ("GoToSeqS5R2", "UnlockPickup", "PutNextLocal"):
        episode, _ = started(level, 11, max_steps=60)
        for _ in range(8):
            names = episode.fork().step("check").observation.partition(": ")[2].split(", ")
            script = [rng.choice([*names, "toggle", "drop"]) for _ in range(6)]
            left, right = episode.fork(), episode.fork().fork()
            assert [left.step(a) for a in script] == [right.step(a) for a in script]
            still = episode.fork().step("check")
            assert still.observation.partition(": ")[2].split(", ") == names
            if episode.step(script[0]).done:
                break


@pytest.mark.parametrize("level", SIX)
def test_the_expert_solves_nearly_all_and_replays(level):
    tasks = FAMILY.tasks("train", kinds=[level], n=40)
    solved = 0
    for each in tasks:
        turns = FAMILY.demonstrate(each)
        if turns is None:
            continue
        solved += 1
        episode = FAMILY.create()
        seen = episode.reset(each)
        for turn in turns:
            assert len(turn.thought.split()) <= 12
            if " I see " in turn.thought:
                name = turn.thought.split("I see ")[1].rstrip(".").rsplit(" ", 1)[0]
                assert f"There is a {name} " in seen
            last = episode.step(turn.action)
            assert last.valid
            seen = last.observation
        assert last.success
        assert len(turns) <= each.max_steps
    assert solved >= 38


def test_mazes_have_more_steps_than_rooms():
    tasks = FAMILY.tasks("train", kinds=["GoToLocal", "GoToObjMazeS5", "GoTo"], n=3)
    assert [each.max_steps for each in tasks] == [20, 225 // 4, 128]


def test_the_expert_solves_mazes():
    tasks = FAMILY.tasks("train", kinds=["GoTo", "KeyCorridorS3R3", "BossLevel"], n=9)
    assert all(FAMILY.demonstrate(each) for each in tasks)


def test_the_expert_puts_down_what_it_begins_with():
    """Minigrid's bot would look for the thing that it carries."""
    tasks = FAMILY.tasks("train", kinds=["PutNextS5N2Carrying"], n=10)
    assert sum(FAMILY.demonstrate(each) is not None for each in tasks) >= 7


def test_the_expert_is_the_same_each_time_and_gives_up_in_time():
    each = task("GoToLocal", 1000003)
    assert FAMILY.demonstrate(each) == FAMILY.demonstrate(each)
    assert FAMILY.demonstrate(task("KeyCorridorS6R3", 1234, max_steps=2)) is None


def test_a_bot_that_replans_for_ever_is_stopped(monkeypatch):
    class Looping:
        def __init__(self, world):
            self.stack = []

        def replan(self, move=None):
            while True:
                self.stack.append(None)
                self.stack.pop()

    monkeypatch.setattr(babyai_expert, "_bot_class", lambda: Looping)
    assert FAMILY.demonstrate(task("GoToLocal", 1)) is None


def test_a_worker_needs_no_jax_and_prints_nothing():
    code = (
        "import sys; from agentrm_jax.envs.babyai.family import BabyAI; f = BabyAI();"
        "t = f.tasks('train', kinds=['GoToImpUnlock', 'GoToObjDoor'], n=6);"
        "f.demonstrate(t[1]); f.create().reset(t[0]);"
        "sys.exit('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_prompt_shows_the_reply_format():
    prompt = FAMILY.prompt()
    assert len(prompt.example) % 2 == 0
    assert all(
        reply.startswith("Thought: ") and "\nAction: " in reply for reply in prompt.example[1::2]
    )


def test_first_observations_equal_agentboards_labels():
    directory = os.environ.get("AGENTRM_DATA")
    if not directory:
        pytest.skip("AGENTRM_DATA is not set")
    path = Path(directory, "babyai", "agentboard_babyai_test.jsonl")
    if not path.exists():
        pytest.skip("no BabyAI labels in AGENTRM_DATA")
    kinds = FAMILY.kinds()
    labels = [json.loads(line) for line in path.read_text().splitlines()]
    for label in labels:
        level, seed = kinds[label["id"] // 4], 1234 + label["id"] % 4
        _, text = started(level, seed)
        assert text == f"Goal: {label['goal']}\n{label['additional_info']['init_obs']}"
