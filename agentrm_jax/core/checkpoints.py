"""Checkpoints. The only module that knows Orbax.

A finished model is a folder: `model.json` (kind and shape) and `params/` (Orbax). A training run
keeps a folder of states, one for each checkpoint, named by its update.
"""

from __future__ import annotations

import contextlib
import json
import logging
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.processes import from_first

_MODEL_FILE = "model.json"
_PARAMS = "params"
_LOSS = "held_out_loss"


def save_model(directory: pathlib.Path, kind: str, config: Mapping[str, Any], params: Any) -> None:
    """Writes a finished model; the folder appears in one piece or not at all.

    All processes call it: each writes its part of the parameters, the first one the rest.

    Args:
      directory: A model that is there already is replaced.
      kind: `policy` or `reward`.
      config: Whatever is needed to rebuild the model, as JSON values.
    """
    directory = directory.absolute()
    partial = directory.with_name(directory.name + ".partial")

    def begin() -> None:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)

    def finish() -> None:
        stored = {"kind": kind, "config": dict(config)}
        (partial / _MODEL_FILE).write_text(json.dumps(stored, indent=1))
        shutil.rmtree(directory, ignore_errors=True)
        partial.rename(directory)

    from_first(begin)
    with _quiet():
        _orbax().save(partial / _PARAMS, params)
    from_first(finish)


def read_model_config(directory: pathlib.Path, kind: str) -> dict[str, Any]:
    """The config of a saved model.

    Raises:
      UserError: There is none, or of another kind.
    """
    path = directory / _MODEL_FILE
    if not path.exists():
        raise UserError(f"{directory}: no model here ({_MODEL_FILE} is missing)")
    try:
        stored = json.loads(path.read_text())
        found, config = stored["kind"], stored["config"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged ({_line(error)}); save the model again") from None
    if found != kind:
        raise UserError(f"{directory}: holds a {found} model, a {kind} model is wanted")
    return config


def load_model(directory: pathlib.Path, target: Any, *, partial: bool = False) -> Any:
    """A saved model's parameters.

    Args:
      target: Abstract tree (`jax.ShapeDtypeStruct`) whose leaves carry shape, dtype and sharding;
        the parameters are read straight to where it says.
      partial: Whether the model may hold more than the target asks for, as a policy does when only
        its trunk is wanted. The rest is not read.

    Raises:
      UserError: There is none, it is damaged, or a parameter is missing or of another shape.
    """
    path = directory.absolute() / _PARAMS
    _check(path, target, partial)
    orbax = _orbax()
    loading = orbax.options.PyTreeOptions.Loading(partial_load=partial)
    options = orbax.options.PyTreeOptions(loading=loading)
    with _quiet(), _readable(path), orbax.Context(pytree_options=options):
        return orbax.load(path, target)


class TrainingCheckpoints:
    """The checkpoints of a training run; after a kill the newest whole one counts.

    A save returns when the state was copied to the host, so that it may be donated right after it;
    the disk is written while training goes on. All processes make and call it.

    Args:
      directory: One folder for each checkpoint, named by its update.
      keep: How many of the newest stay, besides the one with the smallest loss on what was held
        out, where that was measured.
    """

    def __init__(self, directory: pathlib.Path, keep: int) -> None:
        training = _orbax().training
        policies = training.preservation_policies
        self._directory = directory.absolute()
        self._directory.mkdir(parents=True, exist_ok=True)
        with _quiet():
            self._checkpointer = training.Checkpointer(
                self._directory,
                preservation_policy=policies.AnyPreservationPolicy(
                    [
                        policies.LatestN(keep),
                        policies.BestN(
                            get_metric_fn=lambda metrics: -metrics[_LOSS],
                            n=1,
                            keep_checkpoints_without_metrics=False,
                        ),
                    ]
                ),
                cleanup_tmp_directories=True,
            )

    @property
    def latest(self) -> int | None:
        """The update of the newest checkpoint."""
        latest = self._checkpointer.latest
        return None if latest is None else int(latest.step)

    @property
    def best(self) -> tuple[int, float] | None:
        """The update with the smallest loss on what was held out, and that loss."""
        self._checkpointer.wait()
        measured = [
            (each.metrics[_LOSS], -int(each.step))
            for each in self._checkpointer.checkpoints
            if each.metrics
        ]
        return (-min(measured)[1], min(measured)[0]) if measured else None

    def save(self, update: int, state: Any, held_out_loss: float | None = None) -> None:
        """Begins to write a checkpoint, as soon as the one before it is on the disk.

        Args:
          held_out_loss: Decides which checkpoint is the best one.

        Raises:
          OSError: The one before it could not be written.
        """
        with _quiet():
            self._checkpointer.wait()  # overwriting one that is being written would tear it
            self._checkpointer.save_async(
                update,
                state,
                force=True,
                overwrite=True,
                metrics=None if held_out_loss is None else {_LOSS: held_out_loss},
            )

    def restore(self, target: Any, update: int | None = None) -> Any:
        """A checkpoint, by default the newest, into an abstract tree as in `load_model`.

        Raises:
          UserError: There is none, it is damaged, or holds a state of another shape.
        """
        if update is None:
            update = self.latest
        if update is None:
            raise UserError(f"{self._directory}: there is no checkpoint here")
        path = self._directory / str(update)
        _check(path, target)
        with _quiet(), _readable(path):
            return self._checkpointer.load(update, target)

    def close(self) -> None:
        """Waits for the newest checkpoint to be on the disk."""
        with _quiet():
            self._checkpointer.close()


def _orbax() -> Any:
    from orbax.checkpoint import v1  # takes seconds to import

    return v1


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Orbax reports every save through absl's logger; only its errors are of interest."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _readable(path: pathlib.Path) -> Iterator[None]:
    """Turns whatever reading raises (Orbax and its storage raise many kinds) into one line."""
    try:
        yield
    except Exception as error:
        raise UserError(f"{path}: not a checkpoint that can be read ({_line(error)})") from None


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200] or type(error).__name__


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): tuple(leaf.shape)
        for path, leaf in leaves
    }


def _check(path: pathlib.Path, target: Any, partial: bool = False) -> None:
    """Compares what is stored with what is wanted.

    Raises:
      UserError: Names the first parameter that is missing, left over or of another shape.
    """
    if not path.exists():
        raise UserError(f"{path}: there is no checkpoint here")
    with _quiet(), _readable(path):
        stored = _shapes(_orbax().metadata(path).metadata)
        if not stored:
            raise ValueError("it holds no arrays; its files may be lost")
    wanted = _shapes(target)
    for name in sorted(wanted if partial else stored.keys() | wanted.keys()):
        if stored.get(name) != wanted.get(name):
            raise UserError(
                f"{path}: parameter {name} has shape {stored.get(name, 'none (it is missing)')}, "
                f"the config wants {wanted.get(name, 'none (no such parameter)')}"
            )
