"""Search trees an hour: many tasks in one batch against one task at a time.

    python -m benchmarks.search [--tiny] [--policy RUN]

The policy is the 27M model of the other benchmarks with a smaller vocabulary, trained for some
minutes on demonstrations of both environments (`search.yaml`); `--policy` takes the folder of a run
that has done this, or is to do it, to save the minutes. The environments:
  pddl      gripper and blockworld problems; a step takes well below a millisecond
  latency   mazes each of whose calls takes 20 ms, in worker processes; calls of different
            episodes overlap where they are in different workers
Both sides explore the same tasks with the same seed. On CPUs, the batch's engine has a device for
each core, and the model's heads are divided over them. `one at a time` has an engine made for it,
of few rows: what it does not use costs little. Whoever explores one task after another does it so;
on one device that takes all cores, or divided as the batch's, whichever is faster on a first task.

Exactness: one at a time on the engine of the batch gives the same trees, bit for bit; on an engine
of other shapes some trees part ways, each where two tokens are nearly equally good (the logits with
the noise of sampling, by a dense forward pass, differ by less than 0.001).
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from agentrm_jax.agent.agent import Agent
from agentrm_jax.core.protocols import (
    BackgroundPolicy,
    EnvironmentPool,
    Proposal,
    Question,
)
from agentrm_jax.core.records import Task, Trajectory
from agentrm_jax.data.tokenizer import train_tokenizer
from agentrm_jax.data.trees import TreeRecord, TreeStore
from agentrm_jax.engine.config import EngineConfig
from agentrm_jax.engine.engine import Engine
from agentrm_jax.engine.programs.sampling import Sampling
from agentrm_jax.envs.pool import EnvPool
from agentrm_jax.envs.registry import load_family
from agentrm_jax.model import llama, parameters
from agentrm_jax.pipeline.models import Model, load_policy
from agentrm_jax.runtime.sharding import MeshConfig, make_mesh
from agentrm_jax.search.explore import Explorer, SearchConfig
from benchmarks import latency, measuring, models

NEAR = 1e-3
"""Two tokens whose logits with noise differ by less may be ordered either way."""
ENVIRONMENTS = ("pddl", "latency")
CONFIG = pathlib.Path(__file__).with_suffix(".yaml")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """Sizes of the search, and of the two engines."""

    tasks: int
    iterations: int
    expansion_width: int = 5
    max_steps: int
    max_tokens: int
    workers: int
    batch: EngineConfig
    one: EngineConfig
    same_shapes: int


def full_sizes() -> Sizes:
    batch = EngineConfig(
        context=1024,
        decode_rows=32,
        extend_rows=4,
        extend_tokens=48,
        extend_batch=144,
        cache_tokens=196_608,  # nothing is given up: what is read again may differ in the last bits
        max_segments=48,
        instruction_tokens=1,
    )
    return Sizes(
        tasks=32,
        iterations=3,
        max_steps=8,
        max_tokens=48,
        workers=16,
        batch=batch,
        one=dataclasses.replace(batch, decode_rows=8, extend_rows=1, extend_batch=0),
        same_shapes=4,
    )


def tiny_sizes() -> Sizes:
    batch = EngineConfig(
        context=640,
        decode_rows=16,
        extend_rows=4,
        extend_tokens=32,
        cache_tokens=8192,
        max_segments=24,
        instruction_tokens=1,
    )
    return Sizes(
        tasks=3,
        iterations=2,
        expansion_width=2,
        max_steps=3,
        max_tokens=8,
        workers=2,
        batch=batch,
        one=dataclasses.replace(batch, decode_rows=8, extend_rows=1, extend_batch=0),
        same_shapes=2,
    )


class Recorder(BackgroundPolicy):
    """A policy that remembers what it was asked and what it proposed."""

    def __init__(self, policy: Agent) -> None:
        self.policy = policy
        self.found: dict[tuple[str, str], tuple[Trajectory, list[Proposal]]] = {}
        self._asked: dict[int, tuple[Trajectory, str]] = {}

    def submit(self, questions: Sequence[Question]) -> list[int]:
        tickets = self.policy.submit(questions)
        for ticket, (state, purpose, *_) in zip(tickets, questions, strict=True):
            self._asked[ticket] = (state, purpose)
        return tickets

    def start(self) -> None:
        self.policy.start()

    def collect(self) -> list[tuple[int, list[Proposal]]]:
        found = self.policy.collect()
        for ticket, proposals in found:
            state, purpose = self._asked.pop(ticket)
            self.found[state.task.task_id, purpose] = (state, proposals)
        return found

    def room(self) -> int:
        return self.policy.room()


@dataclasses.dataclass(frozen=True, slots=True)
class Explored:
    """The trees of one exploration, and their costs."""

    trees: dict[str, TreeRecord]
    asked: dict[tuple[str, str], tuple[Trajectory, list[Proposal]]]
    seconds: measuring.Seconds
    tokens: int
    agent: Agent

    @property
    def trees_per_hour(self) -> float:
        return 3600 * len(self.trees) / self.seconds.wall


class Bench:
    """One environment, explored either way.

    Args:
      meshes: Over which a model may be divided, None for one device; the last is the batch's.
    """

    def __init__(
        self,
        model: Model,
        pool: EnvironmentPool,
        tasks: Sequence[Task],
        sizes: Sizes,
        meshes: Sequence[Mesh | None] = (None,),
    ) -> None:
        self.model, self.pool, self.tasks, self.sizes = model, pool, tasks, sizes
        self.meshes, self._one = meshes, meshes[0]

    def together(self, seed: int) -> Explored:
        return self._explore(self.sizes.batch, self.meshes[-1], self.tasks, len(self.tasks), seed)

    def one_at_a_time(self, seed: int) -> Explored:
        return self._explore(self.sizes.one, self._one, self.tasks, 1, seed)

    def one_at_a_time_at_equal_shapes(self, seed: int) -> Explored:
        """The first few."""
        tasks = self.tasks[: self.sizes.same_shapes]
        return self._explore(self.sizes.batch, self.meshes[-1], tasks, 1, seed)

    def choose(self) -> dict[str, float]:
        """Finds out how one at a time is fastest; seconds of the first task either way."""
        seconds = {}
        for mesh in self.meshes:
            for _ in range(2):  # the first time compiles
                explored = self._explore(self.sizes.one, mesh, self.tasks[:1], 1, 0)
            seconds[mesh] = explored.seconds.wall
        self._one = min(seconds, key=lambda mesh: seconds[mesh])
        return {str(1 if mesh is None else mesh.size): wall for mesh, wall in seconds.items()}

    def _explore(
        self,
        sizes: EngineConfig,
        mesh: Mesh | None,
        tasks: Sequence[Task],
        slots: int,
        seed: int,
    ) -> Explored:
        params, shape = self.model.params, self.model.config
        if mesh is not None:
            params = jax.device_put(params, parameters.shardings(shape, mesh))
        engine = Engine(params, shape, sizes, mesh=mesh)
        sampling = Sampling(max_tokens=self.sizes.max_tokens)
        branches = (self.sizes.expansion_width, 1)
        agent = Agent(engine, self.model.tokenizer, lambda task: None, sampling, seed, branches)
        agent.warm_up()
        policy = Recorder(agent)
        config = SearchConfig(
            num_iterations=self.sizes.iterations,
            expansion_width=self.sizes.expansion_width,
            concurrency=slots,
        )
        with tempfile.TemporaryDirectory() as folder:
            directory = pathlib.Path(folder)
            store = TreeStore(directory)
            clock = measuring.Clock()
            Explorer(policy, self.pool, store, config).run(tasks, {})
            seconds = clock.read()
            store.close()
            trees = TreeStore.read(directory)
        return Explored(trees, policy.found, seconds, engine.usage.decoded, agent)


def without_log_probs(tree: TreeRecord) -> Any:
    """All of a tree except for what differs in the last bits between shapes."""
    return [
        (
            iteration.path,
            iteration.outcome,
            [
                (n.node, n.parent, n.multiplicity, dataclasses.replace(n.step, log_probs=()))
                for n in iteration.nodes
            ],
        )
        for iteration in tree.iterations
    ]


def compare_trees(model: Model, a: Explored, b: Explored) -> dict[str, int]:
    """Returns the number of trees that differ, and of differences that begin at a near-tie."""
    found = {"trees": len(b.trees), "diverging": 0, "near_ties": 0, "unexplained": 0}
    for task_id, tree in b.trees.items():
        if without_log_probs(tree) != without_log_probs(a.trees[task_id]):
            found["diverging"] += 1
            explained = first_differences_are_near_ties(model, task_id, a, b)
            found["near_ties" if explained else "unexplained"] += 1
    return found


class Recorded(Protocol):
    """A run whose policy was recorded."""

    @property
    def asked(self) -> dict[tuple[str, str], tuple[Trajectory, list[Proposal]]]: ...

    @property
    def agent(self) -> Agent: ...


def first_differences_are_near_ties(model: Model, task_id: str, a: Recorded, b: Recorded) -> bool:
    """Whether all replies to equal questions differ at near-ties only."""
    gaps = reply_gaps(model, task_id, a, b)
    return bool(gaps) and max(gaps) < NEAR


def reply_gaps(model: Model, task_id: str, a: Recorded, b: Recorded) -> list[float]:
    """Returns the gap between the first tokens that differ, for each pair of replies to an equal
    question."""
    gaps = []
    for (own, purpose), (state, proposals) in b.asked.items():
        other = a.asked.get((own, purpose))
        if own != task_id or other is None or _words(other[0]) != _words(state):
            continue
        stop = model.tokenizer.chat.stop_token
        for branch, pair in enumerate(zip(other[1], proposals, strict=True)):
            x, y = ([*p.token_ids, *[stop] * p.stopped] for p in pair)
            if x == y:
                continue
            at = next(i for i, (s, t) in enumerate(zip(x, y, strict=False)) if s != t)
            values = perturbed_logits(model, b.agent, state, purpose, branch, x[:at])
            gaps.append(float(abs(values[x[at]] - values[y[at]])))
    return gaps


def _words(state: Trajectory) -> list[tuple[tuple[int, ...], str]]:
    return [(step.token_ids, step.transition.observation) for step in state.steps]


def perturbed_logits(
    model: Model, agent: Agent, state: Trajectory, purpose: str, branch: int, reply: list[int]
) -> np.ndarray:
    """Logits and sampling noise [V] behind the beginning of a reply, without any cache."""
    request, _ = agent.request(state, purpose)
    tokens = np.concatenate([*request.segments, np.asarray(reply, np.int32)])
    padded = np.zeros((1, agent.engine.sizes.context), np.int32)
    padded[0, : len(tokens)] = tokens
    positions = jnp.arange(padded.shape[1])[None]
    hidden = llama.forward(
        model.params, model.config, jnp.asarray(padded), positions, jnp.ones_like(positions)
    )[:, len(tokens) - 1]
    key = jax.random.fold_in(jax.random.wrap_key_data(jnp.asarray(request.key)), branch)
    noise = jax.random.gumbel(jax.random.fold_in(key, len(reply)), (model.config.vocab_size,))
    noise = noise if agent.sampling.temperature else 0.0
    return np.asarray(llama.logits(model.params, model.config, hidden)[0] + noise)


def measure(bench: Bench, *, rounds: int) -> dict[str, Any]:
    """Explores both ways, in turn, each round with another seed."""
    bench.together(0)
    first_task = bench.choose()  # all is compiled now
    pairs = []
    for seed in range(1, rounds + 1):
        first = bench.together(seed)
        pairs.append((first, bench.one_at_a_time(seed)))
    together, one = ([pair[i] for pair in pairs] for i in (0, 1))
    equal = bench.one_at_a_time_at_equal_shapes(rounds)
    same = [equal.trees[name] == together[-1].trees[name] for name in equal.trees]
    same_tokens = compare_trees(bench.model, together[-1], equal)
    divergence = [compare_trees(bench.model, *pair) for pair in pairs]

    def median(sides: Sequence[Explored], field: str) -> float:
        return float(np.median([getattr(side.seconds, field) for side in sides]))

    trees = [tree for side in together for tree in side.trees.values()]
    return {
        "ratio": median(one, "wall") / median(together, "wall"),
        "ratio_cpu": median(one, "cpu") / median(together, "cpu"),
        "trees_per_hour": float(np.median([side.trees_per_hour for side in together])),
        "trees_per_hour_one": float(np.median([side.trees_per_hour for side in one])),
        "tokens_per_second": together[-1].tokens / together[-1].seconds.wall,
        "nodes_per_tree": float(np.mean([tree.num_nodes for tree in trees])),
        "one_by_devices": first_task,
        "errors": sum(tree.error is not None for tree in trees),
        "exactness": {
            "trees_at_equal_shapes": len(same),
            "identical_at_equal_shapes": sum(same),
            "diverging_at_equal_shapes": same_tokens["diverging"],
            **{key: sum(d[key] for d in divergence) for key in divergence[0]},
        },
        "sides": {
            name: [dataclasses.asdict(side.seconds) for side in sides]
            for name, sides in (("together", together), ("one", one))
        },
    }


def meshes_of(model: Model) -> list[Mesh | None]:
    """One device; and, on CPUs, as many as there are, as far as they divide the model."""
    devices = jax.device_count() if jax.default_backend() == "cpu" else 1
    tensor = math.gcd(devices, model.config.num_kv_heads, model.config.vocab_size)
    return [None] if tensor == 1 else [None, make_mesh(MeshConfig(tensor=tensor))]


def tasks_of(name: str, sizes: Sizes) -> list[Task]:
    family = load_family(name)
    kinds = ("gripper", "blockworld") if name == "pddl" else ("generated",)
    tasks = family.tasks("test", kinds=kinds, n=sizes.tasks)
    return [
        dataclasses.replace(task, max_steps=min(task.max_steps, sizes.max_steps)) for task in tasks
    ]


def trained_policy(directory: pathlib.Path, config: pathlib.Path = CONFIG) -> Model:
    """The policy of a run; trained first where there is none."""
    model = directory / "sft" / "model"
    if not model.exists():
        for stage in ("experts", "sft"):
            command = [sys.executable, "-m", "agentrm_jax.cli.main", stage, str(config)]
            command += ["--output", str(directory)]
            subprocess.run(command, stdout=sys.stderr, check=True)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    policy = load_policy(model, "float32", mesh)
    host = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), policy.params)
    return dataclasses.replace(policy, params=host)


def tiny_policy() -> Model:
    """A policy that knows nothing, with a tokenizer of the environments' own texts."""
    family = load_family("pddl")
    texts = []
    for task in family.tasks("train", kinds=("gripper", "blockworld"), n=8):
        texts.append(family.create().reset(task))
        texts += [turn.reply for turn in family.demonstrate(task) or []]
    tokenizer = train_tokenizer(texts, 400)  # as many there are, and cores divide them
    config = dataclasses.replace(models.SHAPES["tiny"], vocab_size=tokenizer.vocab_size)
    return Model(params=models.make_params(config), config=config, tokenizer=tokenizer)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = measuring.parser("search", __doc__, rounds=1, threads=0)
    parser.add_argument("--policy", type=pathlib.Path, help="folder of a run with a policy")
    parser.add_argument("--environments", nargs="+", choices=ENVIRONMENTS, default=ENVIRONMENTS)
    parser.add_argument("--tasks", type=int, help="explored together")
    parser.add_argument("--iterations", type=int, help="of every tree")
    parser.add_argument("--workers", type=int, help="processes of the environment that waits")
    given = parser.parse_args(arguments)
    threads = measuring.use_threads(given.threads)
    jax.config.update("jax_num_cpu_devices", threads)
    sizes = tiny_sizes() if given.tiny else full_sizes()
    changed = {
        key: value
        for key in ("tasks", "iterations", "workers")
        if (value := getattr(given, key)) is not None
    }
    sizes = dataclasses.replace(sizes, **changed)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, latency.registered():
        model = (
            tiny_policy() if given.tiny else trained_policy(given.policy or pathlib.Path(folder))
        )
        meshes = meshes_of(model)
        for name in given.environments:
            pool = EnvPool(workers=sizes.workers)
            try:
                bench = Bench(model, pool, tasks_of(name, sizes), sizes, meshes)
                found[name] = measure(bench, rounds=given.rounds)
            finally:
                pool.close()
            print(f"{name}: {sizes.tasks} trees of {sizes.iterations} iterations")
            for key, value in found[name].items():
                if key != "sides":
                    print(f"  {key} {value if isinstance(value, dict) else f'{value:.4g}'}")
    ratios = {f"ratio_{name}": values["ratio"] for name, values in found.items()}
    ratios |= {f"ratio_{name}_cpu": values["ratio_cpu"] for name, values in found.items()}
    described = {
        "tasks": sizes.tasks,
        "iterations": sizes.iterations,
        "workers": sizes.workers,
        "latency_seconds": latency.SECONDS,
    }
    return measuring.finish("search", {**ratios, **found, **described}, threads)


if __name__ == "__main__":
    main()
