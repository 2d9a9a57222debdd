"""The stage that runs test-time methods, and the report on what they did."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from agentrm_jax.agent.agent import Agent
from agentrm_jax.agent.in_step import InStepAgent
from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import Scorer
from agentrm_jax.core.records import Task
from agentrm_jax.core.text import printable
from agentrm_jax.data.chat import opening_tokens
from agentrm_jax.data.tokenizer import load_tokenizer
from agentrm_jax.data.trees import TreeStore
from agentrm_jax.engine.engine import Engine
from agentrm_jax.engine.programs.sampling import Sampling
from agentrm_jax.evaluate.harness import (
    ROLLOUTS,
    chosen_episodes,
    read_rollouts,
    scores_by_n,
    single_episodes,
    stored_rollouts,
)
from agentrm_jax.evaluate.report import write_report
from agentrm_jax.evaluate.results import (
    BASELINE_METHODS,
    ByNRow,
    Episode,
    ScoreRow,
    comparisons,
    episode_from_json,
    read_episodes,
    read_rows,
    result_rows,
    write_episodes,
)
from agentrm_jax.evaluate.tree_view import most_telling
from agentrm_jax.pipeline.models import Model, load_policy
from agentrm_jax.pipeline.reward_model import explicit_scorer
from agentrm_jax.pipeline.workspace import Run
from agentrm_jax.reward.explicit import ExplicitScorer
from agentrm_jax.reward.implicit import ImplicitScorer, ImplicitSettings
from agentrm_jax.reward.judge import JudgeScorer
from agentrm_jax.reward.random import RandomScorer
from agentrm_jax.runtime.json_files import write_json_atomic
from agentrm_jax.runtime.metrics import read_metrics
from agentrm_jax.runtime.processes import from_all, from_first, is_first, own_share
from agentrm_jax.runtime.progress import progress
from agentrm_jax.runtime.run_directory import Stage, stages
from agentrm_jax.runtime.stage_files import KEY, stage_ended, stage_files
from agentrm_jax.search.beam import beam_search
from agentrm_jax.search.rollouts import Rollout, rollouts


def evaluate(run: Run, stage: Stage, directory: pathlib.Path) -> dict[str, Any]:
    """Runs the test-time methods on the test tasks (paper section 3.4)."""
    run.check_overlap()
    run.check_given_models()
    _check_in_step(run)
    bench = _Bench(run, stage, directory)
    for method in run.config.evaluate.methods:
        {"greedy": bench.greedy, "best_of_n": bench.best_of_n, "beam": bench.beam}[method]()
    ran = bench.ran
    own = {
        "trajectories": len(ran),
        "errors": sum(rollout.error is not None for rollout in ran),
        "invalid_actions": sum(
            not step.transition.valid for rollout in ran for step in rollout.trajectory.steps
        ),
        "truncated_steps": sum(rollout.truncated_steps for rollout in ran),
        "replies_without_action": sum(rollout.replies_without_action for rollout in ran),
        "failed_candidates": sum(rollout.failed_candidates for rollout in ran),
        **bench.usage(),
    }
    parts = from_all(own)
    return {
        "tasks": len(run.test_tasks),
        "test_problems_trained_on": run.overlap(),
        **{name: sum(part[name] for part in parts) for name in own},
        KEY: from_first(lambda: stage_files(directory)),
    }


_AnyScorer = ExplicitScorer | ImplicitScorer | JudgeScorer


class _Bench:
    """The models at work on the test tasks. They are loaded when the first method needs them.

    Each of several processes has its share of the tasks; the first writes what all have found.
    """

    def __init__(self, run: Run, stage: Stage, directory: pathlib.Path) -> None:
        self._run, self._stage, self._directory = run, stage, directory
        self._config, self._seed = run.config.evaluate, run.config.seed
        self._policy = run.acting_policy()
        self._engine = Engine.of(
            self._policy.params, self._policy.config, run.config.engine, mesh=run.engine_mesh
        )
        self._scorers: dict[str, _AnyScorer] = {}
        self.ran: list[Rollout] = []

    def _agent(self, temperature: float | None = None) -> Agent:
        sampling = self._config.sampling
        if temperature is not None:
            sampling = dataclasses.replace(sampling, temperature=temperature)
        return Agent(
            self._engine, self._policy.tokenizer, self._run.prompt_of, sampling, self._seed
        )

    def _scorer_of(self, kind: str) -> _AnyScorer:
        if kind not in self._scorers:
            make = {
                "explicit": lambda: explicit_scorer(self._run.reward_model(), self._run),
                "implicit": lambda: _implicit_scorer(self._run),
                "judge": lambda: _judge(self._run, self._policy, self._engine),
            }
            self._scorers[kind] = make[kind]()
        return self._scorers[kind]

    def usage(self) -> dict[str, int]:
        """Tokens of both models in this process."""
        return {
            "tokens_decoded": self._engine.usage.decoded,
            "tokens_read": self._engine.usage.read
            + sum(scorer.tokens_read for scorer in self._scorers.values()),
        }

    def greedy(self) -> None:
        agent = self._agent(temperature=0.0)
        tasks = own_share(self._run.test_tasks)
        found = self._stored("greedy", [(task, 0) for task in tasks], agent)
        self._keep("greedy", single_episodes(found, "greedy", seed=self._seed))

    def best_of_n(self) -> None:
        """Best-of-n and its baselines, over the same n trajectories of each task."""
        tasks = own_share(self._run.test_tasks)
        samples = [(task, s) for task in tasks for s in range(self._config.n)]
        found = self._stored("best_of_n", samples, self._agent())
        scorers = {kind: self._scorer_of(kind) for kind in self._run.config.rewards}
        episodes, scores = chosen_episodes(
            found, scorers, seed=self._seed, action_key=self._run.pool.action_key
        )
        self._keep("best_of_n", episodes)
        parts = from_all(scores)
        from_first(lambda: self._keep_scores(self._directory / "best_of_n", parts))

    def _keep_scores(
        self, directory: pathlib.Path, parts: Sequence[dict[str, dict[str, list[float]]]]
    ) -> None:
        """Writes what the reward models said of all trajectories, and what fewer were worth."""
        order = self._order()
        found = sorted(
            read_rollouts(directory / ROLLOUTS),
            key=lambda r: (order[r.trajectory.task.task_id], r.sample),
        )
        scores = {
            name: {task_id: part[name][task_id] for task_id in order for part in parts
                   if task_id in part[name]}
            for name in parts[0]
        }  # fmt: skip
        outcomes = {
            (r.trajectory.task.task_id, r.sample): 0.0 if r.error else r.trajectory.outcome
            for r in found
        }
        rows = [
            {
                "reward_model": name,
                "task_id": task_id,
                "score": score,
                "outcome": outcomes[task_id, sample],
            }
            for name, by_task in scores.items()
            for task_id, own in by_task.items()
            for sample, score in enumerate(own)
            if math.isfinite(score)
        ]
        write_json_atomic(directory / "scores.json", rows)
        alone = {kind: own for kind, own in scores.items() if kind != "judge"}  # it compares n
        write_json_atomic(directory / "by_n.json", scores_by_n(found, alone))

    def beam(self) -> None:
        """Beam search, and the same search with random scores where that is asked for."""
        kind, in_step = self._run.config.rewards[0], None
        scorer = self._scorer_of(kind)
        if self._config.beam.score_at == "action":
            assert isinstance(scorer, ExplicitScorer)  # RunConfig demands it
            in_step = InStepAgent(self._agent(), scorer.engine)
        self._beam("beam", scorer, kind, in_step)
        if self._config.random_beam:
            self._beam("beam_random", RandomScorer(self._seed), "random", None)

    def _beam(
        self, name: str, scorer: Scorer, reward_model: str, in_step: InStepAgent | None
    ) -> None:
        config = self._config.beam
        if in_step is None:  # random scores are drawn when the environment has answered
            config = dataclasses.replace(config, score_at="observation")
        tasks = own_share(self._run.beam_tasks)

        def search(episodes: Sequence[tuple[Task, int]]) -> Iterator[Rollout]:
            own = [task for task, _ in episodes]
            return beam_search(self._agent(), scorer, self._run.pool, own, config, in_step)

        found = self._run_stored(name, [(task, 0) for task in tasks], search)
        labels = {
            "reward_model": reward_model,
            "beam_width": config.beam_width,
            "expansion_width": config.expansion_width,
        }
        self._keep(name, single_episodes(found, "beam", seed=self._seed, **labels))

    def _stored(
        self, name: str, episodes: Sequence[tuple[Task, int]], agent: Agent
    ) -> list[Rollout]:
        slots = self._config.slots
        return self._run_stored(
            name, episodes, lambda missing: rollouts(agent, self._run.pool, missing, slots=slots)
        )

    def _run_stored(
        self,
        name: str,
        episodes: Sequence[tuple[Task, int]],
        search: Callable[[Sequence[tuple[Task, int]]], Iterator[Rollout]],
    ) -> list[Rollout]:
        path = self._directory / name / ROLLOUTS
        with progress(name.replace("_", " "), len(episodes), shown=is_first()) as bar:

            def on_rollout() -> None:
                bar.advance()
                self._stage.tick()

            found = stored_rollouts(path, episodes, search, on_rollout)
        self.ran += found
        return found

    def _keep(self, name: str, episodes: list[Episode]) -> None:
        parts = from_all([dataclasses.asdict(episode) for episode in episodes])

        def keep() -> None:
            found = [episode_from_json(record) for part in parts for record in part]
            variants = list(dict.fromkeys(episode.variant for episode in found))
            order = self._order()
            found.sort(key=lambda e: (variants.index(e.variant), order[e.task.task_id]))
            write_episodes(self._directory / name / "episodes.jsonl", found)
            write_json_atomic(self._directory / name / "results.json", result_rows(found))

        from_first(keep)

    def _order(self) -> dict[str, int]:
        """The number of each test task."""
        return {task.task_id: number for number, task in enumerate(self._run.test_tasks)}


def _check_in_step(run: Run) -> None:
    """Refuses to score inside of decoding where the models have different tokens."""
    config = run.config.evaluate
    if "beam" not in config.methods or config.beam.score_at != "action":
        return
    policy, reward = (load_tokenizer(d) for d in (run.policy_directory, run.reward_directory))
    if policy.fingerprint() != reward.fingerprint():
        raise UserError(
            f"must be observation because the reward model in {run.reward_directory} has another "
            f"tokenizer than the policy in {run.policy_directory}",
            field="evaluate.beam.score_at",
        )
    if reward.chat.closing and run.config.reads_closing(reward.foreign):
        raise UserError(
            f"must be observation because the reward model in {run.reward_directory} is read at "
            "the end of its chat template; or set reward_read_at: stop",
            field="evaluate.beam.score_at",
        )


def _judge(run: Run, policy: Model, engine: Engine) -> JudgeScorer:
    config = run.config.judge
    if config.policy is not None:
        policy = load_policy(pathlib.Path(config.policy), run.config.dtype, run.engine_mesh)
        engine = Engine.of(policy.params, policy.config, run.config.engine, mesh=run.engine_mesh)
    sampling = Sampling(temperature=0.0, max_tokens=config.max_tokens)
    agent = Agent(engine, policy.tokenizer, lambda task: None, sampling, run.config.seed)
    return JudgeScorer(
        agent,
        lambda text: len(policy.tokenizer.encode(text)),
        limit=agent.renderer.limit - len(opening_tokens(policy.tokenizer, None, "")),
        most=config.most,
    )


def _implicit_scorer(run: Run) -> ImplicitScorer:
    model, config = run.implicit_model(), run.config
    return ImplicitScorer(
        model.params,
        run.acting_policy().params,  # the acting policy's own have given up their stacked form
        model.config,
        model.tokenizer,
        run.prompt_of,
        ImplicitSettings(
            beta=config.train_implicit.objective.beta,
            limit=config.engine.context,
            reduction=config.train_implicit.reduction,
            rows=config.engine.extend_rows,
            mesh=run.engine_mesh,
        ),
    )


def report(run: Run, folders: dict[str, pathlib.Path]) -> tuple[list[Any], list[Any]]:
    """Writes report.html, report.json and results.json from what the stages left.

    Returns:
      The result rows and the comparisons.
    """
    episodes = _episodes(run, folders["evaluate"])
    rows, compared = result_rows(episodes), comparisons(episodes)
    scores, by_n = (
        folders["evaluate"] / "best_of_n" / f"{name}.json" for name in ("scores", "by_n")
    )
    explored = stage_ended(folders["explore"])
    trees = list(TreeStore.read(folders["explore"], finished=explored).values())
    write_report(
        run.directory,
        rows,
        compared,
        stages=list(stages(folders)),
        metrics=read_metrics(run.directory / "metrics.jsonl"),
        scores=read_rows(scores, ScoreRow),
        by_n=read_rows(by_n, ByNRow),
        tree=most_telling([tree for tree in trees if tree.iterations]),
    )
    return rows, compared


_FOLDERS = {
    "greedy": ("greedy", False),
    "best_of_n": ("best_of_n", False),
    "beam": ("beam", False),
    "beam_random": ("beam", True),
}
"""What each method's folder holds: the method with a reward model, if any; with random scores."""


def _episodes(run: Run, root: pathlib.Path) -> list[Episode]:
    """The episodes of all methods that have run; of all that were to run, if evaluation has ended.

    Raises:
      UserError: Nothing was evaluated, or a file is missing, damaged or of another method.
    """
    config = run.config.evaluate
    at_random = config.random_beam and "beam" in config.methods
    wanted = [*config.methods, *(["beam_random"] if at_random else [])]
    ended = stage_ended(root)
    episodes = []
    for name, (method, scored_at_random) in _FOLDERS.items():
        path = root / name / "episodes.jsonl"
        if not path.exists() and not (ended and name in wanted):
            continue
        own = read_episodes(path)
        for episode in own:
            known = episode.method == method or (
                name == "best_of_n" and episode.method in BASELINE_METHODS[1:]
            )
            if not known or (episode.reward_model == "random") != scored_at_random:
                raise UserError(
                    f"{path}: holds episodes of {printable(episode.variant.label)}; restore the "
                    f"file, or delete {root} to evaluate again"
                )
        episodes += own
    if not episodes:
        raise UserError(f"{root}: nothing was evaluated yet; `agentrm evaluate` does it")
    return episodes
