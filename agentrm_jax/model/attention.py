"""Causal attention of whole sequences, by a backend that has a name.

`xla` runs everywhere, in tiles (`model.tiled_attention`); `cudnn` and `pallas` are fused kernels of
NVIDIA GPUs and TPUs. None writes all scores to memory, as the oracle does. All see the same: a
token attends to the earlier tokens of its own segment, and where the segment is a tree, to those on
its own path.

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

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.fields import check_choice
from agentrm_jax.model.tiled_attention import attend_tiles
from agentrm_jax.runtime.sharding import logical_to_spec

_NEEDS = {"xla": None, "cudnn": ("gpu", "an NVIDIA GPU"), "pallas": ("tpu", "a TPU")}
BACKENDS = tuple(_NEEDS)
"""Each backend's platform, as JAX names it, and in words; None: any."""

_TILE, _LARGE_TILE = {"cpu": 128}, 512
"""Tokens of a tile of `xla` by platform, and of all others: a CPU's caches are small."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Backend:
    """What computes attention. It is static: another one is another program.

    Attributes:
      name: `xla`, `cudnn` (it knows 16 bits only: wider numbers are rounded to bfloat16) or
        `pallas`.
      mesh: Over which queries, keys and values are split, or None. Kernels run on each part.
      interpret: Whether what kernels do is done without them: tests do so where no accelerator is.
    """

    name: str = "xla"
    mesh: Mesh | None = None
    interpret: bool = False


XLA = Backend()


def check_device(key: str, name: str, mesh: Mesh | None) -> None:
    """Refuses a backend that the devices cannot run.

    Args:
      mesh: The devices; JAX's default one without it.

    Raises:
      UserError: They cannot, or there is no such backend.
    """
    check_choice(key, name, BACKENDS)
    device = device_of(mesh)
    needs = _NEEDS[name]
    if needs is not None and device.platform != needs[0]:
        raise UserError(
            f"is {name!r}, which needs {needs[1]}; this machine has {device.platform}", field=key
        )
    if name == "cudnn" and "cuda" not in device.client.platform_version:
        raise UserError(
            "is 'cudnn', which needs an NVIDIA GPU; this machine has another one", field=key
        )


def device_of(mesh: Mesh | None) -> Any:
    """One of the mesh's devices; JAX's default one without it."""
    return jax.devices()[0] if mesh is None else mesh.devices.flat[0]


def dense_attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """Softmax attention with all scores at once, softmax in float32. The oracle of all others.

    Args:
      q: [B, T, N, H].
      k: [B, S, K, H].
      v: [B, S, K, H].
      mask: [B, T, S] bool. A query without any key gives an average of the values.
    """
    B, T, N, H = q.shape
    K = k.shape[2]
    q = q.reshape(B, T, K, N // K, H)
    scores = jnp.einsum("btkgh,bskh->bkgts", q, k, preferred_element_type=jnp.float32)
    scores = jnp.where(mask[:, None, None], scores * H**-0.5, -1e30)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bkgts,bskh->btkgh", weights, v).reshape(B, T, N, H)


def causal_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segments: jax.Array,
    backend: Backend = XLA,
    until: jax.Array | None = None,
) -> jax.Array:
    """Attention of packed sequences to themselves: each token to the earlier ones of its segment.

    Args:
      q: [B, T, N, H].
      k: [B, T, K, H].
      v: [B, T, K, H].
      segments: [B, T] int32, equal numbers side by side.
      until: [B, T] int32, of segments that are trees with their nodes in preorder: the first token
        behind a key that does not see it, which is where its node's subtree ends. Without it, that
        is where its segment ends.

    Raises:
      UserError: The backend has no kernel for these shapes, or for trees.
    """
    if backend.name == "xla":
        size = _TILE.get(device_of(backend.mesh).platform, _LARGE_TILE)
        attend = functools.partial(attend_tiles, size=size)
        sight = _segment_ends(segments) if until is None else until
    elif backend.name == "cudnn":
        attend = functools.partial(_cudnn, interpret=backend.interpret)
        sight = seen(segments, until)
    elif until is None:
        attend, sight = functools.partial(_splash, interpret=backend.interpret), segments
    else:
        raise UserError(
            "is 'pallas', which does not support trees; take xla, or train on paths",
            field="attention",
        )
    return _on_each_device(attend, backend.mesh, "batch")(q, k, v, sight)


def _segment_ends(segments: jax.Array) -> jax.Array:
    """[B, T] int32: where each token's segment ends, which is at the next number."""
    T = segments.shape[1]
    last = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (0, 1)), constant_values=True)
    ends = jnp.where(last, jnp.arange(1, T + 1), T)
    return jax.lax.cummin(ends, axis=1, reverse=True)


def seen(
    segments: jax.Array, until: jax.Array | None = None, only: jax.Array | None = None
) -> jax.Array:
    """Which keys the queries see, as a mask [B, T, T] bool; or those of the tokens `only` [B, L],
    as [B, L, T]."""
    numbers = jnp.arange(segments.shape[1])
    at = numbers[None] if only is None else only
    if until is not None:
        within = at[:, :, None] < until[:, None]
    else:
        own = segments if only is None else jnp.take_along_axis(segments, only, axis=1)
        within = own[:, :, None] == segments[:, None]
    return within & (at[:, :, None] >= numbers)


def masked_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, backend: Backend
) -> jax.Array:
    """`dense_attention` for rows of an engine; by cuDNN, if that is the backend.

    Args:
      q: [B, T, N, H].
      k: [B, S, K, H].
      v: [B, S, K, H].
      mask: [B, T, S] bool; each query needs a key.
    """
    if backend.name != "cudnn":
        return dense_attention(q, k, v, mask)
    attend = functools.partial(_cudnn_masked, is_causal=False, interpret=backend.interpret)
    return _on_each_device(attend, backend.mesh, "rows")(q, k, v, mask)


def _on_each_device(
    attend: Callable[..., jax.Array], mesh: Mesh | None, batch: str
) -> Callable[..., jax.Array]:
    """A kernel as one function of (q, k, v, mask or segments), each device with its own part."""
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
    odd = q.shape[1] % 2  # its gradient knows even lengths only
    q, k, v = (jnp.pad(x, ((0, 0), (0, odd), (0, 0), (0, 0))) for x in (q, k, v))
    mask = jnp.pad(mask, ((0, 0), (0, odd), (0, odd)), constant_values=True)
    out = _cudnn_masked(q, k, v, mask, is_causal=True, interpret=interpret)
    return out[:, : out.shape[1] - odd]


def _cudnn_masked(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, *, is_causal: bool, interpret: bool
) -> jax.Array:
    """The mask costs memory: a number for each query and key, not for each head."""
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


def _splash(
    q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array, interpret: bool
) -> jax.Array:
    """Splash attention of `jax.experimental.pallas`, over whole blocks of queries and keys."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    T, N, H = q.shape[1:]
    if H % 64:
        raise UserError(
            field="model.head_dim", value=H, expected="a multiple of 64 for pallas attention"
        )
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

    # What was filled up is a segment of its own, behind all others.
    segments = jnp.pad(segments, ((0, 0), (0, missing)), constant_values=-1)

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array) -> jax.Array:
        out = kernel(q, k, v, splash.SegmentIds(q=ids, kv=ids))
        assert isinstance(out, jax.Array)
        return out

    out = jax.vmap(attend)(by_head(q * H**-0.5), by_head(k), by_head(v), segments)
    return out.swapaxes(1, 2)[:, :T]
