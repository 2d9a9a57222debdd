"""Stage `evaluate`: runs the test-time methods on the test tasks (paper section 3.4).

Several processes share the tasks and the scores of their trajectories; one writes the results.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Mapping, Sequence

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import Policy, Scorer
from agentrm_jax.core.records import Task
from agentrm_jax.data.tokenizer import load_tokenizer
from agentrm_jax.data.trees import TreeStore
from agentrm_jax.envs.registry import end_reveals_outcome
from agentrm_jax.evaluation.calibration import Calibration, calibrated
from agentrm_jax.evaluation.config import MethodRun, method_runs
from agentrm_jax.evaluation.curves import best_of_k_rows, oracle_scores
from agentrm_jax.evaluation.episodes import (
    AT_OBSERVATION,
    Episode,
    write_episodes,
)
from agentrm_jax.evaluation.harness import PlacedScores, by_task, score_rows, scores_by_n
from agentrm_jax.evaluation.probe import Ending, ending_of, probe_rows, tree_endings
from agentrm_jax.evaluation.report_rows import BestOfKRow
from agentrm_jax.evaluation.results import result_rows
from agentrm_jax.evaluation.rollout_files import read_rollouts
from agentrm_jax.evaluation.rows import ByNRow, ScoreRow, read_rows
from agentrm_jax.pipeline.acting import ActingPolicy, AgentName, open_policy
from agentrm_jax.pipeline.reward_kinds import explicit_directory
from agentrm_jax.pipeline.sample import sampled_trajectories
from agentrm_jax.pipeline.scorers import Scorers
from agentrm_jax.pipeline.shared_answers import scored_answers
from agentrm_jax.pipeline.shared_rollouts import Run, shared_rollouts
from agentrm_jax.pipeline.workspace import Workspace
from agentrm_jax.runtime.json_files import write_json_atomic
from agentrm_jax.runtime.run_directory import Stage
from agentrm_jax.runtime.run_paths import MethodPaths
from agentrm_jax.runtime.stage_files import FileRecord, stage_files
from agentrm_jax.search.methods import BestOfN
from agentrm_jax.search.rollouts import Rollout


class _OptionalOfEvaluate(AgentName, total=False):
    not_available: dict[str, str]


class EvaluateSummary(_OptionalOfEvaluate):
    """The summary of stage `evaluate`; tokens are those of models that the run opens.

    Attributes:
      tasks: Number of test tasks.
      test_problems_trained_on: Test problems that the run trains on as well; must be 0.
      trajectories: Trajectories of all methods.
      errors: Trajectories that ended by an error.
      invalid_actions: Actions that an environment did not understand or refused.
      truncated_steps: Steps that did not fit into the context, summed over the turns.
      replies_without_action: Replies in which no action was found.
      failed_candidates: Turns whose environment failed.
      tokens_decoded: Tokens that were decoded since the last start.
      tokens_read: Tokens that were read since the last start.
      not_available: The reason of each baseline that has no rows; absent if all have some.
      files: The JSON files of the stage, by name.
    """

    tasks: int
    test_problems_trained_on: int
    trajectories: int
    errors: int
    invalid_actions: int
    truncated_steps: int
    replies_without_action: int
    failed_candidates: int
    tokens_decoded: int
    tokens_read: int
    files: dict[str, FileRecord]


def evaluate(workspace: Workspace, stage: Stage, directory: pathlib.Path) -> EvaluateSummary:
    """Runs each method, stores its rollouts and writes its episodes and result rows."""
    tasks, config = workspace.tasks, workspace.config
    tasks.check_overlap()
    workspace.models.check_given()
    _check_scoring_at_actions(workspace)
    policy = open_policy(workspace)
    stage.activity.counts = policy.counts
    scorers = Scorers(policy)
    ran: list[Rollout] = []
    not_available: dict[str, str] = {}
    thresholds = read_rows(workspace.paths.thresholds, Calibration)
    for run in calibrated(method_runs(config.evaluate, config.rewards), thresholds):
        rollouts, left_out = _run_method(run, policy, scorers, stage)
        ran += rollouts
        not_available |= left_out
    counts = {
        "trajectories": len(ran),
        "errors": sum(rollout.error is not None for rollout in ran),
        "invalid_actions": sum(
            not step.transition.valid for rollout in ran for step in rollout.trajectory.steps
        ),
        "truncated_steps": sum(rollout.truncated_steps for rollout in ran),
        "replies_without_action": sum(rollout.replies_without_action for rollout in ran),
        "failed_candidates": sum(rollout.failed_candidates for rollout in ran),
    }
    group = stage.group
    group.once("probe", lambda: _write_probe(workspace))
    tokens = group.total(
        {
            "tokens_decoded": policy.tokens_decoded,
            "tokens_read": policy.tokens_read + scorers.tokens_read,
        }
    )
    summary: EvaluateSummary = {
        "tasks": len(tasks.test),
        "test_problems_trained_on": tasks.overlap(),
        "trajectories": counts["trajectories"],
        "errors": counts["errors"],
        "invalid_actions": counts["invalid_actions"],
        "truncated_steps": counts["truncated_steps"],
        "replies_without_action": counts["replies_without_action"],
        "failed_candidates": counts["failed_candidates"],
        "tokens_decoded": tokens["tokens_decoded"],
        "tokens_read": tokens["tokens_read"],
        **policy.name,
        "files": group.once("files", lambda: stage_files(directory)),
    }
    if not_available:
        summary["not_available"] = not_available
    return summary


def _run_method(
    run: MethodRun, policy: ActingPolicy, scorers: Scorers, stage: Stage
) -> tuple[list[Rollout], dict[str, str]]:
    """Runs a method on all tasks and writes its results; several processes share the tasks.

    Returns:
      The rollouts, and the baselines without rows with the reason of each.
    """
    workspace = policy.workspace
    tasks = workspace.tasks.beam if run.on_beam_tasks else workspace.tasks.test
    paths = workspace.paths.method(run.name)
    rollouts = shared_rollouts(
        run.name.replace("_", " "),
        paths.rollouts,
        run.episodes(tasks),
        method_runner(run, policy, scorers),
        stage,
        folder=workspace.paths.stage("evaluate"),
        concurrency=concurrency_of(run, workspace),
    )
    answered = scored_answers(run, rollouts, policy, scorers, stage)
    order = {task.task_id: number for number, task in enumerate(workspace.tasks.test)}
    left_out = answered.not_available
    episodes = [each for each in answered.episodes if each.method not in left_out]

    def write() -> None:
        _write_episodes(paths, episodes, order)
        if run.samples:
            _write_scores(run, workspace, answered.scores)

    stage.group.once(f"{run.name} results", write)
    return rollouts, left_out


def concurrency_of(run: MethodRun, workspace: Workspace) -> int:
    """Returns the number of tasks or trajectories that a method works on at the same time."""
    return getattr(run.method, "concurrency", workspace.config.evaluate.concurrency)


def method_runner(run: MethodRun, policy: ActingPolicy, scorers: Scorers) -> Run:
    """Returns a function that runs a method on episodes.

    The method has the sampling of `evaluate`, or its own temperature. Its agent is opened when the
    first episodes are run.

    Args:
      run: The method.
      policy: The policy that acts.
      scorers: The reward models; the method gets the first one of its own.
    """
    workspace = policy.workspace
    seed = run.seed(workspace.config.seed)

    @functools.cache
    def opened() -> tuple[Policy, Scorer | None]:
        sampling = workspace.config.evaluate.sampling
        if run.temperature is not None:
            sampling = dataclasses.replace(sampling, temperature=run.temperature)
        scorer = None if run.samples else next(map(run.placed, scorers.of(run).values()), None)
        concurrency = concurrency_of(run, workspace)
        return policy.agent(sampling, concurrency=concurrency, seed=seed), scorer

    def rollouts(episodes: Sequence[tuple[Task, int]]) -> Iterator[Rollout]:
        agent, scorer = opened()
        return run.rollouts(agent, scorer, workspace.pool, episodes, seed)

    return rollouts


def _write_episodes(paths: MethodPaths, episodes: list[Episode], order: Mapping[str, int]) -> None:
    """Writes episodes, by variant and then in the order of the tasks."""
    variants = list(dict.fromkeys(episode.variant for episode in episodes))
    episodes.sort(key=lambda e: (variants.index(e.variant), order[e.task.task_id]))
    write_episodes(paths.episodes, episodes)
    write_json_atomic(paths.results, result_rows(episodes))


def _write_scores(run: MethodRun, workspace: Workspace, found: PlacedScores) -> None:
    """Writes the scores of all trajectories, and what fewer trajectories would give."""
    paths = workspace.paths.method(run.name)
    order = {task.task_id: number for number, task in enumerate(workspace.tasks.test)}
    rollouts = sorted(
        read_rollouts(paths.rollouts),
        key=lambda r: (order[r.trajectory.task.task_id], r.sample),
    )
    groups = by_task(rollouts)
    rows: list[ScoreRow] = []
    by_n: list[ByNRow] = []
    by_k: list[BestOfKRow] = []
    traits = workspace.config.reward_traits
    best_of_k = functools.partial(
        best_of_k_rows, groups, seed=workspace.config.seed, sampling_seed=run.sampling_seed
    )
    for place, by_name in found.items():
        scores: dict[str, dict[str, list[float]]] = {
            name: {task_id: own[task_id] for task_id in order if task_id in own}
            for name, own in by_name.items()
        }
        rows += score_rows(rollouts, scores, score_at=place, sampling_seed=run.sampling_seed)
        alone = {n: own for n, own in scores.items() if not traits(n).compares}
        by_n += scores_by_n(rollouts, alone, score_at=place)
        by_k += best_of_k(alone, score_at=place)
    if AT_OBSERVATION not in found:
        by_n += scores_by_n(rollouts, {})  # of the oracle
    write_json_atomic(paths.scores, rows)
    write_json_atomic(paths.by_n, by_n)
    if isinstance(run.method, BestOfN):
        write_json_atomic(paths.best_of_k, by_k + best_of_k(oracle_scores(groups)))


def _write_probe(workspace: Workspace) -> None:
    """Writes whether last observations give the outcome away, on the trajectories of training."""
    paths = workspace.paths
    endings: list[Ending] = []
    source = ""
    if paths.trees.exists():
        source = "trees"
        trees = TreeStore.read(paths.trees).values()
        endings = [ending for tree in trees for ending in tree_endings(tree)]
    elif paths.samples.exists():
        source = "samples"
        groups = sampled_trajectories(paths)
        endings = [ending_of(trajectory) for group in groups for trajectory in group]
    if endings:
        write_json_atomic(paths.probe, probe_rows(endings, source, end_reveals_outcome))


def _check_scoring_at_actions(workspace: Workspace) -> None:
    """Refuses to score inside of decoding if the two models have different tokens."""
    config, models = workspace.config.evaluate, workspace.models
    if "beam" not in config.methods or config.beam.score_at != "action":
        return
    directory = explicit_directory(workspace.config, models)
    policy, reward = (load_tokenizer(d) for d in (models.policy_directory, directory))
    if policy.fingerprint() != reward.fingerprint():
        raise UserError(
            f"must be observation because the reward model in {directory} has "
            f"another tokenizer than the policy in {models.policy_directory}",
            field="evaluate.beam.score_at",
        )
    if reward.chat.closing and workspace.config.reads_closing(reward.foreign):
        raise UserError(
            f"must be observation because the reward model in {directory} is read "
            "at the end of its chat template; or set reward_read_at: stop",
            field="evaluate.beam.score_at",
        )
