"""An engine of shapes only: its programs can be compiled for devices that this machine lacks."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from agentrm_jax.engine.attention.parts import OWN_PAGES, SHARED_PREFIXES, SUFFIX, TAILS
from agentrm_jax.engine.cache.pages import PAGE_BLOCK, PageTable, Pool, make_pool
from agentrm_jax.engine.config import EngineConfig
from agentrm_jax.engine.engine import Engine
from agentrm_jax.engine.programs.compiled import Programs, row_shardings
from agentrm_jax.engine.programs.decode import decode
from agentrm_jax.engine.programs.prefill import prefill
from agentrm_jax.engine.rows import DecodeRows, PrefillRows
from agentrm_jax.engine.schedule.scheduler import Scheduler
from agentrm_jax.model.config import LlamaConfig
from agentrm_jax.model.eight_bits import abstract_in_eight_bits
from agentrm_jax.model.parameters import Params
from agentrm_jax.plan.traffic import Assumed
from agentrm_jax.runtime.sharding import named_sharding


class AbstractPrograms(Programs):
    """`Programs` whose parameters and pages are shapes with shardings.

    Args: as of `Programs`; there has to be a mesh, and `cache_tokens` must be set.
    """

    def _check_memory(
        self, config: LlamaConfig, sizes: EngineConfig, dtype: Any, mesh: Mesh | None
    ) -> None:
        """Checks nothing: the plan reports what does not fit."""

    def _load(
        self, params: Params, config: LlamaConfig, sizes: EngineConfig, num_pages: int
    ) -> tuple[Params, Pool]:
        dtype, mesh = params["embed"].dtype, self.mesh
        assert mesh is not None
        pool = jax.eval_shape(
            lambda: make_pool(
                config, num_pages, sizes.page_size, dtype, mesh, sizes.attention, sizes.kv
            )
        )
        sharding = named_sharding(mesh, ("kv_heads",))
        pool = jax.tree.map(lambda x: _shape(x, sharding), pool)
        if sizes.weights is not None:
            params = abstract_in_eight_bits(params)
        return unstacked(params, mesh), pool

    def put(self, rows: Any) -> Any:
        """Returns the shapes of host arrays with the shardings that they would have."""
        assert self.mesh is not None
        return jax.tree.map(_shape, rows, row_shardings(rows, self.mesh))


class AbstractEngine(Engine):
    """An `Engine` of `AbstractPrograms`.

    Args: as of `Engine`; there has to be a mesh, and `cache_tokens` must be set.
    """

    programs_type = AbstractPrograms


def _shape(x: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def unstacked(params: Params, mesh: Mesh) -> Params:
    """Returns the shapes of `llama.unstacked`."""

    def layer(stack: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        spec = PartitionSpec(*stack.sharding.spec[1:])  # pyright: ignore[reportOptionalMemberAccess]
        return jax.ShapeDtypeStruct(
            stack.shape[1:], stack.dtype, sharding=NamedSharding(mesh, spec)
        )

    layer_shapes = jax.tree.map(layer, params["layers"])
    num_layers = jax.tree.leaves(params["layers"])[0].shape[0]
    return {**params, "layers": (layer_shapes,) * num_layers}


def lowered_reading(engine: AbstractEngine) -> tuple[jax.stages.Lowered, PrefillRows]:
    """Returns the program of `Engine.prefill`, and its rows."""
    rows = engine.prefill.rows([])
    return prefill.lower(engine.programs.model, engine.programs.put(rows)), rows


def lowered_decoding(scheduler: Scheduler) -> tuple[jax.stages.Lowered, DecodeRows]:
    """Returns the decoding program of an abstract engine for full page tables, and its rows."""
    programs = scheduler.engine.programs
    _, rows, plan = scheduler.prepare(1.0)
    model = dataclasses.replace(programs.model, head=None, readout=None)
    return decode.lower(model, programs.put(rows), plan), rows


def half_full(
    sizes: EngineConfig, table: PageTable, tails: PageTable | None = None, occupied: float = 1.0
) -> Assumed:
    """Returns the loops and page tables of a program as the least work assumes them.

    Sequences are half as long as they can be, without a shared prefix; of the calls of decoding it
    is the one in the middle, at its middle token. `xla` copies the tiles of full tables, whatever
    they hold.

    Args:
      sizes: The sizes of the engine.
      table: The pages of the sequences.
      tails: The pages of what rows have decoded before; None for prefill.
      occupied: The fraction of the rows of page tables that hold a sequence.
    """
    pages = -(-(sizes.context // 2) // sizes.page_size)
    own_fraction = occupied * pages / table.pages.shape[1]
    filled = {OWN_PAGES: own_fraction, SHARED_PREFIXES: 0.0, TAILS: 0.5}
    filled[SUFFIX] = (sizes.decode_tokens + 1) / (2 * sizes.decode_tokens)
    blocks = {OWN_PAGES: float(-(-pages // PAGE_BLOCK)), SHARED_PREFIXES: 0.0}
    if tails is not None:
        blocks[TAILS] = float(-(-tails.pages.shape[1] // (2 * PAGE_BLOCK)))
    return Assumed(trips={**blocks, "tokens": float(sizes.decode_tokens)}, filled=filled)
