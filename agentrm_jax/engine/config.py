"""The sizes of an engine."""

from __future__ import annotations

import dataclasses

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.fields import check_choice, check_fields
from agentrm_jax.model.attention import ENGINE_BACKENDS

EIGHT_BITS = "int8"
"""The value of `weights` and `kv` for 8 bits."""

EIGHT_BIT_PAGES = ("xla", "cudnn", "triton")
"""The attention backends that read keys and values in 8 bits."""

_MAY_BE_ZERO = ("cache_tokens", "extend_batch")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Sizes of the engine. `context`, `weights` and `kv` decide results, others memory and speed.

    Results are bit-identical for equal sizes. With other sizes they are equal except for near-ties
    of the logits.

    Attributes:
      context: Longest sequence in tokens, including the reply.
      decode_rows: Decode rows: the number of replies decoded at the same time (rounded so that
        every device has equally many).
      decode_tokens: Tokens decoded by one call; after it, rows that are done make room for others.
        A multiple of `page_size`.
      extend_rows: Rows of a prefill batch: most segments that one call reads.
      extend_tokens: Tokens of a prefill chunk: a longer segment is read in several calls. A
        multiple of `page_size`.
      extend_batch: Tokens of a prefill batch, of all rows together: most chunks are shorter than
        `extend_tokens` and are packed. A multiple of `page_size`. 0: half of what the rows could
        hold.
      siblings: Segments that follow the same sequence and are read as one group: 1 for a policy,
        the candidates of a beam for a reward model. Divides `extend_rows`.
      page_size: Tokens of a page.
      cache_tokens: Tokens that the page pool holds. 0: most of the free memory.
      max_segments: Most segments of a sequence.
      instruction_tokens: Most tokens of all shared prefixes together.
      attention: The attention backend: `xla` runs everywhere; `pallas` on TPUs; `triton` on NVIDIA
        GPUs, and `cudnn` there for prefill alone (it rounds to bfloat16; decoding is as with
        `xla`). `pallas` and `triton` read pages in place. Results differ in rounding.
      weights: `int8` keeps the engine's own copy of the matrices in 8 bits, with a scale for each
        output channel, in half of the memory of bfloat16; activations keep the dtype of the model.
        Null: the dtype of the model. It holds for policies and for reward models of every kind.
      kv: `int8` keeps keys and values in 8 bits, with a scale for each token and head; not with
        `attention: pallas`. Null: the dtype of the model.
    """

    context: int = 2048
    decode_rows: int = 64
    decode_tokens: int = 16
    extend_rows: int = 32
    extend_tokens: int = 64
    extend_batch: int = 0
    siblings: int = 1
    page_size: int = 16
    cache_tokens: int = 0
    max_segments: int = 160
    instruction_tokens: int = 4096
    attention: str = "xla"
    weights: str | None = None
    kv: str | None = None

    def __post_init__(self) -> None:
        check_choice("attention", self.attention, ENGINE_BACKENDS)
        for name in ("weights", "kv"):
            if getattr(self, name) is not None:
                check_choice(name, getattr(self, name), (EIGHT_BITS,))
        if self.kv is not None and self.attention not in EIGHT_BIT_PAGES:
            raise UserError(
                f"must be one of {', '.join(EIGHT_BIT_PAGES)} with kv: int8",
                field="attention",
                value=self.attention,
            )
        sizes = [f.name for f in dataclasses.fields(self) if f.type == "int"]
        least = {name: "[0, inf)" if name in _MAY_BE_ZERO else "[1, inf)" for name in sizes}
        check_fields(self, **least)
        for name in ("extend_tokens", "extend_batch", "decode_tokens"):
            if getattr(self, name) % self.page_size:
                raise UserError(
                    field=name,
                    value=getattr(self, name),
                    expected=f"a multiple of page_size, {self.page_size}",
                )
        if self.extend_rows % self.siblings:
            raise UserError(
                f"must divide extend_rows, {self.extend_rows}",
                field="siblings",
                value=self.siblings,
            )
