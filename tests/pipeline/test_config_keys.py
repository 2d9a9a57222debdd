"""The list of a configuration's keys: names, types, defaults, and sections of open lists."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from agentrm_jax.core.registry import Registry
from agentrm_jax.pipeline.config import EnvironmentConfig, RunConfig
from agentrm_jax.pipeline.config_keys import keys_help

SHAPES: Registry[Any] = Registry("agentrm_jax.tests_of_config_keys", "shape")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """A shape."""


@SHAPES.register("circle")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Circle(Shape):
    """All points at one distance.

    Attributes:
      radius: The distance,
        in metres.
    """

    radius: float = 1.0


@SHAPES.register("point")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Point(Shape):
    """A single point."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Item:
    """An item.

    Attributes:
      name: Its name.
    """

    name: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Base:
    """The base.

    Attributes:
      seed: Decides all random numbers.
    """

    seed: int = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Base):
    """The whole.

    Attributes:
      mode: How.
      path: A folder.
      words, numbers: Two lists.
    """

    mode: Literal["fast", "slow"] = "slow"
    path: str | None = None
    words: Sequence[str] = ("a", "b")
    numbers: tuple[int, ...] = ()
    items: Sequence[Item] = ()
    wide: bool = True
    shape: Annotated[Shape, SHAPES] = dataclasses.field(default_factory=lambda: Circle(radius=2.5))
    options: Annotated[Mapping[str, Shape], SHAPES] = dataclasses.field(default_factory=dict)


def test_every_kind_of_field_is_listed() -> None:
    assert keys_help(Config).splitlines() == [
        "keys: The whole.",
        "  --seed=3 (whole number)",
        "        Decides all random numbers.",
        "  --mode=slow (fast or slow)",
        "        How.",
        "  --path=... (text; not set by default)",
        "        A folder.",
        "  --words=[a, b] (list of text)",
        "        Two lists.",
        "  --numbers=[] (list of whole number)",
        "        Two lists.",
        "  --items=[] (list of sections)",
        "  --wide=true (true or false)",
        "",
        "items[]: An item.",
        "  items[].name=... (text; required)",
        "        Its name.",
        "",
        "shape: A shape.",
        "  --shape.kind=circle (circle or point)",
        "",
        "shape, kind circle: All points at one distance.",
        "  --shape.radius=2.5 (number)",
        "        The distance, in metres.",
        "",
        "shape, kind point: A single point.",
        "",
        "options: Options by shape.",
        "",
        "options.circle: All points at one distance.",
        "  --options.circle.radius=1.0 (number)",
        "        The distance, in metres.",
        "",
        "options.point: A single point.",
    ]


def test_a_member_without_keys_is_listed_with_the_reason() -> None:
    registry: Registry[Any] = Registry("agentrm_jax.tests_of_config_keys", "shape")
    registry.register("broken")(print)
    shape = dataclasses.field(default_factory=Circle)
    config = dataclasses.make_dataclass("Config", [("shape", Annotated[Shape, registry], shape)])
    assert "shape, kind broken: has no keys" in keys_help(config).splitlines()


def test_every_key_of_a_run_is_listed() -> None:
    text = keys_help(RunConfig)
    values = dataclasses.asdict(RunConfig(environments=[EnvironmentConfig(name="maze")]))
    keys = list(_keys(values, ""))
    assert len(keys) > 80
    assert [key for key in keys if f"\n  --{key}=" not in text] == []


def _keys(values: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
