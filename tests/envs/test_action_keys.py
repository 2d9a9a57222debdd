"""Equal keys promise equal transitions: tried on every environment that can be played here."""

import random
import sys

import pytest

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import ComparesActions
from agentrm_jax.envs import registry
from agentrm_jax.envs.pool import EnvPool
from agentrm_jax.envs.registry import action_key, environment_names, load_family

_BLANKS = (" ", "  ", "\t", "\n", "\u00a0", "\u3000", "\r")


def varied(action: str, rng: random.Random) -> str:
    """The action with other letter case, other blanks, or blanks around it."""
    match rng.randrange(6):
        case 0:
            return action.upper()
        case 1:
            return action.capitalize()
        case 2:
            return rng.choice(_BLANKS) + action + rng.choice(_BLANKS)
        case 3:
            return "".join(rng.choice(_BLANKS) if c == " " else c for c in action)
        case 4:
            return action.replace(" ", "").replace("[", "[ ") + rng.choice((".", "", "]"))
        case _:
            return "".join(rng.choice((c.upper(), c.lower(), c)) for c in action)


@pytest.mark.parametrize("name", environment_names())
def test_actions_with_equal_keys_get_equal_transitions(name):
    family = load_family(name)
    assert isinstance(family, ComparesActions)
    if family.missing():
        pytest.skip(f"{name} is not complete here")
    rng = random.Random(name)
    merged = 0
    count = 1 if family.pooled else 3  # a step of those takes a thousand times as long
    for split in ("test", "train")[: 1 if family.pooled else 2]:
        for task in family.tasks(split, kinds=family.kinds(), n=count):
            plan = family.demonstrate(task) or []
            actions = [turn.action for turn in plan] or [
                "check_valid_actions with Action Input: {}"
            ]
            environment = family.create()
            environment.reset(task)
            for action in actions[: 2 if family.pooled else rng.randint(1, 6)]:
                forms = [action, *(varied(rng.choice(actions), rng) for _ in range(4))]
                forms += [varied(form, rng) for form in forms]
                answers = {}
                for form in forms:
                    answer = environment.fork().step(form)
                    merged += family.action_key(form) in answers
                    assert answers.setdefault(family.action_key(form), answer) == answer, form
                if environment.step(action).done:
                    break
    assert merged > 0


@pytest.mark.parametrize(
    ("name", "same", "other"),
    [
        ("maze", ("move up", " Move  UP\n"), "move_up"),
        ("babyai", ("pick up red ball 1", "PickUp red  ball 1"), "pick red ball 1"),
        ("pddl", ("Pickup b1.", "pickup b1"), "pickup b2"),
        ("pddl", ("check valid actions", "I check"), "look around"),
        ("pddl", ("look around", "Look around!"), "look  around"),
        ("alfworld", ("put mug 1 in shelf 1", "Put mug 1  in/on shelf 1."), "put mug 1 shelf 1"),
        ("scienceworld", ("Open door", "open  door "), "open doors"),
        ("scienceworld", ("wait", "WAIT\x01"), "wait\u00a0"),
        ("jericho", ("Take lamp. go north", "take lamp"), "take lamps"),
        ("jericho", ("check valid actions", "CHECK the actions"), "check"),
        ("webshop", ("click[Buy Now]", "click[buy now]"), "Click[buy now]"),
        ("webshop", ("search[red  shoes]", "search[Red shoes]"), "Search[red shoes]"),
        ("webshop", ("search[]", " search[]"), "search[ ]"),
        ("webshop", ("click[a b]", "click[A b]"), "click[a  b]"),
        ("toolquery", ('f with Action Input: {"a": 1}', "f  with Action Input: {'a':1}"),
         "F with Action Input: {'a':1}"),
        ("tooloperation", ("f with Action Input: nothing ", "f with Action Input: nothing"),
         "f with Action Input: None"),
        ("tooloperation", ("f with Action Input: 1e999", "f with Action Input: 1e400"),
         "f with Action Input: inf"),
    ],
)  # fmt: skip
def test_keys_fold_what_the_environment_folds_and_nothing_else(name, same, other):
    first, second = same
    assert action_key(name, first) == action_key(name, second) != action_key(name, other)


def test_a_wording_compares_what_is_understood():
    name = next(
        f"alfworld@{wording}" for wording in getattr(load_family("alfworld"), "wordings", {})
    )
    family = load_family(name)
    assert isinstance(family, ComparesActions)
    assert family.action_key("Go  to shelf 1") == family.action_key("go to shelf 1")


class _Family:
    name = "mine"

    def __init__(self, key=None):
        if key is not None:
            self.action_key = key


class _EqualToAll(str):
    __hash__ = None

    def __eq__(self, other):
        return True


@pytest.mark.parametrize(
    "family",
    [
        _Family(),
        _Family(lambda action: 1 / 0),
        _Family(lambda action: sys.exit(3)),
        _Family(lambda action: None),
    ],
    ids=["no method", "raises", "exits", "returns no text"],
)
def test_without_a_usable_key_only_blanks_at_the_ends_are_ignored(monkeypatch, family):
    monkeypatch.setattr(registry, "load_family", lambda name: family)
    assert action_key("mine", " Go  north\n") == "Go  north"


def test_a_key_is_compared_by_its_characters(monkeypatch):
    monkeypatch.setattr(registry, "load_family", lambda name: _Family(_EqualToAll))
    assert type(action_key("mine", "go")) is str
    assert action_key("mine", "go") == "go" != action_key("mine", "stay")


def test_an_unknown_environment_compares_exactly(monkeypatch):
    def unknown(name):
        raise UserError("not registered")

    monkeypatch.setattr(registry, "load_family", unknown)
    assert action_key("mine", " Go ") == "Go"


def test_the_pool_asks_the_family_of_the_task():
    pool = EnvPool(workers=0)
    task = load_family("maze").tasks("test", kinds=("generated",), n=1)[0]
    assert pool.action_key(task, "Move  Up ") == "move up"
