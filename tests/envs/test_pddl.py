"""The PDDL family: texts, tasks and their splits, the expert, AgentBoard's labels."""

import collections
import dataclasses
import itertools
import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import EnvironmentFamily
from agentrm_jax.core.records import Task, is_test_problem
from agentrm_jax.envs.pddl import expert as pddl_expert
from agentrm_jax.envs.pddl import family as pddl
from agentrm_jax.envs.pddl import text as pddl_text
from agentrm_jax.envs.pddl.family import Pddl
from agentrm_jax.envs.pddl.problems import (
    KINDS,
    PAPER_FORMS,
    domain,
    draw,
    from_spec,
    problem_form,
    to_spec,
)
from agentrm_jax.envs.pddl.strips import Problem
from agentrm_jax.envs.pddl.strips_parser import parse_problem

FAMILY = Pddl()
COUNTS = {"gripper": 20, "blockworld": 10, "barman": 20, "tyreworld": 10}


def task(kind, objects, init, goal, max_steps=30):
    spec = {"objects": objects, "init": init.split("; "), "goal": goal.split("; ")}
    return Task(
        environment="pddl",
        task_id="pddl/test",
        kind=kind,
        split="train",
        problem="0",
        max_steps=max_steps,
        spec=spec,
    )


BLOCKS = task(
    "blockworld",
    {"object": ["b1", "b2"]},
    "arm-empty; on-table b1; on b2 b1; clear b2",
    "on b1 b2",
)
GRIPPER = task(
    "gripper",
    {"object": ["rooma", "roomb", "ball1", "left"]},
    "room rooma; room roomb; ball ball1; gripper left; free left; at-robby rooma; at ball1 rooma",
    "at ball1 roomb",
)
BARMAN = task(
    "barman",
    {
        "shaker": ["shaker1"],
        "hand": ["left", "right"],
        "shot": ["shot1"],
        "ingredient": ["ingredient1", "ingredient2"],
        "cocktail": ["cocktail1"],
        "dispenser": ["dispenser1", "dispenser2"],
        "level": ["l0", "l1", "l2"],
    },
    "ontable shaker1; ontable shot1; dispenses dispenser1 ingredient1; "
    "dispenses dispenser2 ingredient2; clean shaker1; clean shot1; empty shaker1; empty shot1; "
    "handempty left; handempty right; shaker-empty-level shaker1 l0; shaker-level shaker1 l0; "
    "next l0 l1; next l1 l2; cocktail-part1 cocktail1 ingredient1; "
    "cocktail-part2 cocktail1 ingredient2",
    "contains shot1 cocktail1",
)
TYRES = task(
    "tyreworld",
    {"hub": ["hub1"], "nut": ["nuts1"], "container": ["boot"], "wheel": ["r1", "w1"]},
    "in wrench boot; in jack boot; in pump boot; unlocked boot; closed boot; intact r1; "
    "in r1 boot; not-inflated r1; on w1 hub1; on-ground hub1; tight nuts1 hub1; fastened hub1",
    "in w1 boot; inflated r1",
)
BY_HAND = (GRIPPER, BLOCKS, BARMAN, TYRES)


def started(of):
    episode = FAMILY.create()
    return episode, episode.reset(of)


def possible(episode):
    """The names of the possible actions, from the environment's own answer."""
    listed = episode.fork().step("check valid actions").observation
    names = listed.removeprefix("Valid actions are: ").split(", ")
    return [name for name in names if name not in ("check valid actions", "look around")]


# What an agent reads.


def test_first_observations():
    assert started(BLOCKS)[1] == (
        "The goal is to satisfy the following conditions: b1 is on b2.\n"
        "B1 is on the table. B2 is on b1. The b2 is clear. Your arm is empty."
    )
    assert started(GRIPPER)[1] == (
        "The goal is to satisfy the following conditions: ball1 is at roomb. \n"
        "Ball1 is a ball.  Ball1 is at rooma.  Left is a gripper.  Left is free.  "
        "Robby is at rooma.  Room rooma Room roomb"
    )
    assert started(BARMAN)[1] == (
        "The goal is to satisfy the following conditions: shot1 contains cocktail1. \n"
        "Cocktail1 part1 ingredient is ingredient1.  Cocktail1 part2 ingredient is ingredient2.  "
        "Dispenser1 dispenses ingredient1.  Dispenser2 dispenses ingredient2.  "
        "Handempty left Handempty right Level l0 is next to level l1.  "
        "Level l1 is next to level l2.  Shaker1 is at empty level l0.  Shaker1 is at level l0.  "
        "Shaker1 is clean.  Shaker1 is empty.  Shaker1 is on the table.  Shot1 is clean.  "
        "Shot1 is empty.  Shot1 is on the table. "
    )
    assert started(TYRES)[1] == (
        "The goal is to satisfy the following conditions: Wheel r1 is inflated. w1 is in boot.\n"
        "Boot is closed. Boot is unlocked. Hub hub1 is fastened. Hub hub1 is on the ground. "
        "Jack is in boot. Pump is in boot. R1 is in boot. The nut nuts1 on the hub hub1 is tight. "
        "W1 is on hub1. Wheel r1 is intact. Wheel r1 is not inflated. Wrench is in boot."
    )


@pytest.mark.parametrize(
    ("of", "turns"),
    [
        (
            GRIPPER,
            [
                (
                    "Pick up ball1 at rooma with arm left.",
                    "Ball1 is a ball.  Ball1 is carrying left.  Left is a gripper.  "
                    "Robby is at rooma.  Room rooma Room roomb",
                ),
                (
                    "Move from rooma to roomb.",
                    "Ball1 is a ball.  Ball1 is carrying left.  Left is a gripper.  "
                    "Robby is at roomb.  Room rooma Room roomb",
                ),
                (
                    "drop ball1 roomb left",
                    "Ball1 is a ball.  Ball1 is at roomb.  Left is a gripper.  Left is free.  "
                    "Robby is at roomb.  Room rooma Room roomb The goal is satisfied.",
                ),
            ],
        ),
        (
            BARMAN,
            [
                ("left grasp shot1. ", "You are holding left. "),
                (
                    "fill-shot glass shot1 with ingredient2 with left and right holding "
                    "dispenser2. ",
                    "Pour shot1 from a shot glass to a used shaker ingredient2 "
                    "Shot1 contains ingredient2. ",
                ),
                (
                    "pour-shot-to-clean-shaker from a shot glass shot1 with ingredient2 to a clean "
                    "shaker shaker1 with hand left from level l0 to level l1",
                    "Shaker1 contains ingredient2.  Shaker1 is at level l1.  "
                    "Shaker1 is unshaked.  Shot1 is empty. ",
                ),
            ],
        ),
        (
            TYRES,
            [
                ("Open boot.", "Boot is open."),
                ("Fetch wrench from boot.", "You have wrench."),
                ("Fetch jack from boot.", "You have jack."),
                (
                    "Loosen the nut nuts1 on the hub hub1.",
                    "The nut nuts1 on the hub hub1 is loose.",
                ),
                ("jack-up the hub hub1.", "Hub hub1 is not on the ground."),
                (
                    "Undo the fastening of the nut nuts1 on the hub hub1.",
                    "Hub hub1 is unfastened. You have nuts1.",
                ),
                ("Remove-wheel w1 from the hub hub1.", "Hub1 is free.  You have w1."),
                ("Put-away w1 in boot.", "W1 is in boot."),
            ],
        ),
    ],
)
def test_answers(of, turns):
    episode, _ = started(of)
    for action, answer in turns:
        transition = episode.step(action)
        assert transition.observation == answer
        assert transition.valid


def test_the_prompt_s_example_is_what_happens():
    prompt = FAMILY.prompt()
    episode, first = started(BLOCKS)
    assert first == prompt.example[0]
    for reply, answer in zip(prompt.example[1::2], prompt.example[2::2], strict=True):
        assert reply.startswith("Thought: ")
        transition = episode.step(reply.partition("\nAction: ")[2])
        assert transition.observation == answer
    assert transition.success


def test_the_prompt_names_every_action():
    lines = FAMILY.prompt().instruction.splitlines()
    for kind in KINDS:
        for name, schema in domain(kind).schemas.items():
            form = pddl_text.sentence((name, *["<>"] * len(schema.parameters)))
            words = [word for word in form.strip(" .").split() if word != "<>"]
            assert any(set(words) <= set(line.replace(":", "").split()) for line in lines), name


def test_every_word_of_the_domains_has_its_sentence():
    objects = [f"x{n}x" for n in range(6)]
    for kind in KINDS:
        counts = {name: len(types) for name, types in domain(kind).predicates.items()}
        counts |= {name: len(s.parameters) for name, s in domain(kind).schemas.items()}
        for name, count in counts.items():
            text = pddl_text.sentence((name, *objects[:count]))
            shown = sum(each in text for each in objects[:count])
            # A barman's "You are holding {hand}." leaves out what is held.
            assert shown == (1 if (kind, name) == ("barman", "holding") else count)
        assert set(domain(kind).schemas) <= set(pddl_expert._DOINGS)


@pytest.mark.parametrize(
    ("of", "action", "answer"),
    [
        (BLOCKS, "", pddl_text.NOT_UNDERSTOOD),
        (BLOCKS, "unstack b2", pddl_text.NOT_UNDERSTOOD),
        (BLOCKS, "fly b1 b2", pddl_text.NOT_UNDERSTOOD),
        (BLOCKS, "stack b1 b2", pddl_text.NOT_UNDERSTOOD),  # no stacking at all is possible now
        (BLOCKS, "unstack b1 b2", pddl_text.NOT_POSSIBLE),
        (BLOCKS, "unstack b2 b2", pddl_text.NOT_POSSIBLE),
        (GRIPPER, "move rooma rooma", pddl_text.NOT_POSSIBLE),
        (GRIPPER, "move roomb rooma", pddl_text.NOT_POSSIBLE),
        (GRIPPER, "pick left rooma ball1", pddl_text.NOT_POSSIBLE),
        (GRIPPER, "drop ball1 rooma left", pddl_text.NOT_UNDERSTOOD),
        (TYRES, "open\x00", pddl_text.NOT_UNDERSTOOD),
        (TYRES, "jack up hub1", pddl_text.NOT_UNDERSTOOD),
    ],
)
def test_impossible_actions_are_answered(of, action, answer):
    episode, _ = started(of)
    before = possible(episode)
    transition = episode.step(action)
    assert transition.observation == answer
    assert (transition.valid, transition.reward, transition.done) == (False, 0.0, False)
    assert possible(episode) == before


@pytest.mark.parametrize(
    "spelling",
    [
        "Unstack b2 from b1.",
        "unstack b2 b1",
        "  UNSTACK B2, B1! ",
        "I unstack the block b2 (from b1).",
        "b2 b1 unstack",
        "unstack b2 from b1 and then stack b2 on b2",
        "fly, pickup or unstack b2 b1",
    ],
)
def test_actions_are_read_leniently(spelling):
    episode, _ = started(BLOCKS)
    transition = episode.step(spelling)
    assert transition.valid
    assert transition.observation == "B1 is on the table. The b1 is clear. You are holding b2. "


def test_an_action_without_effect_is_called_invalid():
    """As in AgentBoard, although it is listed."""
    episode, _ = started(BARMAN)
    episode.step("left grasp shaker1")
    clean = "use hand left and hand right to clean-shaker shaker1"
    assert clean in possible(episode)
    assert episode.step(clean).observation == pddl_text.NOT_POSSIBLE


def test_actions_and_the_state_can_be_asked_for():
    episode, first = started(TYRES)
    listed = episode.step("Check valid actions.")
    assert listed.observation == "Valid actions are: Open boot., check valid actions, look around"
    assert listed.valid
    assert episode.step("look around").observation == first.partition("\n")[2]
    episode, _ = started(BLOCKS)
    listed = episode.step("check")
    assert listed.observation == "Valid actions are: Unstack b2 from b1., check valid actions"


# What it pays.


def test_reward_is_what_a_step_adds_to_the_best_progress():
    episode, _ = started(TYRES)
    for action in ("open boot", "fetch pump boot", "fetch r1 boot"):
        assert episode.step(action).reward == 0.0
    won = episode.step("inflate r1")
    assert (won.reward, won.success, won.done) == (0.5, False, False)
    two = task(
        "blockworld",
        {"object": ["b1", "b2", "b3"]},
        "arm-empty; on-table b1; on b2 b1; clear b2; on-table b3; clear b3",
        "on b2 b1; on b3 b2",
    )
    episode, _ = started(two)
    assert episode.step("check").reward == 0.0
    # True from the start, it counts as soon as something changes, and only once.
    assert episode.step("pickup b3").reward == 0.5
    assert episode.step("putdown b3").reward == 0.0
    assert episode.step("unstack b2 b1").reward == 0.0
    assert episode.step("stack b2 b1").reward == 0.0
    episode.step("pickup b3")
    last = episode.step("stack b3 b2")
    assert (last.reward, last.success, last.done) == (0.5, True, True)


def test_progress_adds_up_to_one_exactly():
    for parts in range(1, 40):
        for now, then in itertools.combinations(range(parts + 1), 2):
            before, after = now / parts, then / parts
            assert math.isclose(before + (after - before), after)
            assert before + (1.0 - before) == 1.0


def test_steps_run_out():
    episode, _ = started(dataclasses.replace(BLOCKS, max_steps=3))
    assert [episode.step(action).done for action in ("check", "", "look around")] == [
        False,
        False,
        True,
    ]


def test_success_in_the_last_step_is_success():
    episode, _ = started(dataclasses.replace(GRIPPER, max_steps=3))
    for action in ("pick ball1 rooma left", "move rooma roomb", "drop ball1 roomb left"):
        last = episode.step(action)
    assert (last.success, last.done, last.reward) == (True, True, 1.0)


# Copies, and agents that say anything.

WORDS = """
pick drop move unstack stack grasp left right shot1 fill-shot ingredient1 open boot fetch wrench
rooma roomb ball1 b1 b2 check look around hub1 leave dispenser1
"""
SAID = st.one_of(
    st.text(max_size=40),
    st.lists(
        st.sampled_from(WORDS.split()),
        max_size=8,
    ).map(" ".join),
    st.integers(0, 1000),  # one of the possible actions
)


def acted(episode, said):
    names = possible(episode)
    return episode.step(names[said % len(names)] if isinstance(said, int) else said)


@settings(deadline=None)
@given(st.sampled_from(BY_HAND), st.lists(SAID, max_size=12), st.lists(SAID, max_size=6))
def test_any_text_is_answered_and_copies_stay_apart(of, before, after):
    episode, _ = started(of)
    total = 0.0
    for said in before:
        transition = acted(episode, said)
        total += transition.reward
        assert transition.observation or transition.valid
        assert 0.0 <= total <= 1.0
        assert transition.done == transition.success or episode.fork()._steps_left == 0
    look = episode.fork().step("look around").observation
    left, right = episode.fork(), episode.fork().fork()
    assert [acted(left, said) for said in after] == [acted(right, said) for said in after]
    assert episode.fork().step("look around").observation == look
    again, _ = started(of)
    for said in before:
        acted(again, said)
    assert [acted(again, said) for said in after] == [acted(episode, said) for said in after]


# Tasks.


def test_the_family_is_one():
    assert isinstance(FAMILY, EnvironmentFamily)
    assert tuple(FAMILY.kinds()) == KINDS


def test_tasks_are_stable_even_and_begin_alike():
    short = FAMILY.tasks("train", kinds=KINDS, n=10)
    long = FAMILY.tasks("train", kinds=KINDS, n=42)
    assert long[:10] == short
    assert sorted(collections.Counter(t.kind for t in short).values()) == [2, 2, 3, 3]
    alone = FAMILY.tasks("train", kinds=["barman"], n=20)
    assert [t for t in long if t.kind == "barman"] == alone[: len(long) // 4]
    assert len({t.task_id for t in long}) == len({t.problem for t in long}) == 42
    other = FAMILY.tasks("train", kinds=KINDS, n=42, seed=1)
    assert len({t.problem for t in other} & {t.problem for t in long}) < 10
    assert not {t.task_id for t in other} & {t.task_id for t in long}


def test_splits_share_no_problem():
    lists = [
        FAMILY.tasks(split, kinds=KINDS, n=200, seed=seed)
        for split in ("train", "test")
        for seed in (0, 1)
    ]
    assert all(len(tasks) == 200 for tasks in lists)
    train, test = ({t.problem for tasks in pair for t in tasks} for pair in (lists[:2], lists[2:]))
    assert not train & test
    assert not (train | test) & PAPER_FORMS
    assert all(is_test_problem(problem) for problem in test)


def test_a_kind_may_run_out_and_others_fill_up(monkeypatch):
    monkeypatch.setattr(pddl, "_DRAWS_WITHOUT_NEWS", 30)
    monkeypatch.setattr(
        pddl, "draw", lambda kind, seed: draw(kind, "only" if kind == "barman" else seed)
    )
    tasks = FAMILY.tasks("train", kinds=["barman", "gripper"], n=12)
    tasks += FAMILY.tasks("test", kinds=["barman"], n=12)
    assert collections.Counter(t.kind for t in tasks)["barman"] == 1
    assert len(tasks) in (12, 13)


def test_unknown_kind_names_the_kinds():
    with pytest.raises(UserError, match=r"no kind 'blocks'.*blockworld"):
        FAMILY.tasks("train", kinds=["blocks"], n=1)


def test_a_task_is_plain_json():
    for each in FAMILY.tasks("train", kinds=KINDS, n=8):
        restored = json.loads(json.dumps(dataclasses.asdict(each)))
        assert started(Task(**restored))[1] == started(each)[1]
        problem = from_spec(each.kind, each.spec)
        assert to_spec(problem) == each.spec
        assert problem_form(problem) == each.problem


def written(problem):
    """A problem as a PDDL file."""
    constants = problem.domain.constants
    objects = [f"{n} - {t}" for n, t in problem.objects.items() if n not in constants]

    def text(atoms):
        return " ".join(f"({' '.join(atom)})" for atom in sorted(atoms))

    return (
        f"(define (problem any)\n(:domain {problem.domain.name})\n"
        f"(:objects {' '.join(objects)})\n(:init {text(problem.init)})\n"
        f"(:goal (and {text(problem.goal)})))\n"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_drawn_problems_are_well_formed_and_of_many_sizes(kind):
    problems = [p for n in range(150) if (p := draw(kind, f"sizes/{n}")) is not None]
    for problem in problems:
        assert parse_problem(written(problem), "drawn.pddl", domain(kind)) == dataclasses.replace(
            problem, goal=tuple(sorted(problem.goal))
        )
        assert not problem.init.issuperset(problem.goal)
    assert len({len(problem.objects) for problem in problems}) >= 4
    assert len({len(problem.goal) for problem in problems}) >= 3


def renamed(problem: Problem, rng: random.Random) -> Problem:
    """The same problem with the names of each type shuffled, and in another order."""
    names: dict[str, str] = {}
    for kind in set(problem.objects.values()):
        own = [n for n, k in problem.objects.items() if k == kind]
        own = [n for n in own if n not in problem.domain.constants]
        names |= dict(zip(own, rng.sample(own, len(own)), strict=True))

    def atoms(given):
        return [(atom[0], *(names.get(name, name) for name in atom[1:])) for atom in given]

    return Problem(
        domain=problem.domain,
        objects={
            n: problem.objects[n] for n in rng.sample([*problem.objects], len(problem.objects))
        },
        init=frozenset(atoms(problem.init)),
        goal=tuple(rng.sample(atoms(problem.goal), len(problem.goal))),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_names_do_not_tell_problems_apart(kind):
    rng = random.Random(kind)
    problems = [p for n in range(40) if (p := draw(kind, f"names/{n}")) is not None]
    for problem in problems:
        assert problem_form(renamed(problem, rng)) == problem_form(problem)
    assert len({problem_form(p) for p in problems}) > len(problems) // 2


def test_what_matters_tells_problems_apart():
    problem = from_spec("gripper", GRIPPER.spec)
    form = problem_form(problem)
    moved = problem.init - {("at-robby", "rooma")} | {("at-robby", "roomb")}
    more = {**problem.objects, "right": "object"}
    forms = {
        form,
        problem_form(dataclasses.replace(problem, init=moved)),
        problem_form(dataclasses.replace(problem, goal=(("at", "ball1", "rooma"),))),
        problem_form(dataclasses.replace(problem, objects=more)),
    }
    assert len(forms) == 4
    tyres = from_spec("tyreworld", TYRES.spec)
    # Wrench, jack and pump are constants: their names do matter.
    forms = {
        problem_form(
            dataclasses.replace(tyres, init=tyres.init - {("in", tool, "boot")} | {("have", tool)})
        )
        for tool in ("wrench", "jack", "pump")
    }
    assert len(forms) == 3


# The expert.


@pytest.mark.parametrize(("kind", "least"), [*zip(KINDS, (18, 20, 20, 18), strict=True)])
def test_the_expert_solves_nearly_all_and_says_why(kind, least):
    solved = 0
    for each in FAMILY.tasks("train", kinds=[kind], n=20):
        turns = FAMILY.demonstrate(each)
        if turns is None:
            continue
        solved += 1
        assert len(turns) <= each.max_steps
        episode, first = started(each)
        goal = first.partition("\n")[0].lower()
        names = set(from_spec(kind, each.spec).objects)
        total = 0.0
        for turn in turns:
            why, what = turn.thought.split(". I ")
            assert why.startswith("The goal says that ")
            assert why.removeprefix("The goal says that ").lower() in goal
            assert names & set(what.strip(".").split())
            last = episode.step(turn.action)
            assert last.valid
            total += last.reward
        assert last.success
        assert last.done
        assert total == pytest.approx(1.0, abs=1e-12)
        assert total <= 1.0
    assert solved >= least


def test_the_expert_is_the_same_each_time_and_gives_up():
    for each in FAMILY.tasks("test", kinds=KINDS, n=8):
        assert FAMILY.demonstrate(each) == FAMILY.demonstrate(each)
    assert FAMILY.demonstrate(dataclasses.replace(BARMAN, max_steps=9)) is None
    assert len(FAMILY.demonstrate(dataclasses.replace(GRIPPER, max_steps=3))) == 3


def test_thoughts_follow_what_an_action_is_for():
    assert [turn.thought for turn in FAMILY.demonstrate(BLOCKS)] == [
        "The goal says that b1 is on b2. I take b2 off b1 so that I can put b2 on the table.",
        "The goal says that b1 is on b2. I put b2 on the table so that I can pick up b1.",
        "The goal says that b1 is on b2. I pick up b1 so that I can put b1 on b2.",
        "The goal says that b1 is on b2. I put b1 on b2.",
    ]


# AgentBoard's files: stand-ins made here, and the real ones where they are.


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setenv("AGENTRM_DATA", str(tmp_path))
    for kind, count in COUNTS.items():
        folder = tmp_path / "pddl" / kind
        folder.mkdir(parents=True)
        drawn = (draw(kind, f"paper/{n}") for n in itertools.count())
        problems = itertools.islice((p for p in drawn if p is not None), count)
        for number, problem in enumerate(problems, start=1):
            (folder / f"problem{number}.pddl").write_text(written(problem))
    return tmp_path / "pddl"


def test_paper_tasks_are_read_from_files(files):
    tasks = FAMILY.tasks("paper", kinds=KINDS, n=1000)
    assert collections.Counter(t.kind for t in tasks) == COUNTS
    assert {(t.split, t.max_steps) for t in tasks} == {("paper", 30)}
    assert len({t.task_id for t in tasks}) == 60
    blocks = FAMILY.tasks("paper", kinds=["blockworld"], n=3)
    # AgentBoard counts in this order.
    assert [t.task_id for t in blocks] == [
        f"pddl/blockworld/problem{number}" for number in (1, 10, 2)
    ]
    _, text = started(blocks[0])
    assert text.startswith("The goal is to satisfy the following conditions: b")


def test_missing_or_broken_files_are_named(files, monkeypatch, tmp_path):
    file = files / "barman" / "problem7.pddl"
    text = file.read_text()
    file.write_text(text.replace("(:goal (and ", "(:goal (and\n (full shot1) "))
    with pytest.raises(UserError, match=r"barman/problem7.pddl:6: unknown predicate full"):
        FAMILY.tasks("paper", kinds=["barman"], n=20)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"barman/problem7.pddl:1: "):
        FAMILY.tasks("paper", kinds=["barman"], n=20)
    file.unlink()
    with pytest.raises(UserError, match=r"barman: holds 19 problem files, not 20; get them from"):
        FAMILY.tasks("paper", kinds=["barman"], n=1)
    assert len(FAMILY.tasks("paper", kinds=["gripper"], n=50)) == 20
    monkeypatch.setenv("AGENTRM_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"nowhere/pddl/gripper: not found; get it from") as error:
        FAMILY.tasks("paper", kinds=KINDS, n=1)
    assert "\n" not in str(error.value)
    assert len(FAMILY.tasks("train", kinds=KINDS, n=4)) == 4


def test_a_worker_needs_no_jax():
    code = (
        "import sys; from agentrm_jax.envs.pddl.family import Pddl; f = Pddl();"
        "t = f.tasks('train', kinds=['gripper'], n=1)[0]; f.demonstrate(t); f.create().reset(t);"
        "sys.exit('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.fixture
def real():
    """AgentBoard's label file, beside its problems."""
    directory = os.environ.get("AGENTRM_DATA")
    if not directory:
        pytest.skip("AGENTRM_DATA is not set")
    path = Path(directory, "pddl", "agentboard_pddl_test.jsonl")
    if not path.exists():
        pytest.skip("no PDDL labels in AGENTRM_DATA")
    return path


def test_goals_equal_agentboards_labels(real):
    tasks = [t for kind in KINDS for t in FAMILY.tasks("paper", kinds=[kind], n=20)]
    labels = [json.loads(line) for line in real.read_text().splitlines()]
    assert labels
    for label in labels:
        each = tasks[label["id"]]
        assert each.kind == label["additional_info"]["subtask"]
        goal = started(each)[1].partition("\n")[0]
        assert goal == label["goal"]
        sentences = [pddl_text.sentence(a.split()).strip() for a in each.spec["goal"]]
        assert sorted(sentences) == sorted(label["subgoals"])


def test_agentboards_problems_are_those_that_are_never_drawn(real):
    tasks = FAMILY.tasks("paper", kinds=KINDS, n=60)
    assert {t.problem for t in tasks} == PAPER_FORMS


def test_the_expert_solves_agentboards_problems(real):
    solved = collections.Counter()
    for each in FAMILY.tasks("paper", kinds=KINDS, n=60):
        turns = FAMILY.demonstrate(each)
        if turns is None:
            continue
        episode, _ = started(each)
        solved[each.kind] += [episode.step(turn.action) for turn in turns][-1].success
    # The other five take more than 30 steps.
    assert solved == {"gripper": 16, "blockworld": 10, "barman": 20, "tyreworld": 9}
