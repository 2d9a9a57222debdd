"""An engine without memory: its programs can be compiled for devices that are not there."""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from agentrm_jax.engine.cache.pages import Pool, make_pool
from agentrm_jax.engine.engine import Engine
from agentrm_jax.engine.programs.decode import decode
from agentrm_jax.engine.programs.prefill import extend
from agentrm_jax.engine.schedule.scheduler import Decoder
from agentrm_jax.model.parameters import Params
from agentrm_jax.runtime.sharding import named_sharding


class AbstractEngine(Engine):
    """An `Engine` whose parameters and pages are shapes with shardings.

    Args: as of `Engine`; there has to be a mesh, and `cache_tokens` must be set.
    """

    def _check_memory(self, dtype: Any) -> None:
        """Leaves it to the plan to say what does not fit: these devices are not there."""

    def _on_device(self, params: Params, num_pages: int) -> tuple[Params, Pool]:
        sizes, dtype, mesh = self.sizes, params["embed"].dtype, self._mesh
        assert mesh is not None
        pool = jax.eval_shape(
            lambda: make_pool(self.config, num_pages, sizes.page_size, dtype, mesh, sizes.attention)
        )
        kept = named_sharding(mesh, ("kv_heads", None, None, None))
        pool = jax.tree.map(lambda x: _shape(x, kept), pool)
        return unstacked(params, mesh), pool

    def put(self, rows: Any) -> Any:
        assert self._mesh is not None
        return jax.tree.map(_shape, rows, self.shardings(rows, self._mesh))


def _shape(x: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def unstacked(params: Params, mesh: Mesh) -> Params:
    """Shapes of `llama.unstacked`."""

    def layer(stack: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        spec = PartitionSpec(*stack.sharding.spec[1:])  # pyright: ignore[reportOptionalMemberAccess]
        return jax.ShapeDtypeStruct(
            stack.shape[1:], stack.dtype, sharding=NamedSharding(mesh, spec)
        )

    one = jax.tree.map(layer, params["layers"])
    num_layers = next(iter(params["layers"].values())).shape[0]
    return {**params, "layers": (one,) * num_layers}


def lowered_reading(engine: AbstractEngine) -> jax.stages.Lowered:
    """What `Engine.read` runs."""
    rows = engine.put(engine.next_portions([]))
    return extend.lower(
        engine.params, engine.config, engine.pool, rows, engine.head, readout=engine.readout
    )


def lowered_decoding(decoder: Decoder) -> tuple[jax.stages.Lowered, int]:
    """What a decoder of an abstract engine runs for its longest conversations; of how many rows."""
    engine = decoder.engine
    seats, rows, settings = decoder.prepare(1.0)
    lowered = decode.lower(engine.params, engine.config, engine.pool, engine.put(rows), **settings)
    return lowered, len(seats.rows)
