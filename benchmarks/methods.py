"""All test-time methods: tokens, environment steps and tasks an hour, many tasks against one.

    python -m benchmarks.methods [--tiny] [--policy RUN] [--methods NAME ...]

Policy, tasks and environments are those of `benchmarks.search`; the reward model is the policy with
a random value head, which costs what a trained one costs. `OPTIONS` holds the options of each
method, chosen so that the methods decode about as many tokens (greedy is one trajectory); the
tokens are printed. Both sides run with the same seed: a batch of all tasks, and every K-th of these
tasks (`--every K`) with concurrency 1, on an engine made for it, on one device or divided as the
batch's, whichever is faster on a first task. Ratios compare seconds for each decoded token.

Exactness: concurrency 1 on the engines of the batch gives the same answers, costs and search nodes,
bit for bit. On engines of other shapes answers may differ, each explained: `near_ties`, all replies
to equal requests that differ do so where two tokens are nearly equally good; `by_scores`, no such
reply differs, and scores that differ by rounding were ordered differently.
"""

from __future__ import annotations

import dataclasses
import gc
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, cast

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from rich.console import Console
from rich.table import Table

from agentrm_jax.agent.agent import Agent
from agentrm_jax.core.protocols import EnvironmentPool, Proposal
from agentrm_jax.core.records import Task, Trajectory
from agentrm_jax.data.render import Renderer
from agentrm_jax.engine.config import EngineConfig
from agentrm_jax.engine.engine import Engine
from agentrm_jax.engine.programs.sampling import Sampling
from agentrm_jax.envs.pool import EnvPool
from agentrm_jax.model import parameters
from agentrm_jax.model.value import readout
from agentrm_jax.pipeline.measured_pool import MeasuredPool
from agentrm_jax.pipeline.models import Model
from agentrm_jax.reward.explicit import ExplicitScorer
from agentrm_jax.runtime.compilations import compilations
from agentrm_jax.runtime.progress import progress
from agentrm_jax.search.methods import METHODS, Method, method_traits, options_text
from agentrm_jax.search.rollouts import Rollout
from benchmarks import latency, measuring, models, search

OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "adaptive_expansion": {"num_samples": 4, "expansion_width": 8, "agreement": 1.0},
    "adaptive_n": {"cost": 0.0, "most": 8},
    "beam": {"beam_width": 2, "expansion_width": 4},
    "best_of_n": {"n": 8},
    "dvts": {"num_subtrees": 2, "expansion_width": 4},
    "guided_mcts": {"num_iterations": 16, "expansion_width": 4},
    "look_ahead": {"beam_width": 1, "expansion_width": 4, "depth": 1},
    "retry": {"num_attempts": 7, "retry_below": 1.0},
    "smc": {"num_particles": 8, "weight_temperature": 0.1},
}
"""By method: at most about 8 turns for each step. A method that is not here has its defaults."""
TURNS = (4, 1)
"""The numbers of turns that these ask for at once: all methods run on the same programs."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Answered:
    """The answers of one run, by task, and what they cost."""

    answers: dict[str, Rollout]
    asked: dict[tuple[str, str], tuple[Trajectory, list[Proposal]]]
    agent: Agent
    seconds: measuring.Seconds
    compile_seconds: float
    policy_tokens: int
    reward_tokens: int
    env_steps: int

    @property
    def tasks_per_hour(self) -> float:
        return 3600 * len(self.answers) / self.seconds.wall


class Bench:
    """One environment and its tasks; runs a method either way.

    Args:
      meshes: Over which a model may be divided, None for one device; the last is the batch's.
    """

    def __init__(
        self,
        model: Model,
        pool: EnvironmentPool,
        tasks: Sequence[Task],
        sizes: search.Sizes,
        meshes: Sequence[Mesh | None] = (None,),
    ) -> None:
        self.model, self.pool, self.tasks, self.sizes = model, pool, tasks, sizes
        self.meshes, self._one = meshes, meshes[0]

    def together(self, method: Method, seed: int) -> Answered:
        """All tasks at the same time, with all of their samples."""
        samples = getattr(method, "n", getattr(method, "most", 1))
        concurrency = len(self.tasks) * samples
        return self._run(method, self.sizes.batch, self.meshes[-1], self.tasks, concurrency, seed)

    def one_at_a_time(self, method: Method, seed: int, every: int = 1) -> Answered:
        """Runs one task of each `every`."""
        return self._run(method, self.sizes.one, self._one, self.tasks[::every], 1, seed)

    def one_at_a_time_at_equal_shapes(self, method: Method, seed: int) -> Answered:
        """The first few."""
        tasks = self.tasks[: self.sizes.same_shapes]
        return self._run(method, self.sizes.batch, self.meshes[-1], tasks, 1, seed)

    def choose(self, method: Method) -> dict[str, float]:
        """Finds out how one at a time is fastest; seconds of the first task either way."""
        seconds = {}
        for mesh in self.meshes:
            for _ in range(2):  # the first time compiles
                answered = self._run(method, self.sizes.one, mesh, self.tasks[:1], 1, 0)
            seconds[mesh] = answered.seconds.wall
        self._one = min(seconds, key=lambda mesh: seconds[mesh])
        return {str(1 if mesh is None else mesh.size): wall for mesh, wall in seconds.items()}

    def _run(
        self,
        method: Method,
        sizes: EngineConfig,
        mesh: Mesh | None,
        tasks: Sequence[Task],
        concurrency: int,
        seed: int,
    ) -> Answered:
        traits, shape = method_traits(method), self.model.config
        params, head = self.model.params, models.make_head(shape)
        if mesh is not None:
            params = jax.device_put(params, parameters.shardings(shape, mesh))
            head = jax.device_put(head, NamedSharding(mesh, PartitionSpec()))
        engine = Engine(params, shape, sizes, mesh=mesh)
        rewards = Engine(params, shape, sizes, readout=readout, head=head, mesh=mesh)
        warmth = 1.0 if traits.temperature is None else traits.temperature
        sampling = Sampling(max_tokens=self.sizes.max_tokens, temperature=warmth)
        agent = Agent(engine, self.model.tokenizer, _no_prompt, sampling, seed, TURNS)
        agent.warm_up()
        policy, pool = search.Recorder(agent), MeasuredPool(self.pool)
        scorer = ExplicitScorer(rewards, Renderer(self.model.tokenizer, _no_prompt, sizes.context))
        running: Any = dataclasses.replace(cast(Any, method), concurrency=concurrency)
        clock = measuring.Clock()
        with compilations() as compiled:
            answers = list(
                running.run(policy, scorer if traits.uses_reward_model else None, pool, tasks, seed)
            )
        seconds = clock.read()
        return Answered(
            answers={answer.trajectory.task.task_id: answer for answer in answers},
            asked=policy.found,
            agent=agent,
            seconds=seconds,
            compile_seconds=compiled.seconds,
            policy_tokens=engine.usage.decoded,
            reward_tokens=rewards.usage.read,
            env_steps=pool.steps,
        )


def _no_prompt(task: Task) -> None:
    return None


def without_seconds(answer: Rollout) -> Rollout:
    return dataclasses.replace(answer, wall_seconds=0.0)


def without_log_probs(answer: Rollout) -> list[tuple[str, str]]:
    """The steps of an answer except for what differs in the last bits between shapes."""
    return [(step.reply, step.transition.observation) for step in answer.trajectory.steps]


def compare_answers(model: Model, a: Answered, b: Answered) -> dict[str, int]:
    """Returns the number of answers that differ, by the explanation of the difference."""
    found = {"answers": len(b.answers), "diverging": 0, "near_ties": 0, "by_scores": 0}
    found["unexplained"] = 0
    for task_id, answer in b.answers.items():
        if without_log_probs(answer) != without_log_probs(a.answers[task_id]):
            gaps = search.reply_gaps(model, task_id, a, b)
            near = max(gaps, default=0.0) < search.NEAR
            found["diverging"] += 1
            found["unexplained" if not near else "near_ties" if gaps else "by_scores"] += 1
    return found


def measure(bench: Bench, method: Method, rounds: int, every: int) -> dict[str, Any]:
    """Runs a method both ways, in turn, each round with another seed."""
    gc.collect()  # engines are parts of reference cycles
    pairs: list[tuple[Answered, Answered]] = []
    for seed in range(1, rounds + 1):
        first = bench.together(method, seed)
        pairs.append((first, bench.one_at_a_time(method, seed, every)))
    last = pairs[-1][0]
    equal = bench.one_at_a_time_at_equal_shapes(method, rounds)
    same = [
        without_seconds(answer) == without_seconds(last.answers[name])
        for name, answer in equal.answers.items()
    ]
    divergence = [compare_answers(bench.model, *pair) for pair in pairs]

    def median(side: int, field: str) -> float:
        """Seconds for each decoded token."""
        return float(
            np.median([getattr(p[side].seconds, field) / p[side].policy_tokens for p in pairs])
        )

    tasks = len(last.answers)
    return {
        "options": options_text(method),
        "tasks": tasks,
        "ratio": median(1, "wall") / median(0, "wall"),
        "ratio_cpu": median(1, "cpu") / median(0, "cpu"),
        "tasks_per_hour": float(np.median([pair[0].tasks_per_hour for pair in pairs])),
        "tasks_one": len(pairs[-1][1].answers),
        "tasks_per_hour_one": float(np.median([pair[1].tasks_per_hour for pair in pairs])),
        "policy_tokens_per_task": last.policy_tokens / tasks,
        "reward_tokens_per_task": last.reward_tokens / tasks,
        "env_steps_per_task": last.env_steps / tasks,
        "compile_seconds": max(answered.compile_seconds for pair in pairs for answered in pair),
        "errors": sum(answer.error is not None for answer in last.answers.values()),
        "exactness": {
            "answers_at_equal_shapes": len(same),
            "identical_at_equal_shapes": sum(same),
            **{key: sum(each[key] for each in divergence) for key in divergence[0]},
        },
        "sides": {
            name: [dataclasses.asdict(pair[side].seconds) for pair in pairs]
            for side, name in enumerate(("together", "one"))
        },
    }


def table(title: str, found: Mapping[str, Mapping[str, Any]]) -> None:
    """Prints a row for each method."""
    shown = Table(title=title)
    for name in ("method", "options"):
        shown.add_column(name, overflow="fold")
    heads = ("tokens", "reward tokens", "env steps", "s", "s, one", "CPU s", "CPU s, one")
    for name in (*heads, "tasks/h", "tasks/h, one", "CPU ratio"):
        shown.add_column(name, justify="right")
    for name, row in found.items():
        seconds = [
            float(np.median([each[kind] for each in row["sides"][side]])) / row[count]
            for kind in ("wall", "cpu")
            for side, count in (("together", "tasks"), ("one", "tasks_one"))
        ]
        costs = [row[f"{key}_per_task"] for key in ("policy_tokens", "reward_tokens", "env_steps")]
        rates = [row["tasks_per_hour"], row["tasks_per_hour_one"]]
        numbers = [f"{number:.4g}" for number in (*costs, *seconds, *rates, row["ratio_cpu"])]
        shown.add_row(name, row["options"], *numbers)
    Console(width=160).print(shown)


def with_less_cache(sizes: search.Sizes, full_steps: int) -> search.Sizes:
    """Returns sizes whose caches shrink with the episodes: several engines exist at a time."""
    tokens = sizes.batch.cache_tokens * sizes.max_steps // full_steps
    pages = max(1, tokens // sizes.batch.page_size)
    batch, one = (
        dataclasses.replace(engine, cache_tokens=pages * sizes.batch.page_size)
        for engine in (sizes.batch, sizes.one)
    )
    return dataclasses.replace(sizes, batch=batch, one=one)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = measuring.parser("methods", __doc__, rounds=1, threads=0)
    parser.add_argument("--policy", type=pathlib.Path, help="folder of a run with a policy")
    parser.add_argument(
        "--environments", nargs="+", choices=search.ENVIRONMENTS, default=search.ENVIRONMENTS
    )
    parser.add_argument("--methods", nargs="+", default=METHODS.names(), help="default: all")
    parser.add_argument("--tasks", type=int, help="run together")
    parser.add_argument("--max-steps", type=int, help="of an episode")
    parser.add_argument("--every", type=int, default=1, help="one at a time: one task of each K")
    parser.add_argument("--workers", type=int, help="processes of the environment that waits")
    given = parser.parse_args(arguments)
    threads = measuring.use_threads(given.threads)
    jax.config.update("jax_num_cpu_devices", threads)
    sizes = search.tiny_sizes() if given.tiny else search.full_sizes()
    if given.tiny:  # the same engine on both sides: half as much to compile
        sizes = dataclasses.replace(sizes, one=sizes.batch)
    changed = {
        key: value for key in ("tasks", "max_steps", "workers") if (value := getattr(given, key))
    }
    sizes = with_less_cache(dataclasses.replace(sizes, **changed), sizes.max_steps)
    methods = {name: METHODS.load(name)(**OPTIONS.get(name, {})) for name in given.methods}
    found: dict[str, dict[str, Any]] = {}
    devices: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder, latency.registered():
        model = (
            search.tiny_policy()
            if given.tiny
            else search.trained_policy(given.policy or pathlib.Path(folder))
        )
        meshes = (None,) if given.tiny else search.meshes_of(model)
        for name in given.environments:
            pool = EnvPool(workers=sizes.workers)
            try:
                tasks = search.tasks_of(name, sizes)
                bench = Bench(model, pool, tasks, sizes, meshes)
                first_method = next(iter(methods.values()))
                devices[name] = bench.choose(first_method)
                bench.together(first_method, 0)  # compiles the programs that all methods share
                found[name] = {}
                with progress(name, len(methods)) as bar:
                    for key, method in methods.items():
                        found[name][key] = measure(bench, method, given.rounds, given.every)
                        bar.advance(ratio_cpu=found[name][key]["ratio_cpu"])
            finally:
                pool.close()
            title = f"{name}: {len(tasks)} tasks together and one at a time; costs of one task"
            table(title, found[name])
    ratios = {
        f"ratio_{name}_{method}{end}": row[f"ratio{end}"]
        for name, rows in found.items()
        for method, row in rows.items()
        for end in ("", "_cpu")
    }
    described = {
        "tasks": sizes.tasks,
        "max_steps": sizes.max_steps,
        "workers": sizes.workers,
        "latency_seconds": latency.SECONDS,
        "one_by_devices": devices,
    }
    print(", ".join(f"{key} {value}" for key, value in measuring.hardware(threads).items()))
    return measuring.finish("methods", {**ratios, **found, **described}, threads)


if __name__ == "__main__":
    main()
