"""Placement of arrays: logical axis names, and the rules that map them to axes of a mesh."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.fields import check_fields

MESH_AXES = ("data", "fsdp", "tensor")

RULES: Mapping[str, str | tuple[str, ...] | None] = {
    "batch": ("data", "fsdp"),
    "rows": "data",
    "length": None,
    "layers": None,
    "embed": "fsdp",
    "activation_embed": None,
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "mlp": "tensor",
    "vocab": "tensor",
}
"""Logical axis to mesh axes. Parameters are split over `fsdp` and `tensor`, examples over `data`
and `fsdp`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along each mesh axis; one of them may be -1: all that are left.

    Attributes:
      data: Replicas of the models, which work on different rows.
      fsdp: Devices that share the parameters; in training each works on rows of its own.
      tensor: Devices that share each layer's products; divides the KV heads.
    """

    data: int = 1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        sizes = dataclasses.asdict(self)
        for name, size in sizes.items():
            if size != -1:
                check_fields(self, **{name: "[1, inf)"})
        if list(sizes.values()).count(-1) > 1:
            raise UserError("and the other sizes: at most one may be -1", field="data", value=sizes)

    def shape(self, num_devices: int) -> tuple[int, int, int]:
        """Returns the axis sizes for a number of devices.

        Raises:
          UserError: They do not fit.
        """
        sizes = [self.data, self.fsdp, self.tensor]
        known = math.prod(size for size in sizes if size != -1)
        if -1 in sizes and num_devices % known == 0:
            sizes[sizes.index(-1)] = num_devices // known
        if -1 in sizes or math.prod(sizes) > num_devices:
            raise UserError(
                f"data={self.data} fsdp={self.fsdp} tensor={self.tensor} does not fit "
                f"{num_devices} devices",
                field="mesh",
            )
        return sizes[0], sizes[1], sizes[2]


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh over the first `jax.Device`s (of all by default), as many as the config asks for.

    Raises:
      UserError: There are too few, or their wiring does not fit the mesh.
    """
    several = devices is None and jax.process_count() > 1
    devices = list(jax.devices() if devices is None else devices)
    shape = config.shape(len(devices))
    if several and math.prod(shape) != len(devices):
        raise UserError(
            f"data={shape[0]} fsdp={shape[1]} tensor={shape[2]} leaves some of the "
            f"{len(devices)} devices of {jax.process_count()} processes out; set one of them to -1",
            field="mesh",
        )
    try:
        # Not `jax.make_mesh`: 2 x 8 on a torus of 4 x 4 has to split an axis of the torus.
        placed = mesh_utils.create_device_mesh(
            shape, devices[: math.prod(shape)], allow_split_physical_axes=True
        )
    except (NotImplementedError, ValueError, AssertionError) as error:  # JAX asserts a whole block
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"data={shape[0]} fsdp={shape[1]} tensor={shape[2]} cannot be laid over these "
            f"{len(devices)} devices ({reason})",
            field="mesh",
        ) from None
    return Mesh(placed, MESH_AXES, axis_types=(AxisType.Auto,) * 3)


def logical_to_spec(
    axes: Sequence[str | None], rules: Mapping[str, str | tuple[str, ...] | None] = RULES
) -> PartitionSpec:
    """The partition of an array whose axes have these logical names (None: not split).

    Raises:
      ValueError: A name without a rule, or two axes on one mesh axis.
    """
    used: set[str] = set()
    spec: list[str | tuple[str, ...] | None] = []
    for name in axes:
        if name is not None and name not in rules:
            raise ValueError(f"no rule for the logical axis {name!r}")
        target = None if name is None else rules[name]
        targets = (target,) if isinstance(target, str) else target or ()
        if used & set(targets):
            raise ValueError(
                f"{tuple(axes)} would split two axes over {sorted(used & set(targets))}"
            )
        used.update(targets)
        spec.append(target)
    return PartitionSpec(*spec)


def named_sharding(mesh: Mesh, axes: Sequence[str | None]) -> NamedSharding:
    return NamedSharding(mesh, logical_to_spec(axes))


def constrain(x: jax.Array, axes: Sequence[str | None], mesh: Mesh | None) -> jax.Array:
    """Tells the compiler how an intermediate is split; nothing without a mesh."""
    return x if mesh is None else jax.lax.with_sharding_constraint(x, named_sharding(mesh, axes))
