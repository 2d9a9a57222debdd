"""Plans the stages of a run: compiles their programs for chips that this machine lacks."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jax.sharding import Mesh

from agentrm_jax.core.addresses import is_url
from agentrm_jax.engine.programs.sampling import Sampling
from agentrm_jax.engine.schedule.scheduler import Scheduler
from agentrm_jax.engine.schedule.stopping import Stopping
from agentrm_jax.evaluation.config import method_runs
from agentrm_jax.evaluation.episodes import CONTROLS
from agentrm_jax.model import parameters
from agentrm_jax.model.config import LlamaConfig
from agentrm_jax.model.heads import ValueHead
from agentrm_jax.model.value import Readout
from agentrm_jax.pipeline import models
from agentrm_jax.pipeline.config import RunConfig
from agentrm_jax.pipeline.reward_kinds import Explicit, Implicit, ImplicitPair, Judge
from agentrm_jax.pipeline.reward_names import used_rewards
from agentrm_jax.plan import training, work
from agentrm_jax.plan.abstract_engine import (
    AbstractEngine,
    half_full,
    lowered_decoding,
    lowered_reading,
)
from agentrm_jax.plan.compiling import Target, bytes_on_chip
from agentrm_jax.plan.needs import Program, StagePlan, inference_advice
from agentrm_jax.plan.topologies import Topology
from agentrm_jax.plan.work import Work
from agentrm_jax.runtime.sharding import make_mesh
from agentrm_jax.search.thresholds import threshold_candidates

STAGES = ("sft", "explore", "train-rm", "sample", "train-implicit", "calibrate", "evaluate")
"""The stages that use an accelerator."""

_PAGES_SHARE = 0.75  # of the free memory, as `engine.cache.memory.free_tokens`


def plan(
    config: RunConfig,
    topology: Topology,
    stages: Sequence[str],
    on_compile: Callable[[str, str], None] = lambda stage, program: None,
) -> Iterator[StagePlan]:
    """Compiles the programs of stages; yields a plan for each stage.

    Args:
      config: The run.
      topology: The chips.
      stages: Names from `STAGES`.
      on_compile: Called with stage and program before each compilation.

    Raises:
      UserError: The configuration does not fit the mesh, or a model's shape is not known.
    """
    mesh = make_mesh(config.mesh, topology.devices())
    policy = policy_shape(config)
    for stage in stages:
        target = Target(
            stage=stage, config=config, topology=topology, mesh=mesh, on_compile=on_compile
        )
        if stage in training.STAGES:
            yield training.plan_training(target, policy)
        else:
            yield _plan_inference(target, policy)


def policy_shape(config: RunConfig) -> LlamaConfig:
    """Returns the shape of the policy that a run starts from or makes."""
    if config.policy is not None:
        return models.stored_shape(pathlib.Path(config.policy), "policy")
    context = max(config.engine.context, config.sft.fit.length)
    return models.fresh_shape(config.model, context)


def _reward_models(
    target: Target, policy: LlamaConfig, resident: dict[str, float]
) -> list[Program]:
    """Adds the reward models that a stage opens to `resident`.

    Returns:
      The programs in which they read. Reward models of one shape share a program; those without an
      engine (the implicit ones, and judges by log-probabilities) are counted by their parameters.
    """
    config = target.config
    programs: list[Program] = []
    compiled: list[tuple[LlamaConfig, ValueHead | None]] = []
    for name, kind in _opened(target).items():
        label = "reward model" if name == "explicit" else f"reward model {name}"
        if isinstance(kind, Explicit):
            shape, head = _reward_shape(config, policy, kind.model or config.reward_model)
        elif isinstance(kind, Judge) and is_url(config.judge.policy):
            continue  # a served judge takes no memory here
        elif isinstance(kind, Judge) and config.judge.policy and config.judge.form != "log_probs":
            shape, head = models.stored_shape(pathlib.Path(config.judge.policy), "policy"), None
        else:
            for part, part_shape in _held_policies(config, kind, policy).items():
                params = target.abstract_for_scoring(parameters.describe(part_shape))
                resident[f"{label}: {part}'s parameters"] = bytes_on_chip(params)
            continue
        engine = _engine(label, target, shape, resident, head)
        if (shape, head) not in compiled:
            compiled.append((shape, head))
            programs.append(_prefill(f"{label} reads", engine, target))
    return programs


def _opened(target: Target) -> dict[str, Any]:
    """The reward models that a stage opens and their members, by name; members first."""
    config = target.config
    runs = method_runs(config.evaluate, config.rewards)
    names = [run.reward_models for run in runs]
    if target.stage == "calibrate":  # scores by the first one
        names = [run.reward_models[:1] for run in runs if threshold_candidates(run.method)]
    distinct = dict.fromkeys(
        name for run_names in names for name in run_names if name not in CONTROLS
    )
    return used_rewards(list(distinct), config.reward_options)


def _held_policies(config: RunConfig, kind: Any, policy: LlamaConfig) -> dict[str, LlamaConfig]:
    """The shapes of the policies that a reward model holds next to the run's own engine."""
    if isinstance(kind, Implicit):
        return {"policy": policy, "reference": policy}
    given: dict[str, str] = {}
    if isinstance(kind, ImplicitPair):
        given = {"policy": kind.policy, "reference": kind.reference}
    elif isinstance(kind, Judge) and config.judge.policy:
        given = {"policy": config.judge.policy}
    return {
        part: models.stored_shape(pathlib.Path(directory), "policy")
        for part, directory in given.items()
    }


def _reward_shape(
    config: RunConfig, policy: LlamaConfig, given: str | None
) -> tuple[LlamaConfig, ValueHead]:
    if given is None:
        return policy, config.train_rm.head
    directory = pathlib.Path(given)
    return models.stored_shape(directory, "reward"), models.stored_head(directory)


def _plan_inference(target: Target, policy: LlamaConfig) -> StagePlan:
    """Compiles prefill and decoding of the engines that a stage holds."""
    config, mesh = target.config, target.mesh
    sampling, widths = _decoders(target)
    resident: dict[str, float] = {}
    programs: list[Program] = []
    if config.agent.uses_model:
        engine = _engine("policy", target, policy, resident)
        programs.append(_prefill("policy reads", engine, target))
        programs += [_decoding(engine, target, sampling, branches) for branches in widths]
    if target.stage in ("calibrate", "evaluate"):
        programs += _reward_models(target, policy, resident)
    hbm = target.topology.chip.hbm
    result = StagePlan(name=target.stage, resident=resident, programs=programs, hbm=hbm, advice=[])
    return dataclasses.replace(result, advice=inference_advice(config, mesh, policy, result))


def _decoders(target: Target) -> tuple[Sampling, list[tuple[int, ...]]]:
    """Returns the sampling of a stage, and the branch widths of each decoder that it makes."""
    config = target.config
    if target.stage == "explore":
        return config.explore.sampling, [config.explore.search.branches]
    if target.stage == "sample":
        return config.sample.sampling, [(1,)]
    widths: list[tuple[int, ...]] = [(1,)]
    if target.stage == "calibrate":
        return config.evaluate.sampling, widths
    if "beam" in config.evaluate.methods and config.evaluate.beam.expansion_width > 1:
        widths.append((config.evaluate.beam.expansion_width,))
    return config.evaluate.sampling, widths


def _engine(
    name: str,
    target: Target,
    shape: LlamaConfig,
    resident: dict[str, float],
    head: ValueHead | None = None,
) -> AbstractEngine:
    """An engine of a policy or, with a head, of a reward model.

    The bytes that it keeps on each chip are added to `resident`.
    """
    if head is None:
        params = target.abstract_for_scoring(parameters.describe(shape))
        options: dict[str, Any] = {}
    else:
        whole = target.abstract_for_scoring(parameters.describe_reward(shape, head.outputs))
        params, options = whole["trunk"], {"readout": Readout(head), "head": whole["value_head"]}
    resident[f"{name}'s parameters"] = bytes_on_chip(params)
    mesh, sizes = target.mesh, target.config.engine
    if not sizes.cache_tokens:
        token = work.kv_bytes(shape, 1, target.number(shape)) / mesh.shape["tensor"]
        free = _PAGES_SHARE * (target.topology.chip.hbm - sum(resident.values()))
        sizes = dataclasses.replace(sizes, cache_tokens=max(1, int(free / token)))
    engine = AbstractEngine(params, shape, sizes, mesh=mesh, **options)
    pool = engine.programs.model.pool
    tokens = pool.num_pages * sizes.page_size
    resident[f"{name}'s pages ({tokens:,} tokens)"] = bytes_on_chip(pool)
    return engine


def _prefill(name: str, engine: AbstractEngine, target: Target) -> Program:
    """A prefill call whose rows are all full and follow half of the longest context."""
    sizes = engine.sizes
    num_rows = math.prod(engine.prefill.shape) / sizes.extend_tokens

    def needed(rows: float) -> Work:
        return work.reading(
            engine.config, rows, sizes.extend_tokens, sizes.context // 2, sizes.siblings,
            target.number(engine.config),
        )  # fmt: skip

    lowered, rows = lowered_reading(engine)
    program = Program(
        name=name,
        unit="a call",
        work=_on_each_chip(needed, num_rows, target.mesh),
        model_flops=needed(num_rows).flops,
        handed=_handed(engine),
        assumed=half_full(sizes, rows.context.own),
    )
    return target.compiled(program, lambda: lowered)


def _decoding(
    engine: AbstractEngine, target: Target, sampling: Sampling, branches: tuple[int, ...]
) -> Program:
    """Decoding of one token in every row, which follow half of the longest context."""
    name = f"policy decodes {' and '.join(map(str, branches))} of each conversation"
    scheduler = Scheduler(engine, sampling, Stopping(tokens=(0,)), branches)
    lowered, rows = lowered_decoding(scheduler)
    num_rows = len(rows.last_tokens)
    # The branch widths have the same number of rows each; a prompt is read once for its branches.
    shared_by = len(branches) / sum(1 / width for width in branches)
    capacity = sum(len(context.prefix_ids) for context in rows.contexts)

    def needed(rows: float) -> Work:
        return work.decoding_token(
            engine.config, rows, engine.sizes.context // 2, shared_by, sampling.max_tokens / 2,
            target.number(engine.config),
        )  # fmt: skip

    program = Program(
        name=name,
        unit=f"a token of {num_rows} rows",
        work=_on_each_chip(needed, num_rows, target.mesh),
        model_flops=needed(num_rows).flops,
        handed=_handed(engine),
        units=engine.sizes.decode_tokens,
        assumed=half_full(
            engine.sizes, rows.contexts[0].own, rows.tails, num_rows / shared_by / capacity
        ),
    )
    return target.compiled(program, lambda: lowered)


def _on_each_chip(needed: Callable[[float], Work], rows: float, mesh: Mesh) -> Work:
    """The least work of a chip: rows are split over `data`, the rest at best over other axes."""
    replica, chips = needed(rows / mesh.shape["data"]), mesh.shape["tensor"] * mesh.shape["fsdp"]
    return Work(replica.flops / chips, replica.bytes / chips)


def _handed(engine: AbstractEngine) -> float:
    """The bytes of the resident arguments of an engine's programs."""
    model = engine.programs.model
    return bytes_on_chip((model.params, model.pool))
