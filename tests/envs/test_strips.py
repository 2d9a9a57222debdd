"""The PDDL parser, the grounder and the planner, against slow oracles."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrm_jax.core.errors import UserError
from agentrm_jax.envs.pddl.problems import KINDS, domain, draw
from agentrm_jax.envs.pddl.strips import Action, Problem, ground
from agentrm_jax.envs.pddl.strips_parser import parse_domain, parse_problem
from agentrm_jax.envs.pddl.strips_search import find_plan, without_useless

DOMAIN = """\
(define (domain lamps) ; a comment (
  (:requirements :strips :typing)
  (:types lamp switch - thing person)
  (:constants Master - switch)
  (:predicates (lit ?l - lamp) (wired ?s - switch ?l - lamp) (up ?s - switch) (awake))
  (:action flip
    :parameters (?s - switch ?l - lamp)
    :precondition (and (wired ?s ?l) (up master) (awake))
    :effect (and (lit ?l) (not (up ?s)) (up master)))
  (:action wake :parameters (?p - person) :effect (awake)))
"""
PROBLEM = """\
(define (problem dark)
  (:domain lamps)
  (:objects S1 S2 - switch L1 - lamp bob - person)
  (:init (wired s1 l1) (wired master l1)
         (up Master))
  (:goal (lit l1)))
"""


def lamps():
    return parse_problem(PROBLEM, "p.pddl", parse_domain(DOMAIN, "d.pddl"))


def small_problems():
    """Problems of every kind that a slow oracle can manage."""
    for kind in KINDS:
        drawn = (draw(kind, f"oracle/{kind}/{number}") for number in itertools.count())
        small = (p for p in drawn if p is not None and len(p.objects) <= LARGEST[kind])
        yield from itertools.islice(small, 12)


LARGEST = {"gripper": 7, "blockworld": 4, "barman": 13, "tyreworld": 11}


def test_a_domain_and_a_problem_are_read():
    problem = lamps()
    assert problem.objects == {
        "s1": "switch",
        "s2": "switch",
        "l1": "lamp",
        "bob": "person",
        "master": "switch",
    }
    assert problem.init == {("wired", "s1", "l1"), ("wired", "master", "l1"), ("up", "master")}
    assert problem.goal == (("lit", "l1"),)
    flip = problem.domain.schemas["flip"]
    assert dict(flip.parameters) == {"?s": "switch", "?l": "lamp"}
    assert flip.add == (("lit", "?l"), ("up", "master"))
    assert flip.delete == (("up", "?s"),)
    assert problem.domain.supertypes["lamp"] == {"lamp", "thing", "object"}
    assert problem.domain.schemas["wake"].precondition == ()


def test_our_own_domains_are_read():
    assert [len(domain(kind).schemas) for kind in KINDS] == [3, 4, 12, 13]


def test_what_is_deleted_and_added_stays_true():
    problem = lamps()
    actions = {(a.name, *a.arguments): a for a in ground(problem)}
    state = actions["wake", "bob"].apply(problem.init)
    assert ("up", "master") in actions["flip", "master", "l1"].apply(state)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("(and (lit ?l)", "((and (lit ?l)", r"d.pddl:1: this '\(' is never closed"),
        ("(awake)))\n", "(awake))))\n", r"d.pddl:10: this '\)' closes nothing"),
        (":typing", ":adl", r"d.pddl:2: :adl is not supported"),
        ("(lit ?l - lamp)", "(lit ?l - lamb)", r"d.pddl:5: unknown type lamb"),
        ("(wired ?s ?l) (up", "(or (wired ?s ?l)) (up", r"d.pddl:8: unknown predicate or"),
        ("(not (up ?s))", "(not (up ?x))", r"d.pddl:9: \?x is not declared"),
        ("(not (up ?s))", "(not (up ?l))", r"d.pddl:9: \?l is a lamp, up needs a switch"),
        ("(not (up ?s))", "(not (up ?s ?l))", r"d.pddl:9: up takes 1 arguments, not 2"),
        (":parameters (?p - person)", ":parameters", r"d.pddl:10: expected a value"),
        ("(:action wake", "(:action flip", r"d.pddl:10: a second action flip"),
        ("(:action wake", "(:functions (cost)) (:action wake", r"d.pddl:10: :functions is not"),
        (":effect (awake)", ":cost (awake)", r"d.pddl:10: :cost is not understood"),
        ("(domain lamps)", "(problem lamps)", r"d.pddl:1: expected \(define \(domain NAME\)"),
        ("(?s - switch ?l", "(?s - switch ?s", r"d.pddl:7: \?s is declared twice"),
        ("Master - switch", "Master -", r"d.pddl:4: a type is missing"),
    ],
)
def test_a_broken_domain_is_named_with_its_line(old, new, message):
    assert old in DOMAIN
    with pytest.raises(UserError, match=f"^{message}") as error:
        parse_domain(DOMAIN.replace(old, new, 1), "d.pddl")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("(:domain lamps)", "(:domain lamp)", r"p.pddl:2: is for the domain lamp, not lamps"),
        ("(up Master)", "(up s3)", r"p.pddl:5: s3 is not declared"),
        ("(up Master)", "up", r"p.pddl:5: expected '\(' and a name"),
        ("(up Master)", "(up (Master))", r"p.pddl:5: expected a name, found '\('"),
        ("(:goal (lit l1))", "", r"p.pddl:1: no \(:goal"),
        ("(:goal (lit l1))", "(:goal (and))", r"p.pddl:1: no \(:goal"),
        ("(lit l1))", "(lit l1) (up s1))", r"p.pddl:6: a goal of several parts"),
        ("(lit l1))", "(not (lit l1)))", r"p.pddl:6: unknown predicate not"),
        ("(:goal (lit", "(:goal (lit l1)) (:goal (lit", r"p.pddl:6: a second :goal"),
        (PROBLEM, "", r"p.pddl:1: expected one \(define"),
        (PROBLEM, "()", r"p.pddl:1: expected \(define"),
    ],
)
def test_a_broken_problem_is_named_with_its_line(old, new, message):
    assert old in PROBLEM
    with pytest.raises(UserError, match=f"^{message}"):
        parse_problem(PROBLEM.replace(old, new, 1), "p.pddl", parse_domain(DOMAIN, "d.pddl"))


WORDS = st.sampled_from([*"()()();-\n", *DOMAIN.replace("(", " ").replace(")", " ").split()])


@settings(deadline=None)
@given(st.lists(WORDS, max_size=60), st.integers(0, len(DOMAIN)), st.integers(0, 30))
def test_whatever_a_file_holds_it_is_read_or_refused_in_one_line(words, start, length):
    damaged = DOMAIN[:start] + " ".join(words) + DOMAIN[start + length :]
    for text in (" ".join(words), f"(define (domain d) {' '.join(words)})", damaged):
        try:
            parse_domain(text, "d.pddl")
        except UserError as error:
            assert str(error).startswith("d.pddl:")  # noqa: PT017
            assert "\n" not in str(error)  # noqa: PT017


def brute_force_ground(problem: Problem) -> set[tuple[str, ...]]:
    """Every way to put different objects of the right types, kept when it can be reached."""
    supertypes = problem.domain.supertypes
    candidates = []
    for schema in problem.domain.schemas.values():
        choices = [
            [name for name, own in problem.objects.items() if wanted in supertypes[own]]
            for wanted in schema.parameters.values()
        ]
        for names in itertools.product(*choices):
            if len(set(names)) == len(names):
                binding = dict(zip(schema.parameters, names, strict=True))
                made = [
                    {(atom[0], *(binding.get(v, v) for v in atom[1:])) for atom in atoms}
                    for atoms in (schema.precondition, schema.add)
                ]
                candidates.append(((schema.name, *names), *made))
    reached, found = set(problem.init), set()
    while True:
        new = [c for c in candidates if c[0] not in found and c[1] <= reached]
        if not new:
            return found
        for name, _, add in new:
            found.add(name)
            reached |= add


def test_ground_actions_equal_brute_force():
    for problem in [lamps(), *itertools.islice(small_problems(), 0, None, 3)]:
        actions = ground(problem)
        names = [(a.name, *a.arguments) for a in actions]
        assert len(set(names)) == len(names)
        assert names == sorted(names)
        assert set(names) == brute_force_ground(problem)


def breadth_first_length(problem: Problem, actions: tuple[Action, ...]) -> int | None:
    level, seen = {problem.init}, {problem.init}
    for length in itertools.count():
        if any(state.issuperset(problem.goal) for state in level):
            return length
        level = {
            a.apply(state) for state in level for a in actions if a.precondition <= state
        } - seen
        seen |= level
        if not level or len(seen) > 3000:
            return None
    return None


def run(problem, plan):
    state = problem.init
    for action in plan:
        assert action.precondition <= state
        state = action.apply(state)
    return state


def test_plans_are_valid_and_nearly_shortest():
    lengths = []
    for problem in small_problems():
        actions = ground(problem)
        plan = find_plan(problem, actions, max_length=60)
        assert plan is not None
        assert run(problem, plan).issuperset(problem.goal)
        assert plan == find_plan(problem, actions, max_length=60)
        shortest = breadth_first_length(problem, actions)
        if shortest is not None:
            lengths.append((len(plan), shortest))
    assert len(lengths) >= 30
    assert all(shortest <= length <= shortest + 2 for length, shortest in lengths)
    assert sum(length for length, _ in lengths) <= 1.05 * sum(least for _, least in lengths)


def test_no_plan_where_none_is_short_enough_or_exists():
    problem = next(small_problems())
    actions = ground(problem)
    plan = find_plan(problem, actions, max_length=60)
    assert find_plan(problem, actions, max_length=len(plan)) == plan
    assert (
        find_plan(problem, actions, max_length=breadth_first_length(problem, actions) - 1) is None
    )
    nobody = parse_problem(
        PROBLEM.replace(" bob - person", ""), "p.pddl", parse_domain(DOMAIN, "d.pddl")
    )
    assert ground(nobody) == ()
    assert find_plan(nobody, ground(nobody), max_length=60) is None


def test_few_states_end_the_search():
    problem = draw("barman", "oracle/barman/large/3")
    assert find_plan(problem, ground(problem), max_length=60, max_states=2) is None


def test_useless_actions_are_left_out():
    problem = next(p for p in small_problems() if p.domain.name == "blocksworld-4ops")
    actions = {(a.name, *a.arguments): a for a in ground(problem)}
    plan = find_plan(problem, list(actions.values()), max_length=60)
    first = plan[0]
    undone = ("putdown" if first.name == "pickup" else "stack", *first.arguments)
    detour = [first, actions[undone], *plan]
    assert run(problem, detour).issuperset(problem.goal)
    assert without_useless(problem, detour) == plan
