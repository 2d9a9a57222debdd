"""Stage `evaluate`: runs the test-time methods on the test tasks (paper section 3.4).

Each of several processes runs its share of the tasks; the first one writes the results of all.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Mapping, Sequence

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import Scorer
from agentrm_jax.core.records import Task
from agentrm_jax.data.tokenizer import load_tokenizer
from agentrm_jax.data.trees import TreeStore
from agentrm_jax.envs.registry import end_reveals_outcome
from agentrm_jax.evaluation.calibration import Calibration, calibrated
from agentrm_jax.evaluation.config import MethodRun, method_runs
from agentrm_jax.evaluation.curves import best_of_k_rows, oracle_scores
from agentrm_jax.evaluation.episodes import (
    AT_OBSERVATION,
    RANDOM,
    Episode,
    episode_from_json,
    episode_to_json,
    write_episodes,
)
from agentrm_jax.evaluation.harness import (
    Answers,
    PlacedScores,
    answers,
    by_task,
    score_rows,
    scores_by_n,
)
from agentrm_jax.evaluation.probe import Ending, ending_of, probe_rows, tree_endings
from agentrm_jax.evaluation.report_rows import BestOfKRow
from agentrm_jax.evaluation.results import result_rows
from agentrm_jax.evaluation.rollout_files import read_rollouts
from agentrm_jax.evaluation.rows import ByNRow, ScoreRow, read_rows
from agentrm_jax.pipeline.acting import ActingPolicy, AgentName, open_policy
from agentrm_jax.pipeline.reward_kinds import explicit_directory
from agentrm_jax.pipeline.sample import sampled_trajectories
from agentrm_jax.pipeline.shared_rollouts import shared_rollouts
from agentrm_jax.pipeline.workspace import Workspace
from agentrm_jax.reward.random import RandomScorer
from agentrm_jax.runtime.json_files import write_json_atomic
from agentrm_jax.runtime.processes import from_all, from_first, own_share
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
        "tokens_decoded": policy.tokens_decoded,
        "tokens_read": policy.tokens_read + scorers.tokens_read,
    }
    from_first(lambda: _write_probe(workspace))
    everywhere = from_all(counts)
    total = {name: sum(each[name] for each in everywhere) for name in counts}
    summary: EvaluateSummary = {
        "tasks": len(tasks.test),
        "test_problems_trained_on": tasks.overlap(),
        "trajectories": total["trajectories"],
        "errors": total["errors"],
        "invalid_actions": total["invalid_actions"],
        "truncated_steps": total["truncated_steps"],
        "replies_without_action": total["replies_without_action"],
        "failed_candidates": total["failed_candidates"],
        "tokens_decoded": total["tokens_decoded"],
        "tokens_read": total["tokens_read"],
        **policy.name,
        "files": from_first(lambda: stage_files(directory)),
    }
    if not_available:
        summary["not_available"] = not_available
    return summary


class Scorers:
    """The reward models of a run. Each is opened when the first method needs it.

    Args:
      policy: The policy that acts.
    """

    def __init__(self, policy: ActingPolicy) -> None:
        self._policy = policy

    def of(self, run: MethodRun) -> dict[str, Scorer]:
        """Returns the reward models of a method, by name."""
        return {name: self._scorer(name, run) for name in run.reward_models}

    def _scorer(self, name: str, run: MethodRun) -> Scorer:
        if name == RANDOM:
            return RandomScorer(run.seed(self._policy.workspace.config.seed))
        return self._policy.scorer(name)

    @property
    def tokens_read(self) -> int:
        """Tokens that the reward models have read in this process; members count, not ensembles."""
        opened, config = self._policy.scorers, self._policy.workspace.config
        return sum(
            getattr(scorer, "tokens_read", 0)
            for name, scorer in opened.items()
            if not config.reward(name).members
        )


def _run_method(
    run: MethodRun, policy: ActingPolicy, scorers: Scorers, stage: Stage
) -> tuple[list[Rollout], dict[str, str]]:
    """Runs a method on the tasks of this process and writes the results of all processes.

    Returns:
      The rollouts of this process, and the baselines without rows with the reason of each.
    """
    workspace = policy.workspace
    tasks = workspace.tasks.beam if run.on_beam_tasks else workspace.tasks.test
    paths = workspace.paths.method(run.name)
    rollouts = shared_rollouts(
        run.name.replace("_", " "),
        paths.rollouts,
        run.episodes(own_share(tasks)),
        functools.partial(missing_rollouts, run, policy, scorers),
        stage,
    )
    answered = scored_answers(run, rollouts, policy, scorers, stage)
    order = {task.task_id: number for number, task in enumerate(workspace.tasks.test)}
    left_out = dict(item for part in from_all(answered.not_available) for item in part.items())
    own = [episode for episode in answered.episodes if episode.method not in left_out]
    records = from_all([episode_to_json(episode) for episode in own])
    from_first(
        lambda: _write_episodes(
            paths, [episode_from_json(record) for part in records for record in part], order
        )
    )
    if run.samples:
        everywhere = from_all(answered.scores)
        from_first(lambda: _write_scores(run, workspace, everywhere))
    return rollouts, left_out


def scored_answers(
    run: MethodRun,
    rollouts: Sequence[Rollout],
    policy: ActingPolicy,
    scorers: Scorers,
    stage: Stage,
) -> Answers:
    """Returns the answers of a method; shows how many trajectories are scored if it chooses by it.

    Args:
      run: The method.
      rollouts: The rollouts of this process.
      policy: The policy that acts.
      scorers: The reward models.
      stage: The stage at work.
    """
    workspace, opened = policy.workspace, scorers.of(run)
    in_order = functools.partial(
        answers,
        run,
        rollouts,
        opened,
        seed=workspace.config.seed,
        action_key=workspace.pool.action_key,
    )
    if not run.samples or not opened:
        return in_order()
    total = len(rollouts) * len(run.score_at) * len(opened)
    with stage.progress(f"score {run.name.replace('_', ' ')}", total) as bar:
        return in_order(on_scored=bar.advance)


def missing_rollouts(
    run: MethodRun,
    policy: ActingPolicy,
    scorers: Scorers,
    episodes: Sequence[tuple[Task, int]],
) -> Iterator[Rollout]:
    """Runs a method with the sampling of `evaluate`, or with the method's own temperature.

    Args:
      run: The method.
      policy: The policy that acts.
      scorers: The reward models; the method gets the first one of its own.
      episodes: The (task, sample number) to run.
    """
    workspace = policy.workspace
    sampling = workspace.config.evaluate.sampling
    if run.temperature is not None:
        sampling = dataclasses.replace(sampling, temperature=run.temperature)
    scorer = None if run.samples else next(map(run.placed, scorers.of(run).values()), None)
    concurrency = getattr(run.method, "concurrency", workspace.config.evaluate.concurrency)
    seed = run.seed(workspace.config.seed)
    agent = policy.agent(sampling, concurrency=concurrency, seed=seed)
    return run.rollouts(agent, scorer, workspace.pool, episodes, seed)


def _write_episodes(paths: MethodPaths, episodes: list[Episode], order: Mapping[str, int]) -> None:
    """Writes the episodes of all processes, by variant and then in the order of the tasks."""
    variants = list(dict.fromkeys(episode.variant for episode in episodes))
    episodes.sort(key=lambda e: (variants.index(e.variant), order[e.task.task_id]))
    write_episodes(paths.episodes, episodes)
    write_json_atomic(paths.results, result_rows(episodes))


def _write_scores(run: MethodRun, workspace: Workspace, parts: Sequence[PlacedScores]) -> None:
    """Writes the scores of all trajectories, and what fewer trajectories would give.

    Args:
      run: The method.
      workspace: The run.
      parts: The scores of each process.
    """
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
    for place in parts[0]:
        scores: dict[str, dict[str, list[float]]] = {}
        for name in parts[0][place]:
            own = collections.ChainMap(*(part[place][name] for part in parts))
            scores[name] = {task_id: own[task_id] for task_id in order if task_id in own}
        rows += score_rows(rollouts, scores, score_at=place, sampling_seed=run.sampling_seed)
        alone = {n: own for n, own in scores.items() if not traits(n).compares}
        by_n += scores_by_n(rollouts, alone, score_at=place)
        by_k += best_of_k(alone, score_at=place)
    if AT_OBSERVATION not in parts[0]:
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
