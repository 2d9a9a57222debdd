"""The configuration of an evaluation, and its methods with their reward models."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Literal, cast

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.fields import check_choice, check_fields
from agentrm_jax.core.protocols import EnvironmentPool, Policy, Scorer
from agentrm_jax.core.records import Task
from agentrm_jax.core.seeds import derived_seed
from agentrm_jax.engine.programs.sampling import Sampling
from agentrm_jax.evaluation.episodes import (
    AT_OBSERVATION,
    CONTROLS,
    FEWEST_INVALID,
    LIKELIHOOD,
    RANDOM,
)
from agentrm_jax.reward.places import PLACES, placed
from agentrm_jax.search.methods import (
    METHODS,
    Beam,
    BestOfN,
    Greedy,
    Method,
    SamplingMethod,
    method_traits,
    options_text,
)
from agentrm_jax.search.rollouts import Rollout
from agentrm_jax.search.thresholds import open_thresholds


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """The methods and the test tasks of an evaluation.

    Attributes:
      split: `test`: the environment's test problems, none of which is a training problem; `paper`:
        the paper's list.
      task_seed: Seed of the list of test tasks; that of the run by default. Runs with several
        training seeds need the same one to be tested on the same tasks.
      num_tasks: Test tasks in all, spread evenly over the levels; 0 takes all of the paper's list.
      methods: greedy, best_of_n (with its baselines), beam, or another registered method
        (docs/guides/test_time.md).
      options: The options of registered methods, by name. best_of_n takes `n`, beam takes `beam`.
      n: Trajectories that best-of-n chooses from.
      sampling: How they, and the candidates of a beam, are sampled. Greedy takes temperature 0.
      concurrency: Trajectories that run at the same time. It decides speed, never results.
      beam: Beam search.
      beam_tasks: How many of the tasks beam search runs on; 0 takes all.
      score_at: The places at which reward models score, by their names in `reward.places`:
        `observation`, after the environment's last answer; `action`, before that answer (blind);
        `mean`, `min` and `max` over the steps. Best-of-n scores the same trajectories at each
        place; other methods are run once for each, without those that have a key `score_at` of
        their own set to `action`.
      sampling_seeds: Seeds of sampling. Every method that samples is run with each, and its rows
        are means over them; the models stay the same. With 0 the policy samples from `seed`.
      random_beam: Whether a beam of the same widths is also run with random scores, drawn after the
        observation: what the search gains without a reward model.
      likelihood_beam: Whether a beam of the same widths is also run with the log-probability of the
        replies under the policy as the score: the beam search of language models.
      fewest_invalid_beam: Whether a beam of the same widths is also run that keeps the states with
        the fewest invalid actions, the likeliest among equals: it needs no reward model either.
    """

    split: Literal["test", "paper"] = "test"
    task_seed: int | None = None
    num_tasks: int = 180
    methods: tuple[str, ...] = ("greedy", "best_of_n", "beam")
    options: Annotated[Mapping[str, Method], METHODS] = dataclasses.field(default_factory=dict)
    n: int = 5
    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    concurrency: int = 64
    beam: Beam = dataclasses.field(default_factory=Beam)
    beam_tasks: int = 0
    score_at: tuple[str, ...] = (AT_OBSERVATION,)
    sampling_seeds: tuple[int, ...] = (0,)
    random_beam: bool = False
    likelihood_beam: bool = False
    fewest_invalid_beam: bool = False

    def __post_init__(self) -> None:
        check_fields(
            self,
            task_seed=f"[0, {2**32 - 1}]",
            num_tasks="[0, 1000000]",
            n="[1, 100000]",
            concurrency="[1, 100000]",
            beam_tasks="[0, 1000000]",
        )
        check_choice("split", self.split, ("test", "paper"))
        known = METHODS.names()
        for method in self.methods:
            check_choice("methods", method, known)
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise UserError("must name at least one method, each once", field="methods")
        for place in self.score_at:
            check_choice("score_at", place, PLACES)
        if not self.score_at or len(set(self.score_at)) < len(self.score_at):
            raise UserError("must name at least one place, each once", field="score_at")
        seeds = self.sampling_seeds
        if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0 or max(seeds) >= 2**31:
            raise UserError(
                field="sampling_seeds",
                value=list(seeds),
                expected="at least one number from 0 to 2147483647, each once",
            )
        for name in self.options:
            if name in ("greedy", "best_of_n", "beam"):
                raise UserError(
                    "must be left out; evaluate.n and evaluate.beam set it",
                    field=f"options.{name}",
                )
        if self.num_tasks == 0 and self.split == "test":
            raise UserError(field="num_tasks", value=0, expected="at least 1 if split is test")

    def method(self, name: str) -> Method:
        """Returns a method with its options.

        Raises:
          UserError: No such method, or it cannot be imported.
        """
        built_in = {
            "greedy": lambda: Greedy(concurrency=self.concurrency),
            "best_of_n": lambda: BestOfN(n=self.n, concurrency=self.concurrency),
            "beam": lambda: self.beam,
        }
        if name in built_in:
            return built_in[name]()
        return self.options[name] if name in self.options else METHODS.load(name)()

    @property
    def calibrates(self) -> bool:
        """Whether a threshold of a method has no value and is chosen on training tasks."""
        return any(open_thresholds(self.method(name)) for name in self.methods)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class MethodRun:
    """A test-time method with the reward models that it is run with.

    Attributes:
      name: The name of its folder, its progress bar and its tasks.
      method_name: The name of the method in result rows.
      method: The method.
      reward_models: Names of reward models. Only a `SamplingMethod` has several.
      options: Its options that differ from their defaults, as result rows show them.
      on_beam_tasks: Whether it runs on the tasks of `beam_tasks` instead of all test tasks.
      score_at: The places of the scores in its result rows. Only a `SamplingMethod` has several.
      sampling_seed: The sampling seed.
    """

    name: str
    method_name: str
    method: Method
    reward_models: tuple[str, ...]
    options: str = ""
    on_beam_tasks: bool = False
    score_at: tuple[str, ...] = (AT_OBSERVATION,)
    sampling_seed: int = 0

    @property
    def family(self) -> str:
        """The name without place and seed: `beam_random` for all runs of it."""
        return f"{self.method_name}_{self.control}" if self.control else self.method_name

    @property
    def control(self) -> str | None:
        """The score of a beam search that stands next to that of a reward model, None of others."""
        own = self.method_name == "beam" and len(self.reward_models) == 1
        return self.reward_models[0] if own and self.reward_models[0] in CONTROLS else None

    @property
    def setting(self) -> str:
        """The name without the sampling seed; thresholds are chosen for each setting."""
        return self.name.partition("+")[0]

    def seed(self, seed: int) -> int:
        """Returns the seed of its sampling.

        Args:
          seed: The seed of the run, which is that of sampling seed 0.
        """
        if not self.sampling_seed:
            return seed
        return derived_seed(seed, "sampling", str(self.sampling_seed))

    def placed(self, scorer: Scorer) -> Scorer:
        """Returns the scorer of a search at its place.

        A method that scores at the action by itself gets the scorer as it is.
        """
        return scorer if _scores_at_action(self.method) else placed(scorer, self.score_at[0])

    @property
    def samples(self) -> bool:
        """Whether the method samples n trajectories first and chooses afterwards."""
        return isinstance(self.method, SamplingMethod)

    @property
    def temperature(self) -> float | None:
        """The temperature of the policy, None for that of `evaluate.sampling`."""
        return method_traits(self.method).temperature

    @property
    def row_names(self) -> set[str]:
        """The names of methods in its result rows: its own and those of its baselines."""
        names = {self.method_name}
        if isinstance(self.method, SamplingMethod):
            names |= set(self.method.baselines(lambda task, action: action))
        return names

    def episodes(self, tasks: Sequence[Task]) -> list[tuple[Task, int]]:
        """Returns the (task, sample number) that are to be run for tasks."""
        n = self.method.n if isinstance(self.method, SamplingMethod) else 1
        return [(task, sample) for task in tasks for sample in range(n)]

    def rollouts(
        self,
        policy: Policy,
        scorer: Scorer | None,
        envs: EnvironmentPool,
        episodes: Sequence[tuple[Task, int]],
        seed: int,
    ) -> Iterator[Rollout]:
        """Runs episodes and yields their rollouts as they end.

        Args:
          policy: The policy, with the temperature of the method.
          scorer: The reward model; None for a method that uses none while it runs.
          envs: The environments.
          episodes: (task, sample number), of those that `episodes` returned.
          seed: The seed of the run.
        """
        if isinstance(self.method, SamplingMethod):
            return self.method.sample(policy, envs, episodes)
        tasks = [task for task, _ in episodes]
        found: Iterator[object] = self.method.run(policy, cast(Scorer, scorer), envs, tasks, seed)
        return _answers(self.method_name, found)


def _answers(name: str, found: object) -> Iterator[Rollout]:
    """Yields the answers of a method, of which each task has one: it has the sample number 0."""
    expected = f"method {name}: run must yield a Rollout for each task"
    if not isinstance(found, Iterable):
        raise UserError(f"{expected} (got {type(found).__name__}, not an iterator)")
    for answer in found:
        if not isinstance(answer, Rollout):
            raise UserError(f"{expected} (got {type(answer).__name__})")
        yield dataclasses.replace(answer, sample=0)


def method_runs(config: EvaluateConfig, rewards: Sequence[str]) -> list[MethodRun]:
    """Returns what an evaluation runs, in order.

    Args:
      config: Its configuration.
      rewards: Names of reward models. Best-of-n is run with each, other methods with the first.

    Returns:
      A run for each method; searches have one for each place of the score as well. There is one for
      each sampling seed, but of methods at temperature 0, which sample nothing, one in all.

    Raises:
      UserError: A method cannot be imported.
    """
    return [
        run
        for seed in config.sampling_seeds
        for run in _runs_of_seed(config, rewards, seed)
        if seed == config.sampling_seeds[0] or run.temperature != 0.0
    ]


def _runs_of_seed(config: EvaluateConfig, rewards: Sequence[str], seed: int) -> Iterator[MethodRun]:
    """Yields the runs of one sampling seed."""
    end = f"+seed{seed}" if seed else ""
    for name in config.methods:
        method = config.method(name)
        sampling = isinstance(method, SamplingMethod)
        used, places = (rewards if sampling else rewards[:1]), [config.score_at]
        if not method_traits(method).uses_reward_model:
            used, places = (), [(AT_OBSERVATION,)]
        elif _scores_at_action(method):
            places = [("action",)]
        elif not sampling:
            places = [(place,) for place in config.score_at]
        for place in places:
            apart = (
                ""
                if sampling or place[0] == AT_OBSERVATION or _scores_at_action(method)
                else (f"@{place[0]}")
            )
            yield MethodRun(
                name=f"{name}{apart}{end}",
                method_name=name,
                method=method,
                reward_models=tuple(used),
                options=options_text(method) if name in config.options else "",
                on_beam_tasks=name == "beam",
                score_at=place,
                sampling_seed=seed,
            )
        controls = {
            RANDOM: config.random_beam,
            LIKELIHOOD: config.likelihood_beam,
            FEWEST_INVALID: config.fewest_invalid_beam,
        }
        for control in (each for each, asked in controls.items() if asked and name == "beam"):
            # These scores need no reward model in the decoding step.
            yield MethodRun(
                name=f"beam_{control}{end}",
                method_name="beam",
                method=dataclasses.replace(config.beam, score_at="observation"),
                reward_models=(control,),
                on_beam_tasks=True,
                sampling_seed=seed,
            )


def _scores_at_action(method: Method) -> bool:
    """Whether a method scores replies before they are answered, whatever its scorer."""
    return getattr(method, "score_at", None) == "action"
