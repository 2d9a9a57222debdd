"""Texts of the PDDL worlds: the sentences of AgentBoard, and a prompt of our own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from agentrm_jax.core.protocols import Prompt
from agentrm_jax.envs.pddl.strips import Atom

# AgentBoard's sentences, its oddities included: some end in a space, "used" speaks of pouring, and
# "holding" names the hand. What is not listed is shown as the bare words.
_SENTENCES = {
    # blockworld
    "on": "{} is on {}.",
    "clear": "The {} is clear.",
    "arm-empty": "Your arm is empty.",
    "holding": "You are holding {}. ",
    "on-table": "{} is on the table.",
    "pickup": "Pickup {}.",
    "putdown": "Putdown {}.",
    "stack": "Stack {} on {}.",
    "unstack": "Unstack {} from {}.",
    # gripper
    "ball": "{} is a ball. ",
    "gripper": "{} is a gripper. ",
    "at-robby": "Robby is at {}. ",
    "at": "{} is at {}. ",
    "free": "{} is free. ",
    "carry": "{} is carrying {}. ",
    "move": "Move from {} to {}. ",
    "pick": "Pick up {} at {} with arm {}. ",
    # tyreworld
    "isopen": "{} is open.",
    "closed": "{} is closed.",
    "unlocked": "{} is unlocked.",
    "have": "You have {}.",
    "in": "{} is in {}.",
    "loose": "The nut {} on the hub {} is loose.",
    "tight": "The nut {} on the hub {} is tight.",
    "on-ground": "Hub {} is on the ground.",
    "not-on-ground": "Hub {} is not on the ground.",
    "inflated": "Wheel {} is inflated.",
    "not-inflated": "Wheel {} is not inflated.",
    "fastened": "Hub {} is fastened.",
    "unfastened": "Hub {} is unfastened.",
    "intact": "Wheel {} is intact.",
    "open": "Open {}.",
    "close": "Close {}.",
    "fetch": "Fetch {} from {}.",
    "put-away": "Put-away {} in {}.",
    "loosen": "Loosen the nut {} on the hub {}.",
    "tighten": "Tighten the nut {} on the hub {}.",
    "jack-up": "jack-up the hub {}.",
    "jack-down": "Jack-down the hub {}.",
    "undo": "Undo the fastening of the nut {} on the hub {}.",
    "do-up": "Do-up the nut {} on the hub {}.",
    "remove-wheel": "Remove-wheel {} from the hub {}.",
    "put-on-wheel": "put-on-wheel {} on the hub {}.",
    "inflate": "Inflate the wheel {}.",
    # barman
    "ontable": "{} is on the table. ",
    "empty": "{} is empty. ",
    "contains": "{} contains {}. ",
    "clean": "{} is clean. ",
    "used": "Pour {} from a shot glass to a used shaker {}",
    "dispenses": "{} dispenses {}. ",
    "shaker-empty-level": "{} is at empty level {}. ",
    "shaker-level": "{} is at level {}. ",
    "next": "level {} is next to level {}. ",
    "unshaked": "{} is unshaked. ",
    "shaked": "{} is shaked. ",
    "cocktail-part1": "{} part1 ingredient is {}. ",
    "cocktail-part2": "{} part2 ingredient is {}. ",
    "grasp": "{} grasp {}. ",
    "leave": "{} leave {}. ",
    "fill-shot": "fill-shot glass {} with {} with {} and {} holding {}. ",
    "refill-shot": "refill-shot {} with {} with {} and {} holding {}. ",
    "empty-shot": "use hand {} to empty-shot glass {} with beverage {}. ",
    "clean-shot": "clean-shot glass {} with {} with hand {} holding shot glass and {}. ",
    "pour-shot-to-clean-shaker": "pour-shot-to-clean-shaker from a shot glass {} with {} to a "
    "clean shaker {} with hand {} from level {} to level {}",
    "pour-shot-to-used-shaker": "pour-shot-to-used-shaker from a shot glass {} with {} to a "
    "used shaker {} with hand {} from level {} to level {}",
    "empty-shaker": "use hand {} to empty-shaker {} with ingredient {} from level {} to level {}.",
    "clean-shaker": "use hand {} and hand {} to clean-shaker {}",
    "shake": "shake a cocktail {} with ingredient {} and ingredient {} in a shaker {} with hand {} "
    "and hand {}",
    "pour-shaker-to-shot": "pour-shaker-to-shot to a shot glass {} the ingredient {} with hand {} "
    "from shaker {} from level {} to level {}",
}

# Answers of AgentBoard.
NOT_UNDERSTOOD = (
    "The action is not valid and therefore takes no effect. Please check valid actions."
)
NOT_POSSIBLE = (
    "The action is not valid and therefore takes no effect. Please remember to satisfy the "
    "restriction of actions. You can also check valid actions."
)
SATISFIED = " The goal is satisfied."

CHANGES_ONLY = frozenset({"barman", "tyreworld"})
"""The kinds that show, after an action, only what became true."""

_WORD = re.compile(r"[\w-]+")


def sentence(words: Sequence[str]) -> str:
    """An atom, or an action's name and objects, as a sentence."""
    form = _SENTENCES.get(words[0])
    return " ".join(words) if form is None else form.format(*words[1:])


def goal_text(goal: Iterable[Atom]) -> str:
    """The goal as AgentBoard's label file has it."""
    conditions = " ".join(sorted(sentence(atom) for atom in goal)).replace("  ", " ")
    return f"The goal is to satisfy the following conditions: {conditions}"


def state_text(atoms: Iterable[Atom]) -> str:
    """A state, or what became true: sorted sentences."""
    return " ".join(sorted(sentence(atom).capitalize() for atom in atoms))


def actions_text(kind: str, actions: Iterable[Sequence[str]]) -> str:
    """The answer to "check valid actions"."""
    always = ["check valid actions"] + ["look around"] * (kind in CHANGES_ONLY)
    return "Valid actions are: " + ", ".join([*sorted(map(sentence, actions)), *always])


def words_of(action: str) -> list[str]:
    """The words of what an agent says; anything but letters, digits, `_` and `-` parts them."""
    return _WORD.findall(action.lower())


def action_key(action: str) -> str:
    """Returns the normal form of what an agent says: one of two questions, or the words."""
    said = action.lower()
    if "check" in said:
        return "[check valid actions]"
    if "look around" in said:
        return "[look around]"  # without brackets two blanks would make it three words
    return " ".join(words_of(action))


def _described(*descriptions: tuple[str, str]) -> str:
    """One line for each action: its sentence with `<roles>` for objects, and what it needs."""
    forms = [(sentence(words.split()).strip(" ."), what) for words, what in descriptions]
    return "\n".join(f"{form}: {what}" if what else form for form, what in forms)


_INSTRUCTION = f"""\
You act in a small world until all conditions of a goal are true. There are four kinds of worlds; \
the goal and the objects show in which one you are. Say one action in each turn, in the words \
given here, with names of objects for what is in brackets. After a colon it says when it is \
possible.

Robby, a robot with grippers, carries balls between rooms. Each gripper holds one ball.
{
    _described(
        ("move <room> <room>", "Robby is in the first room."),
        ("pick <ball> <room> <gripper>", "both are there, the gripper is free."),
        ("drop <ball> <room> <gripper>", "Robby is there and carries it with that gripper."),
    )
}

An arm builds towers of blocks. It holds one block at a time, and only a block with nothing on it \
is clear.
{
    _described(
        ("pickup <block>", "it is clear and on the table, the arm empty."),
        ("putdown <block>", "from the arm onto the table."),
        ("stack <block> <other>", "from the arm onto a block that is clear."),
        ("unstack <block> <other>", "it is clear, the arm empty."),
    )
}

A barman with two hands pours drinks into shots. A cocktail has two ingredients, which are shaken \
in a shaker. Where two hands are named, the first holds the glass or shaker and the second is empty.
{
    _described(
        ("grasp <hand> <container>", "the hand is empty, the container on the table."),
        ("leave <hand> <container>", "puts it on the table."),
        (
            "fill-shot <shot> <ingredient> <hand> <other> <dispenser>",
            "the shot is empty and clean.",
        ),
        (
            "refill-shot <shot> <ingredient> <hand> <other> <dispenser>",
            "the shot is empty and was used for the same.",
        ),
        ("empty-shot <hand> <shot> <beverage>", "it stays used."),
        ("clean-shot <shot> <beverage> <hand> <other>", "the shot is empty and was used for it."),
        (
            "pour-shot-to-clean-shaker <shot> <ingredient> <shaker> <hand> <level> <next>",
            "the first ingredient; the hand holds the shot.",
        ),
        (
            "pour-shot-to-used-shaker <shot> <ingredient> <shaker> <hand> <level> <next>",
            "the second ingredient.",
        ),
        (
            "shake <cocktail> <ingredient> <ingredient> <shaker> <hand> <other>",
            "both are in the shaker.",
        ),
        (
            "pour-shaker-to-shot <cocktail> <shot> <hand> <shaker> <level> <lower>",
            "the hand holds the shaker; the shot is empty and clean.",
        ),
        ("empty-shaker <hand> <shaker> <cocktail> <level> <empty-level>", "it has been shaken."),
        ("clean-shaker <hand> <other> <shaker>", "the shaker is empty."),
    )
}

Wheels are changed with tools out of a boot. Nuts are loosened and tightened while the hub is on \
the ground, undone and done up while it is jacked up. You need the wrench for the nuts, the jack \
to jack up, the pump to inflate.
{
    _described(
        ("open <container>", ""),
        ("close <container>", ""),
        ("fetch <thing> <container>", "it is open."),
        ("put-away <thing> <container>", "it is open."),
        ("loosen <nut> <hub>", ""),
        ("tighten <nut> <hub>", ""),
        ("jack-up <hub>", "the jack then stays under it."),
        ("jack-down <hub>", ""),
        ("undo <nut> <hub>", "the nut is loose."),
        ("do-up <nut> <hub>", "you have the nut; it is loose then."),
        ("remove-wheel <wheel> <hub>", "the hub is unfastened."),
        ("put-on-wheel <wheel> <hub>", "the hub is unfastened and free."),
        ("inflate <wheel>", "it is intact."),
    )
}

In all worlds you can ask:
check valid actions
look around
Reply in this format:
Thought: <what you think>
Action: <one action>"""

PROMPT = Prompt(
    instruction="\n".join(line.rstrip() for line in _INSTRUCTION.splitlines()),
    example=(
        "The goal is to satisfy the following conditions: b1 is on b2.\n"
        "B1 is on the table. B2 is on b1. The b2 is clear. Your arm is empty.",
        "Thought: b1 has to be on b2, and b2 is on b1. I take b2 off b1.\n"
        "Action: Unstack b2 from b1.",
        "B1 is on the table. The b1 is clear. You are holding b2. ",
        "Thought: I put b2 on the table so that b1 can go on it.\nAction: Putdown b2.",
        "B1 is on the table. B2 is on the table. The b1 is clear. The b2 is clear. Your arm is "
        "empty.",
        "Thought: Now I can take b1.\nAction: Pickup b1.",
        "B2 is on the table. The b2 is clear. You are holding b1. ",
        "Thought: b2 is clear, so I put b1 on b2, as the goal says.\nAction: Stack b1 on b2.",
        "B1 is on b2. B2 is on the table. The b1 is clear. Your arm is empty. The goal is "
        "satisfied.",
    ),
)
