"""Episodes: one method on one task each. Their names, and their file."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.records import Task
from agentrm_jax.core.text import printable
from agentrm_jax.data.typed_json import from_json
from agentrm_jax.evaluation.rows import ResultRow
from agentrm_jax.runtime import json_files
from agentrm_jax.runtime.json_lines import JsonLines, read_json_lines
from agentrm_jax.runtime.run_paths import RESULTS

BASELINE_METHODS = (
    "greedy",
    "random_of_n",
    "majority_of_n",
    "shortest_of_n",
    "likeliest_of_n",
    "fewest_invalid_of_n",
    "oracle_of_n",
)
"""Methods without a reward model, in the order in which they are shown."""

RANDOM = "random"
"""The reward model of a beam search with random scores."""

LIKELIHOOD = "likelihood"
"""The reward model of a beam search for likely replies."""

FEWEST_INVALID = "fewest_invalid"
"""The reward model of a beam search that avoids invalid actions and prefers likely replies."""

CONTROLS = (RANDOM, LIKELIHOOD, FEWEST_INVALID)
"""Scores that need no reward model."""

AT_OBSERVATION = "observation"
"""The place of a score after the last observation; see `reward.places`."""

BLIND = "action"
"""The place of a score after the last action, which the environment has not answered."""

_RARE: dict[str, Any] = {"options": "", "score_at": AT_OBSERVATION, "sampling_seed": 0}
"""Fields of an episode that are stored only if they differ from these values."""

T = TypeVar("T")
K = TypeVar("K")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Episode:
    """One method on one task.

    Attributes:
      task: The task.
      method: `greedy`, `best_of_n`, `beam`, ...
      reward_model: What scored, for example `explicit`; `random` for random scores.
      n: Trajectories that the method chose from.
      beam_width: States kept by beam search.
      expansion_width: Candidates sampled from each.
      seed: The run's seed, with which its models were trained.
      options: Options of the method that differ from their defaults, such as `depth=3`; not stored
        if empty.
      score_at: The place at which the reward model scored: `observation`, `action` (blind: the
        environment has not answered yet), or `mean`, `min`, `max` over the steps; not stored if it
        is `observation`.
      sampling_seed: The sampling seed of the evaluation; not stored if it is 0.
      outcome: The return, in [0, 1]; for a rule that draws, such as random_of_n, its exact
        expectation. A trajectory that ended by an error has outcome 0.
      success: 1 where the task was fully solved, 0 where not, likewise an expectation.
      policy_tokens: Tokens that the policy decoded for all n trajectories.
      reward_tokens: Tokens that the reward model read.
      env_steps: Steps of the environment for all n trajectories.
      wall_seconds: Seconds from reset to end, added up; several episodes run at the same time.
      invalid_actions: Actions of the answer that the environment did not understand.
      truncated_steps: Oldest steps that did not fit into the context, added up over the turns.
      replies_without_action: Replies of all n trajectories in which no action was found.
      failed_candidates: Turns of all n trajectories whose environment failed.
      error: Why the answer's trajectory (one of them, where the rule draws) ended early.
      steps: Steps of the answer.
    """

    task: Task
    method: str
    reward_model: str | None = None
    n: int = 1
    beam_width: int | None = None
    expansion_width: int | None = None
    seed: int
    options: str = ""
    score_at: str = AT_OBSERVATION
    sampling_seed: int = 0
    outcome: float
    success: float
    policy_tokens: int
    reward_tokens: int = 0
    env_steps: int
    wall_seconds: float
    invalid_actions: int = 0
    truncated_steps: int = 0
    replies_without_action: int = 0
    failed_candidates: int = 0
    error: str | None = None
    steps: int

    @property
    def variant(self) -> Variant:
        return Variant(
            self.method,
            self.reward_model,
            self.n,
            self.beam_width,
            self.expansion_width,
            self.options,
            self.score_at,
        )

    @property
    def task_name(self) -> str:
        """The group of the task in results: `ENVIRONMENT/KIND`."""
        return f"{self.task.environment}/{self.task.kind}"

    @property
    def split(self) -> str:
        return "held_out" if self.task.held_out else "held_in"


class Variant(NamedTuple):
    """A method with everything that sets it apart from others in a table.

    Seeds do not: a row of a table is the mean over them.
    """

    method: str
    reward_model: str | None
    n: int
    beam_width: int | None
    expansion_width: int | None
    options: str = ""
    score_at: str = AT_OBSERVATION

    @property
    def label(self) -> str:
        """The name in tables, such as `best-of-5, explicit, blind` or `beam 5x5, random scores`."""
        name = self.method.replace("_of_n", f"-of-{self.n}").replace("_", " ")
        if self.beam_width is not None:
            name += f" {self.beam_width}x{self.expansion_width}"
        if self.options:
            name += f" ({self.options})"
        return scored_label(name, self.reward_model, self.score_at)

    @property
    def is_baseline(self) -> bool:
        return self.method in BASELINE_METHODS or self.reward_model in CONTROLS


def scored_label(name: str, reward_model: str | None, score_at: str = AT_OBSERVATION) -> str:
    """Returns the name of a method with its reward model and the place of the score."""
    if reward_model is None:
        return name
    name += ", " + {RANDOM: "random scores", FEWEST_INVALID: "fewest invalid"}.get(
        reward_model, reward_model
    )
    if score_at == AT_OBSERVATION:
        return name
    return f"{name}, {'blind' if score_at == BLIND else f'{score_at} over steps'}"


def write_episodes(path: pathlib.Path, episodes: Iterable[Episode]) -> None:
    """Writes `episodes.jsonl`; the file is whole or absent."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    with JsonLines(temporary) as lines:
        for episode in episodes:
            lines.append(episode_to_json(episode))
        lines.sync()
    temporary.replace(path)


def episode_to_json(episode: Episode) -> dict[str, Any]:
    """Returns the JSON form of an episode."""
    record = dataclasses.asdict(episode)
    return {key: record[key] for key in record if key not in _RARE or record[key] != _RARE[key]}


def episode_from_json(record: Any) -> Episode:
    """An episode from its JSON form.

    Raises:
      ValueError: It is none; one line that names the key.
    """
    episode = from_json(Episode, record)
    for name in ("outcome", "success"):
        if not -1e-6 <= getattr(episode, name) <= 1 + 1e-6:
            raise ValueError(f"{name}: must be within 0 and 1 (got {getattr(episode, name)})")
    if min(episode.n, episode.steps + 1, episode.policy_tokens + 1, episode.env_steps + 1) < 1:
        raise ValueError("n must be at least 1; steps, policy_tokens and env_steps at least 0")
    return episode


def read_episodes(path: pathlib.Path) -> list[Episode]:
    """The episodes of a file: of each variant of a method the same tasks, each once.

    Raises:
      UserError: The file is absent, a line is damaged, or an episode is missing or twice; names
        file and line.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file; `agentrm evaluate` makes it")
    episodes: dict[tuple[Variant, str], Episode] = {}
    mend = f"restore the file, or delete {path.parent.parent} to evaluate again"
    for number, record in enumerate(read_json_lines(path, finished=True), start=1):
        try:
            episode = episode_from_json(record)
        except ValueError as error:
            raise UserError(f"{path}, line {number}: not an episode ({error}); {mend}") from None
        key = (episode.variant, episode.task.task_id)
        if key in episodes:
            raise UserError(
                f"{path}, line {number}: a second episode of {printable(episode.variant.label)} on "
                f"task {printable(episode.task.task_id)}; {mend}"
            )
        episodes[key] = episode
    if not episodes:
        raise UserError(f"{path}: holds no episode; {mend}")
    _require_same_tasks(path, list(episodes.values()), mend)
    return list(episodes.values())


def _require_same_tasks(path: pathlib.Path, episodes: Sequence[Episode], mend: str) -> None:
    """Every variant of a file has every task of the file, and as many as `results.json` says."""
    tasks = {episode.task.task_id for episode in episodes}
    counts = {}
    for variant, own in grouped(episodes, lambda episode: episode.variant):
        counts[variant] = len(own)
        if missing := tasks - {episode.task.task_id for episode in own}:
            raise UserError(
                f"{path}: {printable(variant.label)} has {len(own)} of {len(tasks)} tasks, for "
                f"example not {printable(min(missing))}; {mend}"
            )
    results = path.with_name(RESULTS)
    if not results.exists():
        return
    rows = json_files.read_json(results)
    try:
        stored = {
            row_variant(row): row["n_tasks"]
            for row in rows
            if (row["task"], row["split"]) == ("all", "all")
        }
    except (KeyError, TypeError):
        raise UserError(f"{results}: not a list of results; restore the file") from None
    for variant in {**stored, **counts}:
        if stored.get(variant) != counts.get(variant):
            raise UserError(
                f"{path}: holds {counts.get(variant, 0)} episodes of {printable(variant.label)}, "
                f"and {RESULTS} next to it says {stored.get(variant, 0)}; {mend}"
            )


def row_variant(row: ResultRow) -> Variant:
    """Returns the variant of a method that a row is about."""
    return Variant(
        row["method"],
        row["reward_model"],
        row["n"],
        row["beam_width"],
        row["expansion_width"],
        row.get("options", ""),
        row.get("score_at", AT_OBSERVATION),
    )


def grouped(items: Iterable[T], key: Callable[[T], K]) -> list[tuple[K, list[T]]]:
    """Returns the items by key, keys and items in their order of appearance."""
    groups: dict[K, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.items())
