"""The compiled programs of one model, with the parameters and the page pool that they run on."""

from __future__ import annotations

import dataclasses
import functools
import os
from typing import Any

import jax
import numpy as np

from agentrm_jax.engine.attention import pallas, tiles, triton
from agentrm_jax.engine.cache.memory import check_memory, free_tokens
from agentrm_jax.engine.cache.pages import KeyValues, Pool, commit, make_pool
from agentrm_jax.engine.config import EngineConfig
from agentrm_jax.engine.programs.decode import DecodePlan, decode
from agentrm_jax.engine.programs.model import LoadedModel, Readout
from agentrm_jax.engine.programs.prefill import prefill
from agentrm_jax.engine.programs.select import (
    BeamChoice,
    BeamRows,
    CandidateRows,
    decode_select,
    prefill_select,
)
from agentrm_jax.engine.rows import Decoded, DecodeRows, PrefillRows
from agentrm_jax.model import llama, panels
from agentrm_jax.model.attention import check_device
from agentrm_jax.model.config import LlamaConfig
from agentrm_jax.model.eight_bits import EightBits, in_eight_bits
from agentrm_jax.runtime.sharding import named_sharding


class Programs:
    """Owns a model's parameters and page pool and runs the compiled programs on them.

    Args:
      params: The parameters as `model.llama` reads them, also the trunk of a reward model.
      config: The shape of the model.
      sizes: The sizes of the engine.
      readout: For models that score: (head, hidden states [R, D]) to scores [R] float32.
      head: The parameters of the readout.
      mesh: The devices over which the parameters are sharded, or None for one.

    Raises:
      UserError: The sizes do not suit the model, the attention backend or the memory.
    """

    def __init__(
        self,
        params: Any,
        config: LlamaConfig,
        sizes: EngineConfig,
        *,
        readout: Readout | None = None,
        head: Any = None,
        mesh: jax.sharding.Mesh | None = None,
    ) -> None:
        config.check_length("engine.context", sizes.context)
        check_device("engine.attention", sizes.attention, mesh)
        if sizes.attention == "pallas":
            pallas.check_shapes(config, sizes.page_size)
        if sizes.attention == "triton":
            triton.check_shapes(config)
        dtype = params["embed"].dtype
        self._check_memory(config, sizes, dtype, mesh)
        tokens = sizes.cache_tokens or free_tokens(config, sizes, dtype, mesh)
        self.mesh = mesh
        own, pool = self._load(params, config, sizes, -(-tokens // sizes.page_size))
        self.model = LoadedModel(own, pool, head, config=config, readout=readout)

    def _check_memory(
        self, config: LlamaConfig, sizes: EngineConfig, dtype: Any, mesh: jax.sharding.Mesh | None
    ) -> None:
        check_memory(config, sizes, dtype, mesh)

    def _load(
        self, params: Any, config: LlamaConfig, sizes: EngineConfig, num_pages: int
    ) -> tuple[Any, Pool]:
        """The parameters layer by layer, and an empty pool."""
        dtype = params["embed"].dtype
        pool = make_pool(
            config, num_pages, sizes.page_size, dtype, self.mesh, sizes.attention, sizes.kv
        )
        return own_parameters(params, sizes), pool

    @property
    def data(self) -> int:
        """The number of devices over which sequences are divided."""
        return 1 if self.mesh is None else self.mesh.shape["data"]

    @property
    def num_pages(self) -> int:
        """The pages of the pool."""
        return self.model.pool.num_pages

    @property
    def bucket_fractions(self) -> tuple[float, ...]:
        """The buckets of tiles that decoding is compiled for (`attention.tiles.bucket`)."""
        return tiles.bucket_fractions(self.model.pool.backend)

    def put(self, rows: Any) -> Any:
        """Copies host arrays to the device in one transfer; rows are sharded over `data`."""
        if self.mesh is None:
            return jax.device_put(rows)
        return jax.device_put(rows, row_shardings(rows, self.mesh))

    def prefill(self, rows: PrefillRows) -> np.ndarray | None:
        """Reads rows [R] from the host into their pages.

        Returns:
          The readout [R] float32 at each row's last token, if the model has one.
        """
        rows = self.put(rows)
        new, readouts = prefill(self.model, rows)
        self.commit(new, rows.pages)
        return None if readouts is None else np.asarray(readouts)

    def decode(self, rows: DecodeRows, plan: DecodePlan) -> tuple[KeyValues, Decoded]:
        """Starts decoding and returns at once; the keys and values are to be committed."""
        model = dataclasses.replace(
            self.model, params=self.params_for(len(rows.last_tokens)), head=None, readout=None
        )
        return decode(model, rows, plan)

    def decode_select(
        self, scorer: Programs, beams: BeamRows, plan: DecodePlan
    ) -> tuple[BeamChoice, Decoded, KeyValues]:
        """Runs `select.decode_select`; the keys and values are to be committed.

        Args:
          scorer: The programs of the model that scores.
          beams: On the device.
          plan: With one group.
        """
        return decode_select(self.model, scorer.model, beams, plan)

    def prefill_select(self, candidates: CandidateRows) -> tuple[BeamChoice, np.ndarray]:
        """Runs `select.prefill_select` and writes what it has read.

        Args:
          candidates: On the device.

        Returns:
          The choice and the scores of the rows, on the host.
        """
        choice, read, new = prefill_select(self.model, candidates)
        self.commit(new, candidates.rows.pages)
        return jax.device_get((choice, read))

    def commit(self, new: KeyValues, pages: jax.Array) -> None:
        """Writes new keys and values into pages, see `cache.pages.commit`."""
        self.model = dataclasses.replace(self.model, pool=commit(self.model.pool, new, pages))

    def params_for(self, num_rows: int) -> Any:
        """Returns the parameters in the layout that is fastest for decoding `num_rows` rows."""
        return self._panels if num_rows <= panels.MOST else self.model.params

    @functools.cached_property
    def _panels(self) -> Any:
        """A copy of the parameters in panels, or the parameters if panels are not faster."""
        params = self.model.params
        embed = params["embed"]
        threads = int(os.environ.get("NPROC") or 0) or os.cpu_count()  # as XLA counts them
        if isinstance(embed, EightBits) or embed.dtype != np.float32 or threads != 1:
            return params
        if [device.platform for device in embed.devices()] != ["cpu"]:
            return params
        return panels.for_few_positions(params)


def own_parameters(params: Any, sizes: EngineConfig, *, consume: bool = False) -> Any:
    """Returns parameters as an engine holds them: layer by layer, with `sizes.weights` in 8 bits.

    Args:
      params: A policy or a trunk; parameters that are as they should be are not copied.
      sizes: The sizes of the engine.
      consume: Whether each matrix is deleted when its copy is there, so that a device never holds
        both models. Nothing else may use the parameters afterwards.
    """
    if sizes.weights is not None:
        params = in_eight_bits(params, consume=consume)
    return llama.unstacked(params, consume=consume)


def row_shardings(rows: Any, mesh: jax.sharding.Mesh) -> Any:
    """Returns the sharding of each array of a batch: rows over `data` if it divides them."""
    data = mesh.shape["data"]

    def sharding(x: np.ndarray) -> jax.sharding.NamedSharding:
        axes: list[str | None] = [None] * x.ndim
        if x.ndim and x.shape[0] % data == 0:
            axes[0] = "rows"
        return named_sharding(mesh, tuple(axes))

    return jax.tree.map(sharding, rows)
