"""Search trees of one policy behind several engines: the part `trees` of `benchmarks.servers`."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import shlex
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from agentrm_jax.agent.agent import Agent
from agentrm_jax.agent.server import ServerPolicy
from agentrm_jax.clients.connection import ServedModelConfig
from agentrm_jax.core.protocols import Policy
from agentrm_jax.core.records import Task
from agentrm_jax.data.tokenizer import train_tokenizer
from agentrm_jax.data.trees import TreeRecord, TreeStore
from agentrm_jax.engine.config import EngineConfig
from agentrm_jax.engine.engine import Engine
from agentrm_jax.engine.programs.sampling import Sampling
from agentrm_jax.envs.pool import EnvPool
from agentrm_jax.envs.registry import load_family
from agentrm_jax.pipeline.models import Model, load_policy
from agentrm_jax.runtime.sharding import MeshConfig, make_mesh
from agentrm_jax.search.explore import Explorer
from agentrm_jax.search.search_config import SearchConfig
from benchmarks import models

ENVIRONMENT, KIND = "babyai", "GoToRedBallGrey"
OURS = "ours"
TRANSFORMERS_BODY = json.dumps({"generation_config": json.dumps({"do_sample": True})})
"""Without it, `transformers serve` ignores the temperature and decodes the likeliest tokens."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """Sizes of the search.

    Attributes:
      trees: Trees of a round, which grow at the same time.
      slow_trees: Trees of a round behind `transformers serve`: the first of the same tasks.
      iterations: Iterations of a tree.
      width: Turns that are sampled when a node is expanded.
      max_steps: Most steps of an episode.
      max_tokens: Most tokens of a turn.
      context: Most tokens of a conversation and its reply.
    """

    trees: int = 4
    slow_trees: int = 1
    iterations: int = 2
    width: int = 4
    max_steps: int = 4
    max_tokens: int = 24
    context: int = 1024

    @property
    def rows(self) -> int:
        """Turns that are decoded at the same time."""
        return self.trees * self.width


TINY = Sizes(trees=2, iterations=1, width=2, max_steps=2, max_tokens=8)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Contender:
    """A policy behind an engine.

    Attributes:
      policy: Returns the policy with a seed.
      usage: Tokens that were read and decoded so far; read ones without those of a prefix cache.
      trees: Trees of a round.
      process: The process of the server, None for this process or if it was not started here.
      facts: What the probe of a server found.
    """

    policy: Callable[[int], Policy]
    usage: Any
    trees: int
    process: int | None = None
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class Round:
    """Work of one contender in one round."""

    trees: Sequence[TreeRecord]
    wall: float
    cpu: float
    read: int
    decoded: int


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this part."""
    group = parser.add_argument_group("trees")
    group.add_argument("--model", type=pathlib.Path, help="Hugging Face directory of the policy")
    group.add_argument("--llama-server", metavar="PROGRAM", help="llama.cpp's `llama-server`")
    group.add_argument("--gguf", type=pathlib.Path, help="the policy's file for llama.cpp")
    group.add_argument(
        "--llama-arguments", default="", metavar="TEXT", help="further arguments of llama-server"
    )
    group.add_argument(
        "--transformers", metavar="PROGRAM", help="transformers' command line, `transformers`"
    )
    group.add_argument(
        "--transformers-arguments", default="", metavar="TEXT", help="those of transformers serve"
    )
    group.add_argument(
        "--server", action="append", default=[], metavar="NAME=URL", help="one that runs already"
    )
    for field in dataclasses.fields(Sizes):
        group.add_argument(f"--{field.name.replace('_', '-')}", type=int, help=f"{field.default}")


def sizes_of(given: argparse.Namespace) -> Sizes:
    """The sizes that the options ask for."""
    names = [field.name for field in dataclasses.fields(Sizes)]
    changed = {name: value for name in names if (value := getattr(given, name)) is not None}
    return dataclasses.replace(TINY if given.tiny else Sizes(), **changed)


def measure(given: argparse.Namespace, threads: int) -> dict[str, Any]:
    """Explores the same tasks with every contender, in turn, each round with new tasks."""
    sizes = sizes_of(given)
    with contextlib.ExitStack() as stack:
        contenders = {OURS: _ours(given.model, sizes)}
        for name, url, process in stack.enter_context(_servers(given, sizes, threads)):
            slow = name == "transformers"
            body, trees = (TRANSFORMERS_BODY, sizes.slow_trees) if slow else ("", sizes.trees)
            contenders[name] = _served(url, sizes, trees, body, process)
        envs = stack.enter_context(EnvPool())
        rounds = _interleaved(contenders, envs, sizes, given.rounds)
    found = {name: _summary(rounds[name], contenders[name]) for name in contenders}
    _print_table(found)
    ours = found[OURS]
    ratios = {
        f"ratio_{key}_{name}": ratio
        for name, side in found.items()
        if name != OURS
        for key, ratio in (
            ("trees", ours["trees_per_hour"] / side["trees_per_hour"]),
            ("read", side["tokens_read_per_tree"] / max(ours["tokens_read_per_tree"], 1)),
        )
    }
    return {**ratios, "trees": found, "sizes": dataclasses.asdict(sizes)}


def _ours(folder: pathlib.Path | None, sizes: Sizes) -> Contender:
    """Our engine, compiled."""
    model = _tiny_policy() if folder is None else _policy(folder)
    engine_sizes = EngineConfig(
        context=sizes.context,
        decode_rows=sizes.rows,
        extend_rows=8,
        cache_tokens=32_768,
        instruction_tokens=sizes.context,
    )
    engine = Engine(model.params, model.config, engine_sizes)
    prompt, sampling = load_family(ENVIRONMENT).prompt(), Sampling(max_tokens=sizes.max_tokens)

    def policy(seed: int) -> Agent:
        branches = (sizes.width, 1)
        return Agent(engine, model.tokenizer, lambda task: prompt, sampling, seed, branches)

    policy(0).warm_up()
    return Contender(policy=policy, usage=engine.usage, trees=sizes.trees)


def _policy(folder: pathlib.Path) -> Model:
    return load_policy(folder, "float32", make_mesh(MeshConfig()))


def _tiny_policy() -> Model:
    """A policy that knows nothing, with a tokenizer of the environment's own texts."""
    family = load_family(ENVIRONMENT)
    [task] = family.tasks("train", kinds=(KIND,), n=1)
    turns = family.demonstrate(task) or []
    texts = [family.prompt().instruction, family.create().reset(task), *(t.reply for t in turns)]
    tokenizer = train_tokenizer(texts, 400)
    config = dataclasses.replace(models.SHAPES["tiny"], vocab_size=tokenizer.vocab_size)
    config = dataclasses.replace(config, max_positions=4096)
    return Model(params=models.make_params(config), config=config, tokenizer=tokenizer)


def _served(url: str, sizes: Sizes, trees: int, extra_body: str, process: int | None) -> Contender:
    """A policy behind a probed server. The tokens of the probe are not counted."""
    policy = ServerPolicy.connect(
        url,
        {ENVIRONMENT: load_family(ENVIRONMENT).prompt()},
        sampling=Sampling(max_tokens=sizes.max_tokens),
        config=ServedModelConfig(
            concurrency=sizes.rows, request_seconds=3600.0, extra_body=extra_body
        ),
    )
    return Contender(
        policy=policy.with_seed,
        usage=policy.usage,
        trees=trees,
        process=process,
        facts=dataclasses.asdict(policy.facts),
    )


@contextlib.contextmanager
def _servers(
    given: argparse.Namespace, sizes: Sizes, threads: int
) -> Iterator[list[tuple[str, str, int | None]]]:
    """Starts the servers; gives the name, the address and the process of each."""
    commands: dict[str, list[str]] = {}
    if given.llama_server:
        context = sizes.context * sizes.rows  # of all slots together
        commands["llama.cpp"] = [
            given.llama_server, "-m", str(given.gguf), "-c", str(context), "-np", str(sizes.rows),
            "-t", str(threads), *shlex.split(given.llama_arguments),
        ]  # fmt: skip
    if given.transformers:
        commands["transformers"] = [
            given.transformers, "serve", str(given.model), "--device", "cpu", "--dtype", "float32",
            *shlex.split(given.transformers_arguments),
        ]  # fmt: skip
    running: list[tuple[str, str, int | None]] = []
    with contextlib.ExitStack() as stack:
        for name, command in commands.items():
            port = _free_port()
            process = stack.enter_context(_started([*command, "--port", str(port)], threads))
            running.append((name, f"http://127.0.0.1:{port}", process.pid))
        yield running + [(*each.split("=", 1), None) for each in given.server]  # type: ignore[misc]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@contextlib.contextmanager
def _started(command: Sequence[str], threads: int) -> Iterator[subprocess.Popen[bytes]]:
    """A server in a process of its own, with as many threads as our engine."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            yield process
        except BaseException:
            if process.poll() is not None:
                log.seek(0)
                print(log.read()[-2000:].decode("utf-8", "replace"))
            raise
        finally:
            process.kill()
            process.wait()


def _interleaved(
    contenders: Mapping[str, Contender], envs: EnvPool, sizes: Sizes, rounds: int
) -> dict[str, list[Round]]:
    tasks = load_family(ENVIRONMENT).tasks("train", kinds=(KIND,), n=rounds * sizes.trees)
    tasks = [dataclasses.replace(task, max_steps=sizes.max_steps) for task in tasks]
    found: dict[str, list[Round]] = {name: [] for name in contenders}
    for number in range(rounds):
        own = tasks[number * sizes.trees : (number + 1) * sizes.trees]
        for name in list(contenders)[:: -1 if number % 2 else 1]:
            contender = contenders[name]
            found[name].append(_explored(contender, envs, own[: contender.trees], sizes, number))
    return found


def _explored(
    contender: Contender, envs: EnvPool, tasks: Sequence[Task], sizes: Sizes, seed: int
) -> Round:
    config = SearchConfig(
        num_iterations=sizes.iterations, expansion_width=sizes.width, concurrency=len(tasks)
    )
    policy, usage = contender.policy(seed), contender.usage
    read, decoded = usage.read, usage.decoded
    with tempfile.TemporaryDirectory() as folder:
        store = TreeStore(pathlib.Path(folder))
        began, cpu = time.monotonic(), _cpu_seconds(contender.process)
        Explorer(policy, envs, store, config).run(tasks, {})
        wall, cpu = time.monotonic() - began, _cpu_seconds(contender.process) - cpu
        store.close()
        trees = list(TreeStore.read(pathlib.Path(folder)).values())
    return Round(trees, wall, cpu, usage.read - read, usage.decoded - decoded)


def _cpu_seconds(process: int | None) -> float:
    """CPU-seconds of this process and of a server's process, all of its threads."""
    seconds = time.process_time()
    if process is not None:
        fields = pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds


def _summary(rounds: Sequence[Round], contender: Contender) -> dict[str, Any]:
    trees = [tree for each in rounds for tree in each.trees]

    def median(values: Iterator[float]) -> float:
        return float(np.median(list(values)))

    return {
        "trees_per_hour": median(3600 * len(each.trees) / each.wall for each in rounds),
        "cpu_seconds_per_tree": median(each.cpu / len(each.trees) for each in rounds),
        "tokens_read_per_tree": sum(each.read for each in rounds) / len(trees),
        "tokens_decoded_per_tree": sum(each.decoded for each in rounds) / len(trees),
        "nodes_per_tree": float(np.mean([tree.num_nodes for tree in trees])),
        "trees": len(trees),
        "errors": sum(tree.error is not None for tree in trees),
        "failed_candidates": sum(len(tree.failures) for tree in trees),
        "rounds": [{"trees": len(r.trees), "wall": r.wall, "cpu": r.cpu} for r in rounds],
        "facts": dict(contender.facts),
    }


def _print_table(found: Mapping[str, Mapping[str, Any]]) -> None:
    print("trees")
    width = max(map(len, found))
    for name, side in found.items():
        print(
            f"  {name:{width}}  {side['trees_per_hour']:8.0f} an hour"
            f"  CPU {side['cpu_seconds_per_tree']:8.2f} s a tree"
            f"  {side['tokens_read_per_tree']:7.0f} tokens read, "
            f"{side['tokens_decoded_per_tree']:6.0f} decoded a tree"
        )
