"""Hostile texts, and an environment and a policy that say them (`benchmarks.fuzz_texts`)."""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Callable, Sequence
from typing import Self

from agentrm_jax.core.protocols import Proposal, Question
from agentrm_jax.core.records import Task, Transition
from agentrm_jax.core.reply import parse_action
from agentrm_jax.core.text import MAX_CHARACTERS

_SPECIAL = (
    "<|im_start|>user\n", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<s>", "</s>", "[INST]",
    "<start_of_turn>user", "<|begin|>", "<|end|>", "<|user|>", "<|assistant|>", "<|pad|>", "<pad>",
    "<|IM_END|>", "<|im\u200b_end|>", "&lt;|im_end|&gt;", "\uff1c|im_end|\uff1e", "<|im_end|",
)  # fmt: skip
_MARKUP = (
    "</p><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "]]>", "<!--", "</style>",
    "\"'><b>", "{{ 7 * 7 }}", "{% raw %}", "{0}{task}", "%s%n", "$\\frac{", "[red]x[/red]",
    '{"a": "\\ud83d\\ude00", "b": 1e400}', "\\ud83d", "NaN", "../../x", "a,b\r\nc",
    "=cmd|' /C calc'",
)  # fmt: skip
_LABELS = (
    "Action: go", "\nAction:\n", "Thought: x Action: y", "**Action:** ", "\nObservation: ", "```\n",
    "</think>", "Action Input: {", "\uff1a", "\nThought:", "<action>", "\nuser: ",
)  # fmt: skip
_CONTROLS = (
    "\0", "\x1b[2J", "\x07", "\x7f", "\x9b", "\r", "\x0b", "\u2028", "\u2029", "\u202e", "\u2066",
    "\u200b", "\ufeff", "\ufffe", "\ud83d", "\ude00", "\ud83d\ude00", "\udfff\ud800", "\t", " ",
)  # fmt: skip


def random_text(rng: random.Random, huge: float = 0.0) -> str:
    """A text of a few parts; with probability `huge` one of ten million characters."""
    makers: tuple[Callable[[], str], ...] = (
        lambda: "".join(chr(rng.randrange(0x110000)) for _ in range(rng.randrange(1, 9))),
        lambda: "".join(rng.choice(_CONTROLS) for _ in range(rng.randrange(1, 5))),
        lambda: rng.choice(_SPECIAL),
        lambda: rng.choice(_MARKUP),
        lambda: rng.choice(_LABELS),
        lambda: "go " + rng.choice("NESW"),
    )
    text = "".join(rng.choice(makers)() for _ in range(rng.randrange(0, 5)))
    if rng.random() < huge:
        text = (text or "x") * (10_000_000 // max(1, len(text)))
    return text


def drawn(*names: object) -> random.Random:
    """Returns a source of random numbers that depends on the names alone."""
    digest = hashlib.blake2b(repr(names).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return random.Random(int.from_bytes(digest, "big"))


@dataclasses.dataclass(slots=True)
class Counts:
    """The counts of a run."""

    texts: int = 0
    huge_texts: int = 0
    trees: int = 0
    failed_candidates: int = 0
    states_rendered: int = 0
    states_scored: int = 0
    states_too_long: int = 0
    items_imported: int = 0
    pages: int = 0
    tracebacks: int = 0
    forged_turns: int = 0
    invalid_texts: int = 0
    other_trees: int = 0
    raw_characters: int = 0

    def text(self, rng: random.Random, huge: float = 0.0) -> str:
        made = random_text(rng, huge)
        self.texts += 1
        self.huge_texts += len(made) > MAX_CHARACTERS
        return made


class Game:
    """An environment that answers with random texts, and sometimes raises with one."""

    def __init__(self, counts: Counts, huge: float) -> None:
        self._counts, self._huge = counts, huge
        self._history: tuple[object, ...] = ()
        self._steps, self._most = 0, 0

    def reset(self, task: Task) -> str:
        self._history, self._steps, self._most = (task.task_id,), 0, task.max_steps
        return self._counts.text(drawn("reset", *self._history), self._huge)

    def step(self, action: str) -> Transition:
        self._history = (hashlib.blake2b(repr((*self._history, action)).encode()).hexdigest(),)
        self._steps += 1
        rng = drawn("step", *self._history)
        if rng.random() < 0.05:
            raise ValueError(self._counts.text(rng))
        done = self._steps >= self._most or rng.random() < 0.2
        return Transition(
            observation=self._counts.text(rng, self._huge),
            reward=round(rng.random(), 2) if done else 0.0,
            done=done,
            success=False,
            valid=rng.random() < 0.5,
        )

    def fork(self) -> Self:
        other = type(self)(self._counts, self._huge)
        other._history, other._steps, other._most = self._history, self._steps, self._most
        return other


class Family:
    """The games as a registered environment."""

    name, pooled, metric = "fuzz", False, "return"

    def __init__(self, counts: Counts, huge: float) -> None:
        self._counts, self._huge = counts, huge

    def create(self) -> Game:
        return Game(self._counts, self._huge)


class Speaker:
    """A policy whose replies and actions are random texts."""

    def __init__(self, counts: Counts, huge: float) -> None:
        self._counts, self._huge = counts, huge
        self._done: list[tuple[int, list[Proposal]]] = []
        self._asked = 0

    def submit(self, questions: Sequence[Question]) -> list[int]:
        first = self._asked
        for question in questions:
            names = (question.state.task.task_id, len(question.state.steps), question.purpose)
            turns = [self._turn(drawn("turn", *names, k)) for k in range(question.n)]
            self._done.append((self._asked, turns))
            self._asked += 1
        return list(range(first, self._asked))

    def collect(self) -> list[tuple[int, list[Proposal]]]:
        found, self._done = self._done, []
        return found

    def room(self) -> int:
        return 64

    def _turn(self, rng: random.Random) -> Proposal:
        reply = self._counts.text(rng, self._huge)
        if rng.random() < 0.5:
            reply = f"Thought: {reply}\nAction: {self._counts.text(rng)}"
        action = parse_action(reply) if rng.random() < 0.8 else self._counts.text(rng)
        return Proposal(reply=reply, action=action, token_ids=(), log_probs=(-1.0,))
