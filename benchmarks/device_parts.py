"""The parts of `benchmarks.device`: what is measured on an accelerator, one function each."""

from __future__ import annotations

import dataclasses
import functools
import gc
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from agentrm_jax.data.packing import PackedRows, only_labelled, pack
from agentrm_jax.data.sequences import value_sequences
from agentrm_jax.data.tree_sequences import tree_sequences
from agentrm_jax.engine import front
from agentrm_jax.engine.config import EngineConfig
from agentrm_jax.engine.engine import Engine
from agentrm_jax.engine.request import TokenSequence
from agentrm_jax.model import llama
from agentrm_jax.model.config import LlamaConfig
from agentrm_jax.model.options import ForwardOptions
from agentrm_jax.model.parameters import Params
from agentrm_jax.model.value import readout
from agentrm_jax.plan import work
from agentrm_jax.runtime.sharding import MeshConfig, make_mesh, named_sharding
from agentrm_jax.train import explicit
from agentrm_jax.train.optimizer import OptimizerConfig, make_optimizer
from agentrm_jax.train.step import make_state, make_train_step, state_shardings
from benchmarks import ceilings, engines, measuring, models, train_reward

Found = dict[str, Any]

_HEADROOM = 0.85
"""The fraction of the memory that weights, pages and state may take; the rest is for programs."""


@dataclasses.dataclass(kw_only=True)
class Device:
    """The settings of all parts, and the results that later parts need.

    Attributes:
      tiny: Whether the model and all sizes are tiny.
      rounds: Timed calls of each part.
      threads: CPU threads, if the device is a CPU.
      memory: Bytes that a program can use; None if the device does not report it.
      engine_backends: The attention backends of engines; the first one is measured.
      fit_backends: The attention backends of training.
      limits: The measured ceilings.
    """

    tiny: bool
    rounds: int
    threads: int
    memory: int | None
    engine_backends: tuple[str, ...]
    fit_backends: tuple[str, ...]
    limits: ceilings.Ceilings | None = None

    @property
    def shape(self) -> LlamaConfig:
        """The shape of the model."""
        return models.SHAPES["tiny" if self.tiny else "8b"]

    @property
    def dtype(self) -> Any:
        """The dtype of weights and activations."""
        return jnp.dtype("bfloat16")

    def fitting(self, config: LlamaConfig, per_weight: float, pages: float = 0.0) -> LlamaConfig:
        """Returns the shape with the most layers that fit.

        Args:
          per_weight: Bytes for each weight, with the optimizer's state.
          pages: Bytes of the pages of all layers.
        """
        if self.memory is None:
            return config
        layer = work.layer_weights(config) * per_weight / config.num_layers
        outside = (1 if config.tie_embeddings else 2) * work.head_weights(config) * per_weight
        layers = (_HEADROOM * self.memory - outside) / (layer + pages / config.num_layers)
        return dataclasses.replace(config, num_layers=max(1, min(config.num_layers, int(layers))))

    def timed(self, call: Callable[[int], Any]) -> tuple[float, float]:
        """Returns the seconds of a call, and those of the first one, which compiles."""
        [side] = measuring.interleaved({"": call}, self.rounds).values()
        return ceilings.seconds(side.median, self.threads), side.first.wall

    def shares(self, needed: work.Work, seconds: float) -> Found:
        """The fractions of the measured ceilings that work of this many seconds reaches."""
        if self.limits is None:
            return {}
        return {
            "share_of_copy": needed.bytes / seconds / self.limits.bandwidth,
            "share_of_product": needed.flops / seconds / self.limits.flops,
        }


def measure_ceilings(device: Device) -> Found:
    """Measures a large copy and a large product."""
    probes = ceilings.Probes(device.dtype, tiny=device.tiny)
    timed = measuring.interleaved(probes.sides(), device.rounds)
    device.limits = probes.ceilings(timed, device.threads)
    return device.limits.as_json()


class Decoding:
    """Replies of one length at several numbers of rows, five to a prompt if five divides them.

    The engine is made by the first call, for the most rows, and kept until `free`.
    """

    def __init__(self, device: Device, rows: tuple[int, ...]) -> None:
        self.device = device
        self.context, self.tokens = (64, 16) if device.tiny else (1024, 64)
        self.most = max(rows)
        self._engine: Engine | None = None
        self._config = device.shape
        self._number = work.NumberBytes.of(device.dtype)
        self._prompts = np.zeros(0, np.int32)

    def __call__(self, rows: int) -> Found:
        """Measures one number of rows."""
        device, n = self.device, 5 if rows % 5 == 0 else 1
        engine = self._engine or self._make()
        branches = engines.Branches(engine, self._prompts[: rows // n], n, self.tokens)
        seconds, first = device.timed(branches)
        each = seconds / self.tokens
        needed = work.decoding_token(
            self._config, rows, self.context, n, (self.tokens + 1) / 2, self._number
        )
        return {
            "rows": rows,
            "branches": n,
            "context": self.context,
            "layers": self._config.num_layers,
            "attention": device.engine_backends[0],
            "milliseconds_per_token": 1e3 * each,
            "tokens_per_second": rows / each,
            "first_call_seconds": first,
            **device.shares(needed, each),
        }

    def _make(self) -> Engine:
        device, attention = self.device, self.device.engine_backends[0]
        most = max(self.most // 5, 1)
        pages = 2 * most * self.context + 4 * self.most * engines.pages(self.tokens)
        self._config = device.fitting(
            device.shape,
            device.dtype.itemsize,
            work.kv_bytes(device.shape, pages, self._number),
        )
        rng = np.random.default_rng(0)
        self._prompts = models.draw_tokens(self._config, rng, most, self.context)
        self._engine = engines.decoding_engine(
            drawn(self._config, device.dtype), self._config, self._prompts, max(8, self.most),
            self.tokens, attention,
        )  # fmt: skip
        return self._engine

    def free(self) -> None:
        """Frees the memory of the engine."""
        self._engine = None
        gc.collect()


def drawn(config: LlamaConfig, dtype: Any) -> Params:
    """Random weights, layer by layer; the stacked ones are freed."""
    return llama.unstacked(models.make_params(config, dtype), consume=True)


def prefill(device: Device) -> Found:
    """Reads new prompts: tokens a second."""
    prompts, length, chunk = (4, 96, 32) if device.tiny else (8, 2048, 512)
    config = dataclasses.replace(device.shape, tie_embeddings=True)  # as a reward model
    sizes = EngineConfig(
        context=length,
        decode_rows=8,
        extend_rows=prompts,
        extend_tokens=chunk,
        extend_batch=prompts * chunk,
        page_size=engines.PAGE,
        cache_tokens=3 * prompts * engines.pages(length + engines.PAGE),
        max_segments=1,
        instruction_tokens=1,
        attention=device.engine_backends[0],
    )
    number = work.NumberBytes.of(device.dtype)
    held = work.kv_bytes(config, sizes.cache_tokens, number)
    config = device.fitting(config, device.dtype.itemsize, held)
    engine = Engine(
        drawn(config, device.dtype), config, sizes, readout=readout, head=models.make_head(config)
    )
    rng = np.random.default_rng(0)

    def read(number: int) -> None:
        new = models.draw_tokens(config, rng, prompts, length)
        front.score(engine, [TokenSequence(segments=[prompt]) for prompt in new])

    seconds, first = device.timed(read)
    return {
        "prompts": prompts,
        "length": length,
        "layers": config.num_layers,
        "attention": sizes.attention,
        "tokens_per_second": prompts * length / seconds,
        "first_call_seconds": first,
        **device.shares(work.reading(config, prompts, length, 0, 1, number), seconds),
    }


def scoring(device: Device) -> Found:
    """Scores 25 candidates after each of some contexts, as a beam does."""
    groups, n, context, tokens = (1, 4, 64, 16) if device.tiny else (2, 25, 1024, 64)
    config = dataclasses.replace(device.shape, tie_embeddings=True)
    pages, number = 2 * groups * n * (context + 3 * tokens), work.NumberBytes.of(device.dtype)
    config = device.fitting(config, device.dtype.itemsize, work.kv_bytes(config, pages, number))
    rng = np.random.default_rng(0)
    candidates = engines.Candidates(
        drawn(config, device.dtype), models.make_head(config), config,
        models.draw_tokens(config, rng, groups, context), n, tokens, device.engine_backends[0],
    )  # fmt: skip
    seconds, first = device.timed(
        lambda _: candidates(models.draw_tokens(config, rng, groups, n, tokens))
    )
    needed = work.reading(config, groups * n, tokens, context, n, number)
    return {
        "candidates": groups * n,
        "tokens": tokens,
        "context": context,
        "layers": config.num_layers,
        "attention": device.engine_backends[0],
        "candidates_per_second": groups * n / seconds,
        "first_call_seconds": first,
        **device.shares(needed, seconds),
    }


def training_rows(config: LlamaConfig, packing: str, tiny: bool) -> PackedRows:
    """The tree of `benchmarks.train_reward` in one row, or its paths in as many as they need."""
    opening, reply, observation = (16, 6, 8) if tiny else (256, 50, 70)
    case = train_reward.Case(train_reward.TREE, opening, reply, observation)
    tree = train_reward.labelled_tree(config, case)
    length = opening + case.states * (reply + observation)
    make = {"trees": tree_sequences, "paths": value_sequences}[packing]
    sequences, _ = make(train_reward.Numbers(), lambda task: None, [tree], length)
    return only_labelled(pack(sequences, length))


def update(device: Device, packing: str, attention: str) -> Found:
    """Updates a reward model: all parameters, AdamW in float32, `remat: block`."""
    config = dataclasses.replace(device.shape, tie_embeddings=True)
    config = device.fitting(config, 18.0)  # weights, two moments and gradients; a copy in 16 bits
    rows = training_rows(config, packing, device.tiny)
    repeats = 1 if device.tiny else 4 if packing == "trees" else 1
    batch = {
        name: np.concatenate([value] * repeats)
        for name, value in rows.take(np.arange(len(rows))).items()
    }
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    options = ForwardOptions(mesh=mesh, attention=attention, remat="block", dtype=device.dtype)
    wide = jax.jit(lambda x: x.astype(jnp.float32), donate_argnums=0)
    trunk = jax.tree.map(wide, models.make_params(config, device.dtype))
    trunk.pop("lm_head", None)
    params = {"trunk": trunk, "value_head": models.make_head(config)}
    optimizer = make_optimizer(OptimizerConfig(schedule="constant"), 100)
    placed = state_shardings(params, optimizer, mesh)
    step = make_train_step(explicit.make_loss(config, options), optimizer, placed, mesh, 1)
    state = [make_state(params, optimizer, mesh)]
    del params, trunk
    held = jax.device_put(batch, named_sharding(mesh, ("batch", "length")))

    def once(_: int) -> None:
        state[0], sums = step(state[0], held, None)
        jax.block_until_ready(sums)

    seconds, first = device.timed(once)
    R, T = batch["tokens"].shape
    labels = int((batch["weights"] > 0).sum())
    flops = work.training_flops(config, R, T, logits=False, outputs=labels // R)
    return {
        "packing": packing,
        "attention": attention,
        "rows": R,
        "length": T,
        "layers": config.num_layers,
        "states_per_second": labels / 2 / seconds,  # a state has a label at both ends
        "tokens_per_second": R * T / seconds,
        "seconds_per_update": seconds,
        "first_call_seconds": first,
        **device.shares(work.Work(flops, 0.0), seconds),
    }


def every_update(device: Device) -> Iterator[tuple[str, Callable[[Device], Found]]]:
    """Yields the updates to measure, trees before paths and the fastest backend first."""
    for packing in ("trees", "paths"):
        for attention in device.fit_backends:
            yield (
                f"update {packing} {attention}",
                functools.partial(update, packing=packing, attention=attention),
            )
