"""The engine: one model with its prefix cache, page tables and compiled programs.

`front.generate` and `front.score` are the functions to call; `simple` is the same without a cache.
All shapes are fixed, so that a handful of compiled programs serves every batch, and the answer to a
request does not depend on the other requests of its batch.
"""

from __future__ import annotations

from typing import Any

import jax

from agentrm_jax.engine.cache.prefix_cache import PrefixCache
from agentrm_jax.engine.cache.tables import PageTables, shared_pages
from agentrm_jax.engine.chunked_prefill import ChunkedPrefill, Usage
from agentrm_jax.engine.config import EngineConfig
from agentrm_jax.engine.programs.compiled import Programs, own_parameters
from agentrm_jax.engine.programs.model import Readout
from agentrm_jax.model.config import LlamaConfig


class Engine:
    """A model that generates and scores, with its caches.

    Args:
      params: The parameters as `model.llama` reads them, also the trunk of a reward model.
      config: The shape of the model.
      sizes: The sizes of the engine.
      readout: For models that score: (head, hidden states [R, D]) to scores [R] float32.
      head: The parameters of the readout.
      mesh: The devices over which the parameters are sharded, or None for one.

    Attributes:
      programs: The compiled programs; they own the parameters and the page pool.
      cache: The prefix cache: which pages hold which tokens.
      tables: Builds page tables from the cache.
      prefill: Reads sequences into their pages.
      usage: Tokens decoded and read.

    Raises:
      UserError: The sizes do not suit the model, the attention backend or the memory.
    """

    programs_type: type[Programs] = Programs

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
        self.config, self.sizes = config, sizes
        self.programs = self.programs_type(
            params, config, sizes, readout=readout, head=head, mesh=mesh
        )
        self.cache = PrefixCache(
            num_pages=self.programs.num_pages,
            page_size=sizes.page_size,
            chunk_tokens=sizes.extend_tokens,
            shared_pages=shared_pages(sizes),
        )
        self.tables = PageTables(self.cache, sizes)
        self.usage = Usage()
        self.prefill = ChunkedPrefill(self.cache, self.tables, self.programs, sizes, self.usage)

    @classmethod
    def of(
        cls,
        params: Any,
        config: LlamaConfig,
        sizes: EngineConfig,
        *,
        mesh: jax.sharding.Mesh | None = None,
        readout: Readout | None = None,
        head: Any = None,
    ) -> Engine:
        """Returns an engine that takes a model's parameters over.

        The stacked parameters are deleted as their unstacked copies are made, in 8 bits or not, so
        that a device never holds both.

        Args:
          params: Stacked, as training and checkpoints have them; not to be used afterwards.
          config: The shape of the model.
          sizes: The sizes of the engine.
          mesh: As of `Engine`, like `readout` and `head`.
        """
        own = own_parameters(params, sizes, consume=True)
        return cls(own, config, sizes, mesh=mesh, readout=readout, head=head)

    def warm_up(self) -> None:
        """Compiles prefill, on rows of padding."""
        self.prefill.run_batch([])
