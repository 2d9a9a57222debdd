"""Commands to a game, and its answers as the agent reads them."""

from __future__ import annotations

import re

from agentrm_jax.core.protocols import Prompt

REFUSED = "That is a command to the machine and not to the game; it cannot be used here."
_MOST_WORDS = 20  # AgentBoard's own
_MOST_CHARACTERS = 190  # the emulator's buffer holds 200
# They would write or read files, undo what another episode did, or end the emulator.
_OF_THE_MACHINE = frozenset({
    "save", "restore", "restart", "quit", "q", "undo", "script", "unscript", "noscript",
    "transcript", "recording", "replay", "record", "unrecord",
})  # fmt: skip
# Debugging aids that some games were published with: they would fetch things from anywhere.
_OF_DEBUGGING = frozenset({
    "abstract", "actions", "changes", "daemons", "die", "gonear", "goto", "messages", "purloin",
    "random", "routines", "scope", "showobj", "showverb", "timers", "trace", "tree",
})  # fmt: skip
_OOPS = ("oops", "o")  # puts another word into the last command
_FOREIGN = re.compile(r"[^A-Za-z0-9 .,'\"?!:;()&/-]")
_BANNER = re.compile(r"release \d+.*serial number", re.IGNORECASE | re.DOTALL)
_PRESS_SPACE = re.compile(r"\[please press space[^]]*\]", re.IGNORECASE)
_UNKNOWN = re.compile(
    r"\[!|not a verb i recogni[sz]e|don't know the word|doesn't know the word"
    r"|i beg your pardon|didn't understand that sentence|only understood you as far as"
    r"|in a way that i don't understand|sentence isn't one i recogni[sz]e"
    r"|doesn't recogni[sz]e the word|there was no verb in that sentence"
    r"|noun missing in that sentence|can't see any such thing|can't see any .* here",
    re.IGNORECASE,
)


def command(action: str) -> str:
    """The one command that is given for an action: up to the first comma or full stop.

    Like AgentBoard, at most 20 words. Characters that no command needs are left out, above all
    the backslash, which speaks to the emulator.
    """
    first = re.split(r"[.,]", " ".join(_FOREIGN.sub(" ", action).split()))[0]
    return " ".join(first.split()[:_MOST_WORDS])[:_MOST_CHARACTERS]


def action_key(action: str) -> str:
    """Returns an action as a game reads it: its first command in lower case, as every story file
    since version 5 gets it, or the question for possible actions."""
    return "check valid actions" if asks_for_actions(action) else command(action).lower()


def asks_for_actions(action: str) -> bool:
    said = action.lower()
    return "check" in said and "action" in said


def is_refused(said: str, meta_words: frozenset[str], word_length: int) -> bool:
    """Whether a command is not one to the game.

    Args:
      said: The command.
      meta_words: What the game's dictionary calls commands about the game.
      word_length: How many letters of a word the game reads.
    """
    refused = {word[:word_length] for word in _OF_THE_MACHINE}
    refused |= {word[:word_length] for word in _OF_DEBUGGING} & meta_words
    for part in re.split(r"\bthen\b|[^a-z0-9' -]", said.lower()):
        words = [word[:word_length] for word in part.split()]
        if words and (words[0] in refused or (words[0] in _OOPS and refused & set(words))):
            return True
    return False


def was_understood(text: str) -> bool:
    """Whether the game took the command for one that it knows, on things that are there."""
    return _UNKNOWN.search(text) is None


def clean(text: str) -> str:
    """One line, without the remark that the score changed, as in AgentBoard."""
    text = re.sub(r" {2,}", " ", text.replace("\n", " "))
    return re.sub(r"\[Your score .*?\]", "", text).strip()


def opening(text: str) -> str:
    """A game's first text without title, author, copyright and release."""
    text = _PRESS_SPACE.sub("", re.sub(r"-----.*?-----", "", text, flags=re.DOTALL))
    paragraphs = re.split(r"\n\s*\n", text)
    return clean("\n".join(p for p in paragraphs if not _BANNER.search(p)))


PROMPT = Prompt(
    instruction="""\
You play a text adventure and have to reach the given goal. You read what happens and answer with \
one short command in each turn. Commands that most games know:
look: describes the place where you are.
inventory: lists what you carry.
examine <thing>
take <thing>
drop <thing>
put <thing> in <thing>
open <thing>
north, south, east, west, up, down, in, out: you go there.
check valid actions: lists commands that do something now. It takes a turn.
Games know many more verbs; try what the text suggests. Use one command in a turn.
Reply in this format:
Thought: <what you think>
Action: <one command>""",
    example=(
        "Goal: The lighthouse is dark. Light its lamp before the ship arrives.\n"
        "Shore You stand on a pebbled shore. The lighthouse rises to the north. A rowing boat lies "
        "on the beach.",
        "Thought: The boat may hold something useful. I look at it first.\nAction: examine boat",
        "Under its bench there is a box of matches.",
        "Thought: With matches I can light a lamp.\nAction: take matches",
        "Taken.",
        "Thought: Now I go to the lighthouse in the north.\nAction: north",
        "Foot of the Tower An iron staircase winds up into the dark.",
        "Thought: The lamp of a lighthouse is at its top.\nAction: up",
        "Lamp Room A great oil lamp stands here, cold and dark. Far out, a ship comes closer.",
        "Thought: I am not sure which words the game knows for this, so I ask.\n"
        "Action: check valid actions",
        "You can take the following actions: down, drop matches, light lamp, check valid actions",
        "Thought: That is what I came for.\nAction: light lamp",
    ),
)
