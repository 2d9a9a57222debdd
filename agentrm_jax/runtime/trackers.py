"""Metrics for people who watch a run elsewhere: TensorBoard, Weights & Biases."""

from __future__ import annotations

import hashlib
import importlib.util
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.text import described
from agentrm_jax.runtime.run_paths import METRICS

TRACKERS = {"tensorboard": "tensorboardX", "wandb": "wandb"}
"""Name, which is also that of its extra, and the package that it needs."""


class Tracker(Protocol):
    """A second destination of metrics, after the run's own file."""

    def write(self, stage: str, update: int, values: Mapping[str, float]) -> None:
        """Keeps one row; may fail with anything."""


def check_installed(names: Sequence[str]) -> None:
    """Refuses trackers whose package is not there.

    Raises:
      UserError: Says what to install.
    """
    for name in names:
        if importlib.util.find_spec(TRACKERS[name]) is None:
            raise UserError(
                f"needs {TRACKERS[name]} for {name}: pip install 'agentrm-jax[{name}]'",
                field="trackers",
            )


def open_tracker(name: str, directory: pathlib.Path, config: Mapping[str, Any]) -> Tracker:
    """A tracker whose failures never stop a run.

    Args:
      directory: The run's folder. A run that is resumed continues its curves.
      config: The configuration; shown next to the curves if the tracker can.
    """
    if name == "tensorboard":
        return _Forgiving(name, lambda: _TensorBoard(directory))
    return _Forgiving(name, lambda: _Wandb(directory, config))


class _Forgiving:
    """Opens a tracker when the first row comes, and leaves it out once it has failed."""

    def __init__(self, name: str, make: Callable[[], Tracker]) -> None:
        self._name, self._make = name, make
        self._tracker: Tracker | None = None
        self._failed = False

    def write(self, stage: str, update: int, values: Mapping[str, float]) -> None:
        if self._failed:
            return
        try:
            if self._tracker is None:
                self._tracker = self._make()
            self._tracker.write(stage, update, values)
        except Exception as error:  # a network, a disk, another version of the package
            self._failed = True
            print(
                f"{self._name} failed and is left out from here on, {METRICS} is not "
                f"({described(error)})",
                file=sys.stderr,
            )


class _TensorBoard:
    """Event files in `tensorboard/` of the run."""

    def __init__(self, directory: pathlib.Path) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(directory / "tensorboard"), flush_secs=5)

    def write(self, stage: str, update: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"{stage}/{name}", value, update)


class _Wandb:
    """A run of the project that WANDB_PROJECT names; every stage counts updates of its own."""

    def __init__(self, directory: pathlib.Path, config: Mapping[str, Any]) -> None:
        import wandb

        path = str(directory.resolve())
        self._run = wandb.init(
            name=directory.resolve().name,
            id=hashlib.sha256(path.encode()).hexdigest()[:16],
            resume="allow",
            dir=path,
            config=dict(config),
        )
        self._stages: set[str] = set()

    def write(self, stage: str, update: int, values: Mapping[str, float]) -> None:
        if stage not in self._stages:
            self._stages.add(stage)
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/update")
        row = {f"{stage}/{name}": value for name, value in {"update": update, **values}.items()}
        self._run.log(row)
