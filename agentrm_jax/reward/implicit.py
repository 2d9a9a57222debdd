"""The implicit reward model as a `Scorer`: how much likelier than to its reference the replies are
to a policy that was trained on outcomes (paper section 3.3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import jax
import numpy as np
from jax.sharding import Mesh

from agentrm_jax.core.protocols import Prompt
from agentrm_jax.core.records import Task, Trajectory
from agentrm_jax.data.chat import ChatTokenizer, Rendered, render
from agentrm_jax.data.packing import pack
from agentrm_jax.data.sequences import TokenSequence
from agentrm_jax.model.config import LlamaConfig
from agentrm_jax.model.log_probs import token_log_probs
from agentrm_jax.model.options import ForwardOptions
from agentrm_jax.model.parameters import Params
from agentrm_jax.runtime.sharding import named_sharding

Reduction = Literal["sum", "mean", "min"]
REDUCTIONS: Mapping[Reduction, Callable[[np.ndarray], float]] = {
    "sum": lambda steps: float(np.sum(steps)),
    "mean": lambda steps: float(np.mean(steps)),
    "min": lambda steps: float(np.min(steps)),
}
"""From the rewards of a trajectory's steps to its score; the sum is what was trained."""


class ImplicitScorer:
    """Scores a trajectory by beta times the log-ratios of its replies.

    A state without steps scores 0. Whole conversations are read anew by both models.

    Args:
      policy: Parameters of the trained policy.
      reference: Parameters of the policy that it began as, of the same shape.
      prompt_of: The prompt of a task, or None for models that were trained without one.
      limit: Most tokens of a state. Longer ones lose whole steps, the oldest first.
      rows: Rows of `limit` tokens that are read at once.
    """

    def __init__(
        self,
        policy: Params,
        reference: Params,
        config: LlamaConfig,
        tokenizer: ChatTokenizer,
        prompt_of: Callable[[Task], Prompt | None],
        *,
        beta: float,
        limit: int,
        reduction: Reduction = "sum",
        rows: int = 8,
        mesh: Mesh,
    ) -> None:
        self._params = (policy, reference)
        self._tokenizer, self._prompt_of, self._limit = tokenizer, prompt_of, limit
        self._beta, self._reduce, self._rows = beta, REDUCTIONS[reduction], rows
        self._sharding = named_sharding(mesh, ("batch", "length"))
        self.tokens_read = 0

        options = ForwardOptions(mesh=mesh)

        @jax.jit
        def ratio(params: tuple[Params, Params], batch: Mapping[str, jax.Array]) -> jax.Array:
            trained, before = (token_log_probs(p, config, batch, options)[0] for p in params)
            return trained - before

        self._ratio = ratio

    def score(self, groups: Sequence[Sequence[Trajectory]]) -> list[list[float]]:
        steps = self._step_rewards([trajectory for group in groups for trajectory in group])
        scores = iter(self._reduce(own) if len(own) else 0.0 for own in steps)
        return [[next(scores) for _ in group] for group in groups]

    def cost(self, group: Sequence[Trajectory]) -> int:
        return 2 * sum(len(self._rendered(trajectory).tokens) for trajectory in group)

    def _rendered(self, trajectory: Trajectory) -> Rendered:
        prompt = self._prompt_of(trajectory.task)
        return render(self._tokenizer, prompt, trajectory, self._limit)[0]

    def _step_rewards(self, trajectories: Sequence[Trajectory]) -> list[np.ndarray]:
        """For each trajectory the rewards of those of its steps that fit."""
        counts, sequences, number = [], [], 0
        for trajectory in trajectories:
            rendered = self._rendered(trajectory)
            own = np.zeros(len(rendered.tokens), np.float32)
            for begin, end in rendered.reply_spans:
                number += 1
                own[begin:end] = number  # which step the token belongs to; exact up to 2^24
            counts.append(len(rendered.reply_spans))
            sequences.append(
                TokenSequence(tokens=rendered.tokens, weights=own, targets=np.zeros_like(own))
            )
        if not number:
            return [np.zeros(0) for _ in counts]
        rows = pack(sequences, self._limit)
        rewards = np.zeros(number + 1)
        for begin in range(0, len(rows), self._rows):
            wanted = np.arange(begin, begin + self._rows)
            batch = rows.take(np.minimum(wanted, len(rows) - 1))
            fields = {name: batch[name] for name in ("tokens", "positions", "segments")}
            ratios = np.asarray(self._ratio(self._params, jax.device_put(fields, self._sharding)))
            new = (wanted < len(rows))[:, None] & (batch["weights"] > 0)
            np.add.at(rewards, batch["weights"][new].astype(int), ratios[new])
            self.tokens_read += 2 * int((batch["segments"][wanted < len(rows)] > 0).sum())
        return np.split(self._beta * rewards[1:], np.cumsum(counts)[:-1])
