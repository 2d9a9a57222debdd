"""Episodes, what they add up to, and how methods compare on the same tasks."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.records import Task
from agentrm_jax.core.text import printable
from agentrm_jax.data.typed_json import from_json
from agentrm_jax.evaluation.rows import Comparison, ResultRow, Split
from agentrm_jax.evaluation.statistics import bootstrap, paired_bootstrap
from agentrm_jax.runtime import json_files
from agentrm_jax.runtime.json_lines import JsonLines, read_json_lines
from agentrm_jax.runtime.run_paths import RESULTS

SPLITS: tuple[Split, ...] = ("held_in", "held_out", "all")
"""Of results: trained-on kinds, kinds never trained on, both together."""

BASELINE_METHODS = (
    "greedy",
    "random_of_n",
    "majority_of_n",
    "shortest_of_n",
    "likeliest_of_n",
    "oracle_of_n",
)
"""Methods without a reward model, in the order in which they are shown."""


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
      seed: The run's seed.
      options: Options of the method that differ from their defaults, such as `depth=3`; not stored
        if empty.
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
            self.seed,
            self.options,
        )

    @property
    def task_name(self) -> str:
        """The group of the task in results: `ENVIRONMENT/KIND`."""
        return f"{self.task.environment}/{self.task.kind}"

    @property
    def split(self) -> str:
        return "held_out" if self.task.held_out else "held_in"


class Variant(NamedTuple):
    """A method with everything that sets it apart from others in a table."""

    method: str
    reward_model: str | None
    n: int
    beam_width: int | None
    expansion_width: int | None
    seed: int
    options: str = ""

    @property
    def label(self) -> str:
        """The name in tables, such as `best-of-5, explicit` or `beam 5x5, random scores`."""
        name = self.method.replace("_of_n", f"-of-{self.n}").replace("_", " ")
        if self.beam_width is not None:
            name += f" {self.beam_width}x{self.expansion_width}"
        if self.options:
            name += f" ({self.options})"
        if self.reward_model is None:
            return name
        return f"{name}, {self.reward_model}{' scores' if self.reward_model == 'random' else ''}"

    @property
    def is_baseline(self) -> bool:
        return self.method in BASELINE_METHODS or self.reward_model == "random"


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
    return _without_empty_options(dataclasses.asdict(episode))


def _without_empty_options(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != "options" or value}


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
    for variant, own in _grouped(episodes, lambda episode: episode.variant):
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


def result_rows(episodes: Sequence[Episode]) -> list[ResultRow]:
    """Returns the rows of `results.json`.

    For each variant one row for each kind ("environment/kind"); and for each environment, and for
    "all" of them, a row for each split and for both together. Means are over tasks (micro); counts
    are sums over the `n_tasks` tasks. `score_mean` is the paper's number.
    """
    rows: list[ResultRow] = []
    for variant, own in _grouped(episodes, lambda episode: episode.variant):
        by_kind = _grouped(own, lambda episode: (episode.split, episode.task_name))
        rows.extend(_row(task, split, variant, group) for (split, task), group in by_kind)
        by_environment = _grouped(own, lambda episode: episode.task.environment)
        for task, group in (*by_environment, ("all", own)):
            for split in SPLITS:
                part = [episode for episode in group if split in ("all", episode.split)]
                if part:
                    rows.append(_row(task, split, variant, part))
    return rows


def level(row: ResultRow) -> Literal["kind", "environment", "all"]:
    """Returns whether a row is about a kind of tasks, an environment or all tasks."""
    return "kind" if "/" in row["task"] else "all" if row["task"] == "all" else "environment"


def _row(task: str, split: str, variant: Variant, group: Sequence[Episode]) -> ResultRow:
    score = bootstrap([episode.outcome for episode in group], bounds=(0.0, 1.0))
    row: ResultRow = {
        "task": task,
        "split": split,
        "method": variant.method,
        "reward_model": variant.reward_model,
        "n": variant.n,
        "beam_width": variant.beam_width,
        "expansion_width": variant.expansion_width,
        "seed": variant.seed,
        "n_tasks": score.n,
        "score_mean": score.mean,
        "score_ci95": [score.low, score.high],
        "success_rate": float(np.mean([episode.success for episode in group])),
        "progress_rate": score.mean,
        "policy_tokens": sum(episode.policy_tokens for episode in group),
        "reward_tokens": sum(episode.reward_tokens for episode in group),
        "env_steps": sum(episode.env_steps for episode in group),
        "wall_seconds": sum(episode.wall_seconds for episode in group),
        "errors": sum(episode.error is not None for episode in group),
        "replies_without_action": sum(episode.replies_without_action for episode in group),
        "failed_candidates": sum(episode.failed_candidates for episode in group),
    }
    if variant.options:
        row["options"] = variant.options
    return row


def row_variant(row: ResultRow) -> Variant:
    """Returns the variant of a method that a row is about."""
    return Variant(
        row["method"],
        row["reward_model"],
        row["n"],
        row["beam_width"],
        row["expansion_width"],
        row["seed"],
        row.get("options", ""),
    )


def default_pairs(episodes: Sequence[Episode]) -> list[tuple[Variant, Variant]]:
    """Returns pairs to compare: methods with a reward model, and every baseline but the oracle.

    Beam search is compared with best-of-n under the same reward model as well.
    """
    variants = list(dict.fromkeys(episode.variant for episode in episodes))
    pairs = []
    for a in variants:
        for b in variants:
            baseline = b.is_baseline and b.method != "oracle_of_n"
            random_search = b.reward_model == "random" and b.method != a.method
            better = a.method == "beam" and b.method == "best_of_n"
            same_model = better and a.reward_model == b.reward_model
            if (
                not a.is_baseline
                and a.seed == b.seed
                and ((baseline and not random_search) or same_model)
            ):
                pairs.append((a, b))
    return pairs


def comparisons(
    episodes: Sequence[Episode], pairs: Sequence[tuple[Variant, Variant]] | None = None
) -> list[Comparison]:
    """Returns differences of mean return between variants, paired over the tasks that both ran.

    Args:
      episodes: The episodes of all variants.
      pairs: Pairs (a, b) of variants; `default_pairs` if not given.

    Returns:
      A comparison for each pair and split with at least one common task.
    """
    outcomes = {
        variant: {episode.task.task_id: episode for episode in own}
        for variant, own in _grouped(episodes, lambda episode: episode.variant)
    }
    found: list[Comparison] = []
    for a, b in default_pairs(episodes) if pairs is None else pairs:
        first, second = outcomes[a], outcomes[b]
        for split in SPLITS:
            common = [
                task_id
                for task_id, episode in first.items()
                if task_id in second and split in ("all", episode.split)
            ]
            if not common:
                continue
            gain = paired_bootstrap(
                [first[task_id].outcome for task_id in common],
                [second[task_id].outcome for task_id in common],
            )
            found.append(
                {
                    "a": a.method,
                    "b": b.method,
                    "split": split,
                    "difference": gain.mean,
                    "ci95": [gain.low, gain.high],
                    "n_tasks": gain.n,
                    "a_label": a.label,
                    "b_label": b.label,
                    "a_reward_model": a.reward_model,
                    "b_reward_model": b.reward_model,
                }
            )
    return found


def _grouped(
    episodes: Iterable[Episode], key: Callable[[Episode], Any]
) -> list[tuple[Any, list[Episode]]]:
    """Groups in order of first appearance."""
    groups: dict[Any, list[Episode]] = {}
    for episode in episodes:
        groups.setdefault(key(episode), []).append(episode)
    return list(groups.items())
