"""Checkpoints. The only module that knows Orbax."""

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

_MODEL_FILE = "model.json"
_PARAMS = "params"


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


def _orbax() -> Any:
    from orbax.checkpoint import v1  # takes seconds to import

    return v1


def _leaves(tree: Any) -> dict[str, Any]:
    found = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in found}


def _check(path: pathlib.Path, target: Any) -> None:
    """Compares what is stored with what is wanted.

    Raises:
      UserError: Names the first parameter that is missing, left over or of another shape.
    """
    try:
        with _quiet():
            metadata = _orbax().metadata(path).metadata
        stored = {name: tuple(leaf.shape) for name, leaf in _leaves(metadata["state"]).items()}
    except Exception as error:  # Orbax raises many kinds for what is no checkpoint
        raise UserError(f"{path}: not a checkpoint that can be read ({_line(error)})") from None
    wanted = {name: tuple(leaf.shape) for name, leaf in _leaves(target).items()}
    for name in sorted(stored.keys() | wanted.keys()):
        if stored.get(name) != wanted.get(name):
            raise UserError(
                f"{path}: parameter {name} has shape {stored.get(name, 'none, it is missing')}, "
                f"the configured model wants {wanted.get(name, 'none, it has no such parameter')}"
            )


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def save_model(directory: pathlib.Path, kind: str, config: Mapping[str, Any], params: Any) -> None:
    """Writes a finished model in one piece: parameters, its kind and its shape."""
    partial = directory.with_name(directory.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with _quiet():
        _orbax().save(partial / _PARAMS, params)
    (partial / _MODEL_FILE).write_text(json.dumps({"kind": kind, "config": dict(config)}, indent=1))
    shutil.rmtree(directory, ignore_errors=True)
    partial.rename(directory)


def read_model_config(directory: pathlib.Path, kind: str) -> dict[str, Any]:
    """The shape of a saved model.

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
        raise UserError(f"{path}: damaged ({_line(error)})") from None
    if found != kind:
        raise UserError(f"{directory}: holds a {found} model, a {kind} model is wanted")
    return config


def load_model(directory: pathlib.Path, target: Any) -> Any:
    """A saved model's parameters, placed as the abstract target says."""
    return load_tree(directory / _PARAMS, target)


def load_tree(path: pathlib.Path, target: Any) -> Any:
    """Restores arrays into an abstract tree whose leaves carry shape, dtype and sharding."""
    _check(path, target)
    with _quiet():
        return _orbax().load(path, target)


class TrainingCheckpoints:
    """The checkpoints of a training run; after a kill the newest whole one counts.

    Args:
      directory: One folder for each checkpoint, named by its update.
      keep: How many of the newest stay.
    """

    def __init__(self, directory: pathlib.Path, keep: int = 2) -> None:
        orbax = _orbax()
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        with _quiet():
            self._checkpointer = orbax.training.Checkpointer(
                directory,
                preservation_policy=orbax.training.preservation_policies.LatestN(keep),
                cleanup_tmp_directories=True,
            )

    @property
    def latest(self) -> int | None:
        """The update of the newest checkpoint."""
        latest = self._checkpointer.latest
        return None if latest is None else int(latest.step)

    def save(self, update: int, state: Any) -> None:
        with _quiet():
            self._checkpointer.save(update, state, overwrite=True)

    def restore(self, target: Any) -> Any:
        """The newest checkpoint, into an abstract tree."""
        update = self.latest
        _check(self._directory / str(update), target)
        with _quiet():
            return self._checkpointer.load(update, target)

    def close(self) -> None:
        with _quiet():
            self._checkpointer.close()
