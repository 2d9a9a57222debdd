"""Reads experiment files: one base, and layers of keys for each run.

    title, question, source, time, paper, tables   what it asks and shows (`config`)
    base      a configuration file next to this one, or its keys
    config    keys of all runs
    models    NAME: keys; trained as far as a run refers to them
    runs      NAME: keys; evaluated
    grid      KEY: [values]; every run once for each combination
    sizes     SIZE: any of the keys above, laid over the file

A key may refer to a model of another run: `${NAME.policy}`, `${NAME.reward}`, `${NAME.implicit}`.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import itertools
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence

import agentrm_jax
from agentrm_jax.core.errors import UserError
from agentrm_jax.core.text import printable, shown
from agentrm_jax.core.yaml_nodes import Node, read_yaml
from agentrm_jax.pipeline.config_scalars import refused
from agentrm_jax.pipeline.experiments.config import ExperimentConfig
from agentrm_jax.pipeline.load_config import load_layers, nested, overlaid, override_layers

SIZES = ("laptop", "tiny", "paper")
"""Sizes that every shipped experiment has; `laptop` is the file as it stands."""
FOLDER = pathlib.Path("configs") / "experiments"
_RAW = ("base", "config", "models", "runs", "grid", "sizes")
_LAYERED = ("title", "question", "source", "time", "paper", "tables", *_RAW[:-1])
_NAME = re.compile(r"[A-Za-z0-9_]+")
_UNSAFE = re.compile(r"[^\w.,+-]+")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A run or a model of an experiment.

    Attributes:
      name: Its name, with the values of the grid.
      group: Its name in the file.
      seed: The training seed that its references share; None for that of the configuration.
      evaluated: Whether it is evaluated. A model is trained as far as others refer to it.
      axes: The values of the grid, by key.
      layers: Its keys; later layers replace earlier ones.
    """

    name: str
    group: str
    seed: int | None
    evaluated: bool
    axes: Mapping[str, str]
    layers: tuple[Node, ...]

    @property
    def folder(self) -> str:
        """The name of its folder."""
        return self.name if self.seed is None else f"{self.name}-seed{self.seed}"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Experiment:
    """An experiment of one size.

    Attributes:
      name: The name of its file.
      path: The file.
      size: The size.
      config: What it asks and shows.
      entries: Its runs and models, those of each seed after another.
    """

    name: str
    path: pathlib.Path
    size: str
    config: ExperimentConfig
    entries: tuple[Entry, ...]

    def entry(self, group: str, seed: int | None, axes: Mapping[str, str]) -> Entry:
        """Returns the run or model that a reference names: of the same seed and grid values.

        Raises:
          UserError: There is none.
        """
        found = [e for e in self.entries if e.group == group and e.seed == seed]
        if not found:
            names = sorted({entry.group for entry in self.entries})
            raise UserError(f"names no run or model ({shown(group)}); known: {', '.join(names)}")
        return next((entry for entry in found if entry.axes == axes), found[0])


def experiment_names() -> list[str]:
    """Returns the names of the experiments that `find_experiment` finds."""
    return sorted({path.stem for folder in _folders() for path in folder.glob("*.yaml")})


def find_experiment(name: str) -> pathlib.Path:
    """Returns the file of an experiment.

    Args:
      name: A name of `experiment_names`, or the path of a file.

    Raises:
      UserError: There is none.
    """
    if name.endswith((".yaml", ".yml")):
        return pathlib.Path(name)
    for folder in _folders():
        if (path := folder / f"{name}.yaml").is_file():
            return path
    names = experiment_names()
    near = difflib.get_close_matches(name[:60], names, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(names) or 'none'}"
    raise UserError(f"no experiment {shown(name)}; {hint} (or give the path of a YAML file)")


def _folders() -> list[pathlib.Path]:
    """The folders with experiments: that of the working folder and that of the checkout."""
    assert agentrm_jax.__file__ is not None
    checkout = pathlib.Path(agentrm_jax.__file__).parents[1] / FOLDER
    return [folder for folder in (FOLDER, checkout) if folder.is_dir()]


def load_header(path: pathlib.Path) -> ExperimentConfig:
    """Returns what an experiment file asks and shows, without reading its runs."""
    return _header(_sized(read_yaml(path), "laptop"))


def load_experiment(
    path: pathlib.Path,
    *,
    size: str = "laptop",
    seeds: Sequence[int] = (),
    overrides: Sequence[str] = (),
) -> Experiment:
    """Reads an experiment file.

    Args:
      path: The file.
      size: A key of its `sizes`; `laptop` needs none.
      seeds: Training seeds; every run and model once for each. Empty: the seed of the file.
      overrides: `--KEY=VALUE` for all runs and models. Keys that a run sets itself stay.

    Raises:
      UserError: A file is missing or not YAML, or a key is unknown or wrong; names file and line.
    """
    node = _sized(read_yaml(path), size)
    config = _header(node)
    keys = _map(node, "config")
    common = [_base(path, node), *([keys] if keys else []), *override_layers(overrides)]
    axes = list(_axes(_map(node, "grid")))
    entries = []
    for seed in seeds or (None,):
        shared = common
        if seed is not None:  # all seeds are tested on the same tasks, so that they can be averaged
            tasks = () if seed == seeds[0] else (_number("evaluate.task_seed", seeds[0]),)
            shared = [*tasks, *common, _number("seed", seed)]
        for name, own in _named(_map(node, "models"), "models").items():
            entries.append(_entry(name, False, seed, (*shared, own), ()))
        for name, own in _named(_map(node, "runs"), "runs").items():
            layers = (*shared, own)
            entries += [_entry(name, True, seed, layers, each) for each in itertools.product(*axes)]
    names = [entry.folder for entry in entries]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{path}: two runs or models are named {twice}")
    return Experiment(name=path.stem, path=path, size=size, config=config, entries=tuple(entries))


def _entry(
    name: str,
    evaluated: bool,
    seed: int | None,
    layers: tuple[Node, ...],
    combination: tuple[tuple[str, str, Node], ...],
) -> Entry:
    parts = [f"{key.rpartition('.')[2]}={_UNSAFE.sub('_', text)}" for key, text, _ in combination]
    return Entry(
        name="-".join([name, *parts]),
        group=name,
        seed=seed,
        evaluated=evaluated,
        axes={key: text for key, text, _ in combination},
        layers=(*layers, *(nested(key, value) for key, _, value in combination)),
    )


def _sized(node: Node, size: str) -> Node:
    """The file with the keys of a size laid over it."""
    assert isinstance(node.value, dict)
    for name, inner in node.value.items():
        if name not in (*_LAYERED, "sizes"):
            near = difflib.get_close_matches(name[:60], (*_LAYERED, "sizes"), n=1)
            hint = f"did you mean {near[0]}?" if near else f"must be one of {', '.join(_LAYERED)}"
            raise UserError(f"{inner.where}: unknown key {printable(name)[:100]}; {hint}")
    sizes = _map(node, "sizes")
    known = {} if sizes is None else sizes.value
    assert isinstance(known, dict)
    if size not in known and size != "laptop":
        names = ", ".join(dict.fromkeys(("laptop", *known)))
        raise UserError(f"no size {shown(size)} in this experiment; must be one of {names}")
    base = dataclasses.replace(node, value={k: v for k, v in node.value.items() if k != "sizes"})
    if size not in known:
        return base
    layer = known[size]
    if not isinstance(layer.value, dict):
        raise refused(layer, f"sizes.{size}", "must be keys and values")
    for name, inner in layer.value.items():
        if name not in _LAYERED:
            raise refused(inner, f"sizes.{size}.{printable(name)[:60]}", "is not a key of the file")
    return overlaid(base, layer)


def _header(node: Node) -> ExperimentConfig:
    assert isinstance(node.value, dict)
    values = {key: value for key, value in node.value.items() if key not in _RAW}
    return load_layers(ExperimentConfig, [dataclasses.replace(node, value=values)])


def _base(path: pathlib.Path, node: Node) -> Node:
    """The base configuration."""
    assert isinstance(node.value, dict)
    base = node.value.get("base")
    if base is None:
        raise refused(node, "base", "is missing; a configuration file, or its keys")
    if isinstance(base.value, dict):
        return base
    if not isinstance(base.value, str) or not base.value:
        raise refused(base, "base", "must be a configuration file, or its keys")
    return read_yaml(path.parent / base.value)


def _map(node: Node, key: str) -> Node | None:
    """The mapping of a top-level key, None if it is not set."""
    assert isinstance(node.value, dict)
    inner = node.value.get(key)
    if inner is not None and not isinstance(inner.value, dict):
        raise refused(inner, key, "must be keys and values")
    return inner


def _named(node: Node | None, key: str) -> dict[str, Node]:
    """The layers of runs or models by name; one run without keys if none is named."""
    empty = Node(value={}, tag="map", where="")
    if node is None:
        return {"run": empty} if key == "runs" else {}
    assert isinstance(node.value, dict)
    found = {}
    for name, inner in node.value.items():
        if not _NAME.fullmatch(name):
            raise refused(inner, f"{key}.{printable(name)[:60]}", "must be letters, digits and _")
        if inner.tag == "null":
            inner = empty
        if not isinstance(inner.value, dict):
            raise refused(inner, f"{key}.{name}", "must be keys and values")
        found[name] = inner
    return found


def _axes(node: Node | None) -> Iterator[list[tuple[str, str, Node]]]:
    """The values of each axis of the grid: key, text, value."""
    if node is None:
        return
    assert isinstance(node.value, dict)
    for key, values in node.value.items():
        if not isinstance(values.value, list) or not values.value:
            raise refused(values, f"grid.{key}", "must be a list of values, such as [1, 2, 4]")
        yield [(key, _text(value), value) for value in values.value]


def _text(node: Node) -> str:
    if isinstance(node.value, str):
        return node.value
    inner = node.value if isinstance(node.value, list) else node.value.values()
    return "+".join(map(_text, inner))


def _number(key: str, value: int) -> Node:
    return nested(key, Node(value=str(value), tag="int", where=""))


_REFERENCE = re.compile(r"\$\{(\w+)\.(\w+)\}")


def references(node: Node) -> list[tuple[str, str, Node]]:
    """Returns the references in a layer: name, what, and the node that holds it.

    Raises:
      UserError: A text begins as a reference and is none.
    """
    if isinstance(node.value, str):
        if not node.value.startswith("${"):
            return []
        found = _REFERENCE.fullmatch(node.value)
        if found is None:
            raise UserError(
                f"{node.where}: {shown(node.value)} is no reference; write ${{NAME.policy}}, "
                "${NAME.reward} or ${NAME.implicit}"
            )
        return [(found[1], found[2], node)]
    inner = node.value if isinstance(node.value, list) else node.value.values()
    return [each for part in inner for each in references(part)]


def replaced(node: Node, paths: Mapping[str, str]) -> Node:
    """Returns a layer with paths in place of its references.

    Args:
      node: The layer.
      paths: By reference, such as `${small.policy}`.
    """
    if isinstance(node.value, str):
        text = paths.get(node.value)
        return node if text is None else dataclasses.replace(node, value=text, tag="str")
    if isinstance(node.value, list):
        return dataclasses.replace(node, value=[replaced(each, paths) for each in node.value])
    inner = {key: replaced(each, paths) for key, each in node.value.items()}
    return dataclasses.replace(node, value=inner)


def merged(layers: Sequence[Node]) -> Node:
    """Returns the layers as one."""
    return functools.reduce(overlaid, layers)
