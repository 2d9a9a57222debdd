"""The implicit reward model as a `Scorer` (paper section 3.3).

The score is the log-ratio of the replies under a policy that was trained on outcomes and under its
reference, the policy before that training.
"""

from __future__ import annotations

import dataclasses
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

Reduction = Literal["sum", "mean", "min", "max", "last"]
REDUCTIONS: Mapping[Reduction, Callable[[np.ndarray], float]] = {
    "sum": lambda steps: float(np.sum(steps)),
    "mean": lambda steps: float(np.mean(steps)),
    "min": lambda steps: float(np.min(steps)),
    "max": lambda steps: float(np.max(steps)),
    "last": lambda steps: float(steps[-1]),
}
"""Functions from the rewards of a trajectory's steps to its score; training uses the sum."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ImplicitSettings:
    """Settings of an implicit scorer.

    Attributes:
      beta: The factor of the log-ratios.
      limit: Largest number of tokens of a state. Longer states lose whole steps, the oldest first.
      reduction: The function from the rewards of a trajectory's steps to its score.
      rows: Rows of `limit` tokens that are read at once.
      mesh: The devices.
    """

    beta: float
    limit: int
    reduction: Reduction = "sum"
    rows: int = 8
    mesh: Mesh


class ImplicitScorer:
    """Scores a trajectory by beta times the log-ratios of its replies.

    A state without steps has the score 0. Both models read whole conversations for every score.

    Args:
      policy: Parameters of the trained policy.
      reference: Parameters of the policy before its training.
      config: The shape of the policy.
      tokenizer: The tokenizer of both.
      prompt_of: Returns the prompt of a task, or None for models that were trained without one.
      settings: How states are read and scored.
      reference_config: The shape of the reference if it is another one.
    """

    def __init__(
        self,
        policy: Params,
        reference: Params,
        config: LlamaConfig,
        tokenizer: ChatTokenizer,
        prompt_of: Callable[[Task], Prompt | None],
        settings: ImplicitSettings,
        reference_config: LlamaConfig | None = None,
    ) -> None:
        self._params = (policy, reference)
        self._tokenizer, self._prompt_of, self._settings = tokenizer, prompt_of, settings
        self._reduce = REDUCTIONS[settings.reduction]
        self._sharding = named_sharding(settings.mesh, ("batch", "length"))
        self.tokens_read = 0
        options = ForwardOptions(mesh=settings.mesh)

        @jax.jit
        def ratio(params: tuple[Params, Params], batch: Mapping[str, jax.Array]) -> jax.Array:
            trained, before = (
                token_log_probs(p, shape, batch, options)[0]
                for p, shape in zip(params, (config, reference_config or config), strict=True)
            )
            return trained - before

        self._ratio = ratio

    def score(self, groups: Sequence[Sequence[Trajectory]]) -> list[list[float]]:
        steps = self._step_rewards([trajectory for group in groups for trajectory in group])
        scores = iter(self._reduce(rewards) if len(rewards) else 0.0 for rewards in steps)
        return [[next(scores) for _ in group] for group in groups]

    def cost(self, group: Sequence[Trajectory]) -> int:
        return 2 * sum(len(self._rendered(trajectory).tokens) for trajectory in group)

    def _rendered(self, trajectory: Trajectory) -> Rendered:
        prompt = self._prompt_of(trajectory.task)
        return render(self._tokenizer, prompt, trajectory, self._settings.limit)[0]

    def _step_rewards(self, trajectories: Sequence[Trajectory]) -> list[np.ndarray]:
        """Returns for each trajectory the rewards of the steps that fit into the limit."""
        counts, sequences, number = [], [], 0
        for trajectory in trajectories:
            rendered = self._rendered(trajectory)
            step_numbers = np.zeros(len(rendered.tokens), np.float32)  # exact up to 2^24
            for begin, end in rendered.reply_spans:
                number += 1
                step_numbers[begin:end] = number
            counts.append(len(rendered.reply_spans))
            sequences.append(
                TokenSequence(
                    tokens=rendered.tokens,
                    weights=step_numbers,
                    targets=np.zeros_like(step_numbers),
                )
            )
        if not number:
            return [np.zeros(0) for _ in counts]
        rows = pack(sequences, self._settings.limit)
        rewards = np.zeros(number + 1)
        for begin in range(0, len(rows), self._settings.rows):
            row_indices = np.arange(begin, begin + self._settings.rows)
            is_row = row_indices < len(rows)  # the last row fills the last batch
            batch = rows.take(np.minimum(row_indices, len(rows) - 1))
            fields = {name: batch[name] for name in ("tokens", "positions", "segments")}
            ratios = np.asarray(self._ratio(self._params, jax.device_put(fields, self._sharding)))
            in_reply = is_row[:, None] & (batch["weights"] > 0)
            np.add.at(rewards, batch["weights"][in_reply].astype(int), ratios[in_reply])
            self.tokens_read += 2 * int((batch["segments"][is_row] > 0).sum())
        return np.split(self._settings.beta * rewards[1:], np.cumsum(counts)[:-1])
