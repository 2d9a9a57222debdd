"""Causal attention of whole sequences, computed by one of four backends.

`xla` runs everywhere, in tiles (`model.tiled_attention`); `cudnn` and `triton` are kernels of
NVIDIA GPUs, `pallas` those of TPUs. None writes all scores to memory, but `cudnn` reads a mask of
all pairs; `triton`, and `pallas` for trees, skip the blocks in which no pair is visible
(`model.interval_attention`). The oracle is `dense_attention`.

All compute the same: a token attends to the earlier tokens of its own segment; if the segment is a
tree, to those on its own path.

Axis letters: B batch, T query, S key, N heads, K KV heads, H head width.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.fields import check_choice
from agentrm_jax.model import interval_tpu, interval_triton
from agentrm_jax.model.tiled_attention import attend_tiles
from agentrm_jax.runtime.sharding import logical_to_spec

_NVIDIA = ("gpu", "an NVIDIA GPU")
_NEEDS = {"xla": None, "cudnn": _NVIDIA, "triton": _NVIDIA, "pallas": ("tpu", "a TPU")}
"""The platform of each backend, as JAX names it and in words; None for any platform."""

BACKENDS = tuple(_NEEDS)
"""The names of the backends for whole sequences."""

ENGINE_BACKENDS = tuple(_NEEDS)
"""The names of the backends of engines."""

_TILE, _LARGE_TILE = {"cpu": 128}, 512
"""Tokens of a tile of `xla`: by platform, and on all other platforms. Caches of CPUs are small."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Backend:
    """The implementation of attention; a static argument of compiled programs.

    Attributes:
      name: `xla`, `cudnn` (16 bits only: wider numbers are rounded to bfloat16), `triton` or
        `pallas`.
      mesh: The devices over which queries, keys and values are split; None for one device.
      interpret: Whether kernels are replaced by XLA operations, as tests without an accelerator do.
    """

    name: str = "xla"
    mesh: Mesh | None = None
    interpret: bool = False

    @property
    def reads_pages(self) -> bool:
        """Whether a kernel reads pages by their numbers, so that nothing copies them first."""
        return self.name in ("pallas", "triton")


XLA = Backend()


def check_device(key: str, name: str, mesh: Mesh | None) -> None:
    """Refuses a backend that the devices cannot run.

    Args:
      mesh: The devices; JAX's default one without it.

    Raises:
      UserError: They cannot, or there is no such backend.
    """
    check_choice(key, name, ENGINE_BACKENDS)
    device = device_of(mesh)
    needs = _NEEDS[name]
    if needs is not None and device.platform != needs[0]:
        raise UserError(
            f"is {name!r}, which needs {needs[1]}; this machine has {device.platform}", field=key
        )
    if needs == _NVIDIA and not _is_nvidia(device):
        raise UserError(
            f"is {name!r}, which needs an NVIDIA GPU; this machine has another one", field=key
        )


def _is_nvidia(device: Any) -> bool:
    """Whether a GPU is NVIDIA's; one that is only compiled for has its architecture as version."""
    version = device.client.platform_version
    return "cuda" in version or "sm_" in version


def device_of(mesh: Mesh | None) -> Any:
    """Returns a device of the mesh; JAX's default device if there is no mesh."""
    return jax.devices()[0] if mesh is None else mesh.devices.flat[0]


def dense_attention(
    q: Float[Array, "batch queries heads head_dim"],
    k: Float[Array, "batch keys kv_heads head_dim"],
    v: Float[Array, "batch keys kv_heads head_dim"],
    mask: Bool[Array, "batch queries keys"],
) -> Float[Array, "batch queries heads head_dim"]:
    """Returns softmax attention with all scores in memory; the oracle of all other backends.

    Args:
      q: [B, T, N, H] queries.
      k: [B, S, K, H] keys.
      v: [B, S, K, H] values.
      mask: [B, T, S] bool. A query without any key gives an average of the values.

    Returns:
      [B, T, N, H]; the softmax is computed in float32.
    """
    B, T, N, H = q.shape
    K = k.shape[2]
    q = q.reshape(B, T, K, N // K, H)
    scores = jnp.einsum("btkgh,bskh->bkgts", q, k, preferred_element_type=jnp.float32)
    scores = jnp.where(mask[:, None, None], scores * H**-0.5, -1e30)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bkgts,bskh->btkgh", weights, v).reshape(B, T, N, H)


def causal_attention(
    q: Float[Array, "batch length heads head_dim"],
    k: Float[Array, "batch length kv_heads head_dim"],
    v: Float[Array, "batch length kv_heads head_dim"],
    segments: Int[Array, "batch length"],
    backend: Backend = XLA,
    subtree_ends: Int[Array, "batch length"] | None = None,
) -> Float[Array, "batch length heads head_dim"]:
    """Returns the attention of packed rows: each token to the earlier ones of its segment.

    Args:
      q: [B, T, N, H] queries.
      k: [B, T, K, H] keys.
      v: [B, T, K, H] values.
      segments: [B, T] int32; the tokens of a segment are next to each other.
      backend: What computes it.
      subtree_ends: [B, T] int32, for segments that are trees with their nodes in preorder: the
        position at which the subtree of a token's node ends. Tokens from there on do not attend to
        the token. None: it is the end of the token's segment.

    Returns:
      [B, T, N, H].

    Raises:
      UserError: The backend has no kernel for these shapes.
    """
    if backend.name == "xla":
        size = _TILE.get(device_of(backend.mesh).platform, _LARGE_TILE)
        attend = functools.partial(attend_tiles, size=size)
    else:
        kernels = {"cudnn": _cudnn, "triton": interval_triton.attend, "pallas": interval_tpu.attend}
        kernel = kernels[backend.name]
        if backend.name == "pallas":
            _check_tpu_heads(q.shape[-1])
            kernel = _splash if subtree_ends is None else kernel
        attend = functools.partial(kernel, interpret=backend.interpret)
    if backend.name == "cudnn":
        visible = causal_mask(segments, subtree_ends)
    elif backend.name == "pallas" and subtree_ends is None:
        visible = segments
    else:
        visible = _segment_ends(segments) if subtree_ends is None else subtree_ends
    return _on_each_device(attend, backend.mesh, "batch")(q, k, v, visible)


def _segment_ends(segments: jax.Array) -> jax.Array:
    """Returns the end of each token's segment, [B, T] int32."""
    T = segments.shape[1]
    last = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (0, 1)), constant_values=True)
    ends = jnp.where(last, jnp.arange(1, T + 1), T)
    return jax.lax.cummin(ends, axis=1, reverse=True)


def causal_mask(
    segments: Int[Array, "batch length"],
    subtree_ends: Int[Array, "batch length"] | None = None,
    output_positions: Int[Array, "batch labels"] | None = None,
) -> Bool[Array, "batch queries length"]:
    """Returns which keys each query attends to, as a mask.

    Args:
      segments: See `causal_attention`.
      subtree_ends: See `causal_attention`.
      output_positions: [B, L] int32, the tokens that are queries; None for all.

    Returns:
      [B, T, T] bool, or [B, L, T] with `output_positions`.
    """
    keys = jnp.arange(segments.shape[1])
    queries = keys[None] if output_positions is None else output_positions
    if subtree_ends is not None:
        within = queries[:, :, None] < subtree_ends[:, None]
    else:
        query_segments = (
            segments
            if output_positions is None
            else jnp.take_along_axis(segments, output_positions, axis=1)
        )
        within = query_segments[:, :, None] == segments[:, None]
    return within & (queries[:, :, None] >= keys)


def masked_attention(
    q: Float[Array, "batch queries heads head_dim"],
    k: Float[Array, "batch keys kv_heads head_dim"],
    v: Float[Array, "batch keys kv_heads head_dim"],
    mask: Bool[Array, "batch queries keys"],
    backend: Backend,
) -> Float[Array, "batch queries heads head_dim"]:
    """Returns `dense_attention`, computed by cuDNN if that is the backend.

    Args:
      q: [B, T, N, H] queries.
      k: [B, S, K, H] keys.
      v: [B, S, K, H] values.
      mask: [B, T, S] bool; each query must have a key.
      backend: What computes it.

    Returns:
      [B, T, N, H].
    """
    if backend.name != "cudnn":
        return dense_attention(q, k, v, mask)
    attend = functools.partial(_cudnn_masked, is_causal=False, interpret=backend.interpret)
    return _on_each_device(attend, backend.mesh, "rows")(q, k, v, mask)


def _on_each_device(
    attend: Callable[..., jax.Array], mesh: Mesh | None, batch: str
) -> Callable[..., jax.Array]:
    """Returns a kernel as a function that each device applies to its shard of (q, k, v, mask)."""
    if mesh is None:
        return attend
    heads = logical_to_spec((batch, None, "heads"))
    kv_heads = logical_to_spec((batch, None, "kv_heads"))
    return jax.shard_map(
        attend,
        mesh=mesh,
        in_specs=(heads, kv_heads, kv_heads, logical_to_spec((batch,))),
        out_specs=heads,
        check_vma=False,
    )


def _cudnn(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, interpret: bool) -> jax.Array:
    odd = q.shape[1] % 2  # the gradient of cuDNN needs an even length
    q, k, v = (jnp.pad(x, ((0, 0), (0, odd), (0, 0), (0, 0))) for x in (q, k, v))
    mask = jnp.pad(mask, ((0, 0), (0, odd), (0, odd)), constant_values=True)
    out = _cudnn_masked(q, k, v, mask, is_causal=True, interpret=interpret)
    return out[:, : out.shape[1] - odd]


def _cudnn_masked(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, *, is_causal: bool, interpret: bool
) -> jax.Array:
    """The mask needs memory for each query and key, but not for each head."""
    if q.shape[-1] % 8:
        raise UserError(
            field="model.head_dim",
            value=q.shape[-1],
            expected="a multiple of 8 for cudnn attention",
        )
    dtype = q.dtype
    if dtype.itemsize > 2 and not interpret:
        q, k, v = (x.astype(jnp.bfloat16) for x in (q, k, v))
    out = jax.nn.dot_product_attention(
        q, k, v, mask=mask[:, None], is_causal=is_causal,
        implementation="xla" if interpret else "cudnn",
    )  # fmt: skip
    return out.astype(dtype)


def _check_tpu_heads(H: int) -> None:
    if H % 64:
        raise UserError(
            field="model.head_dim", value=H, expected="a multiple of 64 for pallas attention"
        )


def _splash(
    q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array, interpret: bool
) -> jax.Array:
    """Splash attention of `jax.experimental.pallas`; sequences are padded to whole blocks."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    T, N, H = q.shape[1:]
    missing = -T % 128
    length = T + missing
    size = next(size for size in (512, 256, 128) if length % size == 0)
    kernel = splash.make_splash_mha_single_device(
        splash.MultiHeadMask([splash.CausalMask((length, length))] * N),
        block_sizes=splash.BlockSizes(
            block_q=size, block_kv=size,
            block_q_dkv=size, block_kv_dkv=size,
            block_q_dq=size, block_kv_dq=size,
        ),
        interpret=interpret,
    )  # fmt: skip

    def by_head(x: jax.Array) -> jax.Array:
        return jnp.pad(x, ((0, 0), (0, missing), (0, 0), (0, 0))).swapaxes(1, 2)

    # The padding is a segment of its own, after all others.
    segments = jnp.pad(segments, ((0, 0), (0, missing)), constant_values=-1)

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array) -> jax.Array:
        out = kernel(q, k, v, splash.SegmentIds(q=ids, kv=ids))
        assert isinstance(out, jax.Array)
        return out

    out = jax.vmap(attend)(by_head(q * H**-0.5), by_head(k), by_head(v), segments)
    return out.swapaxes(1, 2)[:, :T]
