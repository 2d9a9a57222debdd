"""A language model as a judge by the probabilities of its answers (arXiv 2607.05391).

A question about two attempts has one letter as its answer. The score of the pair is the expectation
over the probabilities of the letters: a continuous number, so that equal scores are rare. Nothing
is decoded, and nothing is trained.
"""

from __future__ import annotations

import dataclasses
import itertools
import string
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.records import Trajectory
from agentrm_jax.data.chat import ChatTokenizer, opening_tokens, reply_tokens
from agentrm_jax.engine.config import EngineConfig
from agentrm_jax.engine.engine import Engine
from agentrm_jax.engine.front import score
from agentrm_jax.engine.programs.compiled import own_parameters
from agentrm_jax.engine.request import TokenSequence
from agentrm_jax.model import llama
from agentrm_jax.model.config import LlamaConfig
from agentrm_jax.model.eight_bits import take_rows
from agentrm_jax.model.parameters import Params
from agentrm_jax.reward.judge import JudgeConfig, pair_texts

_QUESTION = """\
Two attempts were made at one task. Decide which attempt got further in doing what the task asks \
for. An attempt that reached the goal beats one that did not; of equals, the one that wasted fewer \
steps is better.

Task:
{task}

Attempt 1:
{first}

Attempt 2:
{second}

Which attempt is better? Answer with one letter from A to {last}: A if attempt 1 is surely better, \
{last} if attempt 2 is surely better."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Games:
    """The comparisons of a group.

    Attributes:
      pivots: Indices of the attempts that all are compared with.
      questions: By the indices of attempt 1 and attempt 2, both orders of each pair.
    """

    pivots: Sequence[int]
    questions: Mapping[tuple[int, int], TokenSequence]


class LogProbJudge:
    """Scores an attempt by the mean probability with which it beats the pivots of its group.

    The pivots are the first `num_pivots` different attempts. An attempt is compared with each pivot
    in both orders, so that a preference for the first or the second place cancels; an attempt
    compared with itself counts 1/2, and all scores of a group are means over the same pivots. An
    attempt that is too long for half of a question loses its oldest steps; the question says so.

    Args:
      params: Parameters of a policy, layer by layer (`llama.unstacked`). They are not consumed.
      config: Their shape.
      tokenizer: Their tokenizer.
      sizes: The sizes of the engine that reads questions; `context` is their longest length.
      judge: `num_pivots` and `grades` are read.
      mesh: The devices over which the parameters are sharded, or None for one.

    Raises:
      UserError: Two answers begin with the same token. From `score`: a task leaves no room for
        attempts.
    """

    def __init__(
        self,
        params: Params,
        config: LlamaConfig,
        tokenizer: ChatTokenizer,
        sizes: EngineConfig,
        judge: JudgeConfig,
        mesh: Mesh | None = None,
    ) -> None:
        self._tokenizer, self._judge = tokenizer, judge
        answers = answer_tokens(tokenizer, judge.grades)
        params = own_parameters(params, sizes)
        output = params["embed" if config.tie_embeddings else "lm_head"]
        head = {
            "answers": take_rows(output, jnp.asarray(answers)),
            "values": jnp.linspace(1.0, 0.0, judge.grades, dtype=jnp.float32),
        }
        self._engine = Engine(params, config, sizes, readout=_expectation, head=head, mesh=mesh)

    @property
    def tokens_read(self) -> int:
        """Number of tokens that the model has read."""
        return self._engine.usage.read

    def score(self, groups: Sequence[Sequence[Trajectory]]) -> list[list[float]]:
        games = [self._games(group) for group in groups]
        asked = [question for each in games for question in each.questions.values()]
        expectations = iter(score(self._engine, asked))
        return [
            _tournament(
                len(group), each.pivots, {pair: next(expectations) for pair in each.questions}
            )
            for group, each in zip(groups, games, strict=True)
        ]

    def cost(self, group: Sequence[Trajectory]) -> int:
        read: dict[tuple[bytes, ...], int] = {}
        for question in self._games(group).questions.values():
            beginning: tuple[bytes, ...] = ()
            for segment in question.segments:
                beginning = (*beginning, segment.tobytes())
                read[beginning] = len(segment)
        return sum(read.values())

    def _games(self, group: Sequence[Trajectory]) -> _Games:
        """Returns the questions about the attempts at a task."""
        if len(group) < 2:
            return _Games(pivots=[0], questions={})
        task = next((t.first_observation for t in group if t.first_observation), "")
        limit = self._engine.sizes.context
        frame = len(self._tokens(task, "", ""))
        while True:
            texts = pair_texts(group, self._count, limit=limit, frame=frame)
            pivots = _pivots(texts, self._judge.num_pivots)
            pairs = {(i, p) for p in pivots for i in range(len(group)) if i != p}
            pairs |= {(p, i) for i, p in pairs}
            tokens = {(i, j): self._tokens(task, texts[i], texts[j]) for i, j in sorted(pairs)}
            excess = max(map(len, tokens.values())) - limit
            if excess <= 0:
                return _Games(pivots=pivots, questions=_with_common_beginnings(tokens))
            frame += excess  # the parts have fewer tokens than the whole

    def _count(self, text: str) -> int:
        return len(self._tokenizer.encode(text))

    def _tokens(self, task: str, first: str, second: str) -> list[int]:
        last = string.ascii_uppercase[self._judge.grades - 1]
        text = _QUESTION.format(task=task, first=first, second=second, last=last)
        return opening_tokens(self._tokenizer, None, text)


def answer_tokens(tokenizer: ChatTokenizer, grades: int) -> list[int]:
    """Returns the first token of each answer, A, B and so on, where a reply begins.

    Args:
      tokenizer: The judge's tokenizer.
      grades: Number of answers.

    Raises:
      UserError: Two answers begin with the same token.
    """
    tokens: dict[int, str] = {}
    for letter in string.ascii_uppercase[:grades]:
        token = reply_tokens(tokenizer, letter)[0]
        if token in tokens:
            raise UserError(
                f"must be choice because the answers {tokens[token]} and {letter} begin with the "
                "same token of the judge's tokenizer",
                field="judge.form",
            )
        tokens[token] = letter
    return list(tokens)


def _expectation(head: Mapping[str, Any], hidden: jax.Array) -> jax.Array:
    """The readout: expected value of the answer after hidden states [R, D], as [R] float32."""
    logits = llama.project(head["answers"], hidden[None], dtype=jnp.float32)[0]
    return jnp.sum(jax.nn.softmax(logits, axis=-1) * head["values"], axis=-1)


def _pivots(texts: Sequence[str], most: int) -> list[int]:
    """Returns the indices of the first `most` different attempts."""
    firsts: dict[str, int] = {}
    for i, text in enumerate(texts):
        firsts.setdefault(text, i)
    return list(firsts.values())[:most]


def _with_common_beginnings(
    tokens: Mapping[tuple[int, int], list[int]],
) -> dict[tuple[int, int], TokenSequence]:
    """Returns questions cut into segments, so that the engine reads common beginnings once.

    All questions of a group begin with its task, and many of them with the same first attempt.
    """
    task = _common_length(list(tokens.values()))
    by_first: dict[int, list[list[int]]] = {}
    for (first, _), own in tokens.items():
        by_first.setdefault(first, []).append(own)
    ends = {first: _common_length(own) for first, own in by_first.items()}
    questions = {}
    for pair, own in tokens.items():
        cuts = sorted({0, task, ends[pair[0]], len(own)})
        segments = [np.asarray(own[a:b], np.int32) for a, b in itertools.pairwise(cuts)]
        questions[pair] = TokenSequence(segments=segments)
    return questions


def _common_length(sequences: Sequence[list[int]]) -> int:
    """Returns the number of tokens with which all sequences begin."""
    first, last = min(sequences), max(sequences)  # all others lie between in order
    unequal = (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b)
    return next(unequal, min(len(first), len(last)))


def _tournament(
    n: int, pivots: Sequence[int], first_wins: Mapping[tuple[int, int], float]
) -> list[float]:
    """Returns the mean over pivots of each attempt's probability of being the better one.

    Args:
      n: Number of attempts.
      pivots: Indices of the attempts that all are compared with.
      first_wins: Expected answer to the question about (attempt 1, attempt 2): 1 if attempt 1 is
        better, 0 if attempt 2 is. Pairs are there in both orders.
    """

    def wins(i: int, pivot: int) -> float:
        if i == pivot:
            return 0.5
        if i > pivot:
            return 1.0 - wins(pivot, i)
        return (first_wins[i, pivot] + (1.0 - first_wins[pivot, i])) / 2

    return [sum(wins(i, pivot) for pivot in pivots) / len(pivots) for i in range(n)]
