"""A trained reward model: scores for searches and, step by step, for stored trajectories."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.records import Prompt, Trajectory
from agentrm_jax.core.text import printable, shown
from agentrm_jax.data.conversations import KIND
from agentrm_jax.data.render import Renderer
from agentrm_jax.data.state_parts import PARTS
from agentrm_jax.engine import front
from agentrm_jax.engine.config import EngineConfig
from agentrm_jax.engine.engine import Engine
from agentrm_jax.engine.request import TokenSequence
from agentrm_jax.model.value import Readout
from agentrm_jax.pipeline.model_folders import CONVERSATION, ModelFolder, find_model
from agentrm_jax.pipeline.models import Model, load_reward
from agentrm_jax.pipeline.workspace import Workspace
from agentrm_jax.reward.explicit import ExplicitScorer

_BATCH = 64  # trajectories whose scores are made together
_SMALL_BATCHES = {"extend_rows": 8, "extend_tokens": 64, "extend_batch": 512}
"""Sizes for conversations that come one by one: on CPUs a call costs its rows, full or not."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """The scores of a trajectory; `after_action` and `after_observation` have one for each step.

    Attributes:
      task_id: The task.
      outcome: The return that is stored with the trajectory.
      start: The score before any step.
      after_action: Scores before the environment has answered; None if the step alone is longer
        than the context.
      after_observation: Scores of the states after the steps; None after a last step that is
        not answered, such as the last one of many files of conversations.
      truncated_steps: Number of truncated steps of the last state: the oldest, which were left out,
        and those that were shortened.
    """

    task_id: str
    outcome: float
    start: float
    after_action: tuple[float | None, ...]
    after_observation: tuple[float | None, ...]
    truncated_steps: int

    @property
    def score(self) -> float:
        """The score of the whole trajectory: the last one that is not None."""
        ends = (self.start, *self.after_action[-1:], *self.after_observation[-1:])
        return [end for end in ends if end is not None][-1]

    def to_json(self) -> dict[str, Any]:
        """Returns the scores as plain JSON values."""
        return {"task_id": self.task_id, "score": self.score, **dataclasses.asdict(self)}


class RewardModel(ExplicitScorer):
    """A trained reward model: scores states for searches, and trajectories step by step.

    States are rendered as in its training. It is a scorer for `best_of_n` and `beam_search`.
    """

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        prompts: Mapping[str, Prompt | None] | None = None,
        *,
        engine: EngineConfig | None = None,
        dtype: str | None = None,
    ) -> RewardModel:
        """Loads a reward model.

        Args:
          path: Folder of a run or of `train_reward_model`, a model folder
            (`RUN/reward/explicit/model`), or a Hugging Face directory, as `agentrm export` writes.
          prompts: Prompts by environment, for environments that the model was not trained on or in
            place of its own; None as a value: the model reads no prompt there.
          engine: Sizes of the engine (default: from the run, or sizes for 2,048 tokens).
          dtype: `float32` or `bfloat16`; default: that of the run, or `float32`.

        Returns:
          The reward model.

        Raises:
          UserError: There is no reward model, or it cannot be read.
        """
        return cls._opened(find_model(path, "reward", prompts), engine, dtype)

    @classmethod
    def _opened(
        cls, folder: ModelFolder, engine: EngineConfig | None = None, dtype: str | None = None
    ) -> RewardModel:
        mesh, sizes = folder.mesh(), engine or folder.engine("reward")
        model = load_reward(folder.directory, dtype or folder.dtype(), mesh)
        model.config.check_length("engine.context", sizes.context, str(folder.directory))
        # `score_steps` reads a reply and its answer as two segments; a search as one.
        sizes = dataclasses.replace(sizes, max_segments=2 * sizes.max_segments)
        closed = model.tokenizer.foreign
        if folder.config is not None:
            closed = folder.config.reads_closing(closed)
        return cls(
            _engine_of(model, sizes, mesh),
            Renderer(
                model.tokenizer,
                folder.prompts,
                sizes.context,
                closed=closed,
                parts=PARTS if folder.config is None else folder.config.state_parts,
            ),
        )

    @property
    def context(self) -> int:
        """The longest conversation that it reads, in tokens."""
        return self.engine.sizes.context

    def score_steps(self, trajectories: Iterable[Trajectory]) -> Iterator[Scored]:
        """Scores trajectories at both ends of every step.

        Args:
          trajectories: They are read in batches; any number will do.

        Returns:
          The scores of each trajectory, in order.

        Raises:
          UserError: No prompt is known for an environment, or a score is not finite.
        """
        remaining, number = iter(trajectories), 0
        while batch := list(itertools.islice(remaining, _BATCH)):
            for scored in self._score_steps(batch):
                number += 1
                for score in (scored.start, *scored.after_action, *scored.after_observation):
                    check_finite(score, f"trajectory {number} (task {scored.task_id})")
                yield scored

    def _score_steps(self, batch: Sequence[Trajectory]) -> Iterator[Scored]:
        asked: list[tuple[Trajectory, list[TokenSequence | None], int]] = []
        for trajectory in batch:
            shared = self.renderer.instruction(trajectory.task) is not None
            ends, truncated = self.renderer.both_ends(trajectory)
            sequences = [
                None if segments is None else TokenSequence(segments=segments, shared_prefix=shared)
                for end in ends
                for segments in end
            ]
            if _lacks_last_answer(trajectory):
                sequences[-1] = None
            asked.append((trajectory, sequences, truncated))
        present = [each for _, sequences, _ in asked for each in sequences if each is not None]
        values = iter(front.score(self.engine, present))
        for trajectory, sequences, truncated in asked:
            scores = [None if sequence is None else next(values) for sequence in sequences]
            start = scores[1]
            assert start is not None  # only the end of a step can lack a score
            yield Scored(
                task_id=trajectory.task.task_id,
                outcome=trajectory.outcome,
                start=start,
                after_action=tuple(scores[2::2]),
                after_observation=tuple(scores[3::2]),
                truncated_steps=truncated,
            )


def open_reward_model(
    path: str | os.PathLike[str],
    config: str | os.PathLike[str] | None = None,
    overrides: Sequence[str] = (),
) -> RewardModel:
    """Returns a reward model that reads states by a configuration file.

    Args:
      path: As of `RewardModel.load`.
      config: A configuration that says how states are rendered and how large the engine is, in
        place of the run's.
      overrides: `--KEY=VALUE` of that configuration, for example `--engine.context=4096`.

    Raises:
      UserError: There is no such model, or no configuration to read it by.
    """
    return RewardModel._opened(_find_configured(path, config, overrides))


def open_conversation_model(
    path: str | os.PathLike[str],
    config: str | os.PathLike[str] | None = None,
    overrides: Sequence[str] = (),
) -> tuple[RewardModel, dict[str, Prompt]]:
    """Returns a reward model that also reads conversations of no known environment, as they are.

    Args:
      path: As of `RewardModel.load`, like `config` and `overrides` of `open_reward_model`.
      config: As of `open_reward_model`.
      overrides: As of `open_reward_model`.

    Returns:
      The model, whose environment `CONVERSATION` has no prompt; and its known prompts.

    Raises:
      UserError: There is no such model, or the configuration is wrong.
    """
    folder = find_model(path, "reward", {CONVERSATION: None}, config, overrides)
    sizes = folder.engine("reward")
    if folder.config is None:
        small = _SMALL_BATCHES if jax.default_backend() == "cpu" else {}
        sizes = dataclasses.replace(sizes, **small, **_engine_keys(overrides))
    return RewardModel._opened(folder, sizes), folder.prompts.known()


def _engine_keys(overrides: Sequence[str]) -> dict[str, Any]:
    """The sizes of an engine that the command line sets for a model that lies in no run.

    Raises:
      UserError: Another key is set, or a size is no whole number.
    """
    kinds = {
        f"engine.{field.name}": int if field.type == "int" else str
        for field in dataclasses.fields(EngineConfig)
    }
    found: dict[str, Any] = {}
    for word in overrides:
        key, _, value = word.removeprefix("--").partition("=")
        if key not in kinds:
            raise UserError(
                f"{shown(word)} needs the configuration that the model was trained with, because "
                "it lies in no run: give --config CONFIG"
            )
        try:
            found[key.removeprefix("engine.")] = kinds[key](value)
        except ValueError:
            raise UserError(field=key, value=value, expected="a whole number") from None
    return found


def reward_directory(
    path: str | os.PathLike[str],
    config: str | os.PathLike[str] | None = None,
    overrides: Sequence[str] = (),
) -> pathlib.Path:
    """Returns the folder that `open_reward_model` reads the model from.

    Raises:
      UserError: See `open_reward_model`.
    """
    return _find_configured(path, config, overrides).directory


def check_finite(score: float | None, place: str) -> None:
    """Refuses a score that is not finite.

    Raises:
      UserError: It is NaN or infinite; names the place.
    """
    if score is not None and not math.isfinite(score):
        raise UserError(
            f"{printable(place)}: the reward model's score is {score}; its weights are damaged or "
            "do not fit --dtype: train or export it again"
        )


def _find_configured(
    path: str | os.PathLike[str],
    config: str | os.PathLike[str] | None,
    overrides: Sequence[str],
) -> ModelFolder:
    found = find_model(path, "reward", config=config, overrides=overrides)
    if found.config is None and not found.prompts.given:
        raise UserError(
            f"{path}: lies in no run, so nothing says how it reads states; give the configuration "
            "that it was trained with (--config CONFIG)"
        )
    return found


def explicit_scorer(model: Model, run: Workspace, quantile: float | None = None) -> ExplicitScorer:
    """A scorer with an engine of the run's sizes. The model's parameters are taken over.

    Args:
      model: The reward model.
      run: The run.
      quantile: The quantile at which its head is read; None reads the head's value.

    Raises:
      UserError: The head predicts no quantiles.
    """
    if quantile is not None:
        model = dataclasses.replace(model, head=model.head.at_quantile(quantile))
    closed = run.config.reads_closing(model.tokenizer.foreign)
    renderer = Renderer(
        model.tokenizer,
        run.prompts,
        run.config.engine.context,
        closed=closed,
        parts=run.config.state_parts,
    )
    return ExplicitScorer(_engine_of(model, run.config.engine, run.engine_mesh), renderer)


def _engine_of(model: Model, sizes: EngineConfig, mesh: Mesh) -> Engine:
    """The engine of a reward model, whose parameters are taken over."""
    return Engine.of(
        model.params["trunk"],
        model.config,
        sizes,
        readout=Readout(model.head),
        head=model.params["value_head"],
        mesh=mesh,
    )


def _lacks_last_answer(trajectory: Trajectory) -> bool:
    """Whether a conversation ends with a reply."""
    if not trajectory.steps:
        return False
    last, imported = trajectory.steps[-1], trajectory.task.kind == KIND
    return not last.answered or (imported and not last.transition.observation)
