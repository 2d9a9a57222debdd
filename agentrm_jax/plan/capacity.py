"""What a run needs of TPUs: its real programs, compiled for chips that are not there."""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from agentrm_jax.core.errors import UserError
from agentrm_jax.engine.programs.sampling import Sampling
from agentrm_jax.engine.schedule.scheduler import Scheduler
from agentrm_jax.engine.schedule.stopping import Stopping
from agentrm_jax.model import lora, parameters
from agentrm_jax.model.config import LlamaConfig
from agentrm_jax.model.value import HeadConfig, Readout
from agentrm_jax.pipeline import models
from agentrm_jax.pipeline.config import (
    ImplicitTrainConfig,
    RewardTrainConfig,
    RunConfig,
    SftTrainConfig,
    TrainConfig,
)
from agentrm_jax.pipeline.losses import MASTER, implicit_loss, reward_loss, sft_loss
from agentrm_jax.plan import work
from agentrm_jax.plan.abstract_engine import AbstractEngine, lowered_decoding, lowered_reading
from agentrm_jax.plan.chips import Topology
from agentrm_jax.plan.needs import Program, StagePlan, answering_advice, training_advice
from agentrm_jax.plan.programs import exchanges_of, memory_of
from agentrm_jax.plan.work import Work
from agentrm_jax.runtime.sharding import make_mesh, named_sharding
from agentrm_jax.train.optimizer import make_optimizer
from agentrm_jax.train.step import LossFn, abstract_state, make_train_step

STAGES = ("sft", "explore", "train-rm", "sample", "train-implicit", "evaluate")
"""Those that have work for an accelerator."""


def plan(
    config: RunConfig,
    topology: Topology,
    stages: Sequence[str],
    on_compile: Callable[[str, str], None] = lambda stage, program: None,
) -> Iterator[StagePlan]:
    """Compiles what the stages run, one program after another.

    Args:
      on_compile: Called with stage and program before each compilation.

    Raises:
      UserError: The configuration does not fit the mesh, or a model's shape is not known.
    """
    mesh = make_mesh(config.mesh, topology.devices())
    policy = policy_shape(config)
    for stage in stages:

        def compiling(program: str, stage: str = stage) -> None:
            on_compile(stage, program)

        if stage == "sft":
            description = parameters.describe(policy)
            loss = sft_loss(config, policy, mesh)
            yield _training(
                stage, config, config.sft, policy, description, loss, mesh, topology, compiling
            )
        elif stage == "train-rm":
            description = parameters.describe_reward(policy, config.train_rm.head.outputs)
            loss = reward_loss(config, policy, mesh)
            yield _training(
                stage, config, config.train_rm, policy, description, loss, mesh, topology, compiling
            )
        elif stage == "train-implicit":
            description = parameters.describe(policy)
            loss = implicit_loss(config, policy, mesh)
            own = config.train_implicit
            yield _training(
                stage, config, own, policy, description, loss, mesh, topology, compiling
            )
        else:
            yield _answering(stage, config, policy, mesh, topology, compiling)


def policy_shape(config: RunConfig) -> LlamaConfig:
    if config.policy is not None:
        return models.stored_shape(pathlib.Path(config.policy), "policy")
    context = max(config.engine.context, config.sft.fit.length)
    return models.fresh_shape(config.model, context)


def _reward_shape(config: RunConfig, policy: LlamaConfig) -> tuple[LlamaConfig, HeadConfig]:
    if config.reward_model is None:
        return policy, config.train_rm.head
    directory = pathlib.Path(config.reward_model)
    return models.stored_shape(directory, "reward"), models.stored_head(directory)


def _training(
    stage: str,
    config: RunConfig,
    train: TrainConfig,
    shape: LlamaConfig,
    description: parameters.Params,
    loss: LossFn,
    mesh: Mesh,
    topology: Topology,
    compiling: Callable[[str], None],
) -> StagePlan:
    """An update of the trainer (`train.fit`)."""
    fit = train.fit
    fit.check_mesh(mesh)
    optimizer = make_optimizer(train.optimizer, 1000)  # the number of updates is a constant
    frozen = []
    if train.lora.rank:
        adapters = lora.describe_adapters(description, train.lora)
        description, still = lora.parts(description, adapters)
        frozen = [parameters.abstract_of(still, config.dtype, mesh)]
        loss = lora.adapted(loss, train.lora)
    state = abstract_state(parameters.abstract_of(description, MASTER, mesh), optimizer, mesh)
    placed, *lie = jax.tree.map(lambda x: x.sharding, (state, *frozen))
    rows = named_sharding(mesh, ("batch", "length"))

    def field(dtype: Any, tokens: int = fit.length) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((fit.batch_size, tokens), dtype, sharding=rows)

    batch: dict[str, jax.ShapeDtypeStruct] = dict.fromkeys(
        ("tokens", "segments", "positions"), field(jnp.int32)
    )
    labels = _labels(train)
    batch |= dict.fromkeys(("weights", "targets"), field(jnp.float32, labels or fit.length))
    if labels:
        batch["only"] = field(jnp.int32, labels)
    if _rows_are_trees(train):
        batch["until"] = field(jnp.int32)
    step = make_train_step(loss, optimizer, placed, mesh, fit.accumulation, *lie)
    resident = {"parameters and optimizer": _bytes_on_chip(state)}
    needed = _training_work(config, train, shape, mesh, resident["parameters and optimizer"])
    if frozen:
        resident["frozen parameters"] = _bytes_on_chip(frozen)
    model = work.training_flops(
        shape, fit.batch_size, fit.length,
        logits=_vocab_chunks(train) > 0, frozen=bool(frozen), only=labels,
    )  # fmt: skip
    compiling("update")
    program = _compiled(
        "update", "an update", step.lower(state, batch, *frozen), needed, model,
        sum(resident.values()),
    )  # fmt: skip
    found = StagePlan(
        name=stage, resident=resident, programs=[program], hbm=topology.chip.hbm, advice=[]
    )
    return dataclasses.replace(found, advice=training_advice(config, mesh, found))


def _rows_are_trees(train: TrainConfig) -> bool:
    if isinstance(train, RewardTrainConfig):
        return train.packing == "trees"
    return isinstance(train, ImplicitTrainConfig) and train.objective.loss == "dpo"


def _labels(train: TrainConfig) -> int | None:
    """Of a row, where only those are computed to the end: both ends of steps of 64 tokens."""
    return train.fit.length // 32 if isinstance(train, RewardTrainConfig) else None


def _vocab_chunks(train: TrainConfig) -> int:
    """Of the losses that need logits; 0 of the others."""
    return train.vocab_chunks if isinstance(train, SftTrainConfig | ImplicitTrainConfig) else 0


def _training_work(
    config: RunConfig, train: TrainConfig, shape: LlamaConfig, mesh: Mesh, state: float
) -> Work:
    """Least work of an update on each chip, what is computed anew included: the state is read and
    written once, the weights are read in each pass over the layers."""
    fit, chunks, frozen = train.fit, _vocab_chunks(train), train.lora.rank > 0
    anew = fit.remat == "block"
    count = functools.partial(
        work.training_flops, shape, fit.batch_size, fit.length, only=_labels(train)
    )
    flops, layers = count(logits=chunks > 0, frozen=frozen), count(logits=False)
    flops += layers / 3 * anew
    if chunks > 1:
        flops += 2.0 * work.head_weights(shape) * fit.batch_size * fit.length
    passes = (3 + anew - frozen) * fit.accumulation
    itemsize = jnp.dtype(config.dtype).itemsize
    weights = passes * work.layer_weights(shape) * itemsize / mesh.shape["tensor"]
    return Work(flops / mesh.size, 2 * state + weights)


def _answering(
    stage: str,
    config: RunConfig,
    policy: LlamaConfig,
    mesh: Mesh,
    topology: Topology,
    compiling: Callable[[str], None],
) -> StagePlan:
    """Reading and decoding of the engines that `explore` or `evaluate` hold."""
    if stage == "explore":
        sampling, decoders = config.explore.sampling, [(config.explore.search.expansion_width, 1)]
    elif stage == "sample":
        sampling, decoders = config.sample.sampling, [(1,)]
    else:
        sampling, decoders = config.evaluate.sampling, [(1,)]
        if "beam" in config.evaluate.methods and config.evaluate.beam.expansion_width > 1:
            decoders.append((config.evaluate.beam.expansion_width,))
    resident: dict[str, float] = {}
    engine = _engine("policy", config, policy, mesh, topology, resident)
    programs = list(_reading("policy reads", engine, config, mesh, compiling))
    for branches in decoders:
        programs += _decoding(engine, config, sampling, branches, mesh, compiling)
    if stage == "evaluate" and {"best_of_n", "beam"} & set(config.evaluate.methods):
        shape, head = _reward_shape(config, policy)
        scorer = _engine("reward model", config, shape, mesh, topology, resident, head)
        programs += _reading("reward model reads", scorer, config, mesh, compiling)
    found = StagePlan(
        name=stage, resident=resident, programs=programs, hbm=topology.chip.hbm, advice=[]
    )
    return dataclasses.replace(found, advice=answering_advice(config, mesh, policy, found))


def _engine(
    name: str,
    config: RunConfig,
    shape: LlamaConfig,
    mesh: Mesh,
    topology: Topology,
    resident: dict[str, float],
    head: HeadConfig | None = None,
) -> AbstractEngine:
    """An engine of a policy or, with a head, a reward model; notes what it keeps on each chip."""
    if head is None:
        params = parameters.abstract_of(parameters.describe(shape), config.dtype, mesh)
        options: dict[str, Any] = {}
    else:
        description = parameters.describe_reward(shape, head.outputs)
        whole = parameters.abstract_of(description, config.dtype, mesh)
        params, options = whole["trunk"], {"readout": Readout(head), "head": whole["value_head"]}
    resident[f"{name}'s parameters"] = _bytes_on_chip(params)
    sizes = config.engine
    if not sizes.cache_tokens:  # as `engine.cache.memory.free_tokens`
        itemsize = jnp.dtype(config.dtype).itemsize
        token = work.kv_bytes(shape, 1, itemsize) / mesh.shape["tensor"]
        free = 0.75 * (topology.chip.hbm - sum(resident.values()))
        sizes = dataclasses.replace(sizes, cache_tokens=max(1, int(free / token)))
    engine = AbstractEngine(params, shape, sizes, mesh=mesh, **options)
    pool = engine.programs.model.pool
    tokens = pool.num_pages * sizes.page_size
    resident[f"{name}'s pages ({tokens:,} tokens)"] = _bytes_on_chip(pool)
    return engine


def _reading(
    name: str,
    engine: AbstractEngine,
    config: RunConfig,
    mesh: Mesh,
    compiling: Callable[[str], None],
) -> Iterator[Program]:
    """A call as full as can be, behind half of the longest conversation."""
    sizes = engine.sizes
    num_rows = math.prod(engine.prefill.shape) / sizes.extend_tokens

    def needed(rows: float) -> Work:
        return work.reading(
            engine.config, rows, sizes.extend_tokens, sizes.context // 2, sizes.siblings,
            jnp.dtype(config.dtype).itemsize,
        )  # fmt: skip

    compiling(name)
    lowered = lowered_reading(engine)
    yield _compiled(
        name, "a call", lowered, _on_each_chip(needed, num_rows, mesh),
        needed(num_rows).flops, _handed(engine),
    )  # fmt: skip


def _decoding(
    engine: AbstractEngine,
    config: RunConfig,
    sampling: Sampling,
    branches: tuple[int, ...],
    mesh: Mesh,
    compiling: Callable[[str], None],
) -> Iterator[Program]:
    """A token of every row, behind half of the longest conversation."""
    scheduler = Scheduler(engine, sampling, Stopping(tokens=(0,)), branches)
    name = f"policy decodes {' and '.join(map(str, branches))} of each conversation"
    compiling(name)
    lowered, num_rows = lowered_decoding(scheduler)
    # Equally many rows of each lane.
    readers = len(branches) / sum(1 / n for n in branches)

    def needed(rows: float) -> Work:
        return work.decoding_token(
            engine.config, rows, engine.sizes.context // 2, readers,
            sampling.max_tokens / 2, jnp.dtype(config.dtype).itemsize,
        )  # fmt: skip

    yield _compiled(
        name, f"a token of {num_rows} rows", lowered,
        _on_each_chip(needed, num_rows, mesh), needed(num_rows).flops, _handed(engine),
    )  # fmt: skip


def _on_each_chip(needed: Callable[[float], Work], rows: float, mesh: Mesh) -> Work:
    """A chip's part: rows are over `data`, all else at best over the other axes."""
    whole, others = needed(rows / mesh.shape["data"]), mesh.shape["tensor"] * mesh.shape["fsdp"]
    return Work(whole.flops / others, whole.bytes / others)


def _handed(engine: AbstractEngine) -> float:
    return _bytes_on_chip((engine.programs.model.params, engine.programs.model.pool))


def _bytes_on_chip(tree: Any) -> float:
    """Of shapes with shardings."""
    return float(
        sum(
            math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
            for x in jax.tree.leaves(tree)
        )
    )


def _compiled(
    name: str,
    unit: str,
    lowered: jax.stages.Lowered,
    needed: Work,
    model_flops: float,
    handed: float,
) -> Program:
    began = time.monotonic()
    try:
        compiled, size = lowered.compile(), None
    except Exception as error:  # XLA's error has no public name
        compiled, size = None, asked_for(str(error))
        if size is None:
            line = next(iter(str(error).splitlines()), "")
            raise UserError(f"{name}: the compiler refuses it ({line[:300]})") from None
    program = Program(
        name=name,
        unit=unit,
        work=needed,
        model_flops=model_flops,
        compile_seconds=time.monotonic() - began,
        handed=handed,
        needed=size,
    )
    if compiled is None:
        return program
    return dataclasses.replace(
        program,
        memory=memory_of(compiled),
        exchanges=exchanges_of(compiled.as_text() or ""),
        xla_flops=(compiled.cost_analysis() or {}).get("flops"),
    )


_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def asked_for(message: str) -> float | None:
    """Bytes that a program would need, from the message that there are not so many."""
    if "memory" not in message or "hbm" not in message.lower():
        return None
    sizes = re.findall(r"([\d.]+)([KMGT])\b", message)
    return max((float(number) * _UNITS[unit] for number, unit in sizes), default=None)
