"""Checkpoints. The only module that imports Orbax.

A finished model is a folder: `model.json` (kind and shape), `params/` (Orbax) and a manifest with
the sha256 of every file. A training run keeps a folder of states, one for each checkpoint, named
by its update; checksums of the values are part of each.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import pathlib
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.json_values import parse_json
from agentrm_jax.core.text import first_line
from agentrm_jax.runtime.array_checksums import checksums, named_leaves, sealed, unsealed
from agentrm_jax.runtime.manifests import check_manifest
from agentrm_jax.runtime.output_folders import begin_folder, drop_folder, finish_folder
from agentrm_jax.runtime.processes import from_first, is_first

_MODEL_FILE = "model.json"
_PARAMS = "params"
_LOSS = "held_out_loss"


def save_model(
    directory: pathlib.Path,
    kind: str,
    config: Mapping[str, Any],
    params: Any,
    add_files: Callable[[pathlib.Path], None] | None = None,
) -> None:
    """Writes a finished model; the folder appears in one piece or not at all.

    All processes call it: each writes its shards of the parameters, the first one the rest.

    Args:
      directory: An unchanged model that is there already is replaced.
      kind: `policy` or `reward`.
      config: Whatever is needed to rebuild the model, as JSON values.
      add_files: Writes further files, such as the tokenizer's, into the folder of its argument.

    Raises:
      UserError: The folder holds files that agentrm did not write, or cannot be written.
    """
    directory = directory.absolute()
    partial = pathlib.Path(from_first(lambda: str(begin_folder(directory))))

    def finish() -> None:
        stored = {"kind": kind, "config": dict(config)}
        (partial / _MODEL_FILE).write_text(json.dumps(stored, indent=1))
        if add_files is not None:
            add_files(partial)
        finish_folder(partial, directory)

    try:
        with _quiet(), _writable(directory):
            _orbax().save(partial / _PARAMS, params)
        with _writable(directory):
            from_first(finish)
    except BaseException:
        if is_first():
            drop_folder(partial)
        raise


def read_model_config(directory: pathlib.Path, kind: str) -> dict[str, Any]:
    """Returns the config of a saved model.

    Raises:
      UserError: There is none, it is of another kind, or it changed since it was saved.
    """
    path = directory / _MODEL_FILE
    if not path.exists():
        raise UserError(f"{directory}: no model here ({_MODEL_FILE} is missing)")
    try:
        stored = parse_json(path.read_bytes())
        found, config = stored["kind"], stored["config"]
        if not isinstance(config, dict):
            raise TypeError("config is not a JSON object")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged ({first_line(error)}); save the model again") from None
    check_manifest(directory, only=_MODEL_FILE)
    if found != kind:
        raise UserError(f"{directory}: holds a {found} model, a {kind} model is wanted")
    return config


def load_model(directory: pathlib.Path, target: Any, *, partial: bool = False) -> Any:
    """Returns a saved model's parameters, after every file was compared with the manifest.

    Args:
      target: Abstract tree (`jax.ShapeDtypeStruct`) whose leaves carry shape, dtype and sharding;
        the parameters are read straight to where it says.
      partial: Whether the model may hold more than the target asks for, as a policy does when only
        its trunk is wanted. The rest is not read.

    Raises:
      UserError: There is none, it is damaged, or a parameter is missing or of another shape.
    """
    path = directory.absolute() / _PARAMS
    check_manifest(directory)
    _check(path, target, partial)
    orbax = _orbax()
    loading = orbax.options.PyTreeOptions.Loading(partial_load=partial)
    options = orbax.options.PyTreeOptions(loading=loading)
    with _quiet(), _readable(path), orbax.Context(pytree_options=options):
        return orbax.load(path, target)


class TrainingCheckpoints:
    """The checkpoints of a training run; after a kill the newest whole one counts.

    A save returns when the state was copied to the host, so that it may be donated right after it;
    the disk is written while training continues. All processes make and call it.

    Args:
      directory: One folder for each checkpoint, named by its update.
      keep: Number of the newest checkpoints that stay, as well as the one with the smallest
        held-out loss if there are held-out tasks.
    """

    def __init__(self, directory: pathlib.Path, keep: int) -> None:
        training = _orbax().training
        policies = training.preservation_policies
        self._directory = self._saving = directory.absolute()
        self._response: Any = None
        self._directory.mkdir(parents=True, exist_ok=True)
        with _quiet(), _readable(self._directory):
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
        self._wait()
        losses = {int(each.step): self._loss(each) for each in self._checkpointer.checkpoints}
        measured = [(loss, -update) for update, loss in losses.items() if loss is not None]
        return (-min(measured)[1], min(measured)[0]) if measured else None

    def _loss(self, listed: Any) -> float | None:
        """The loss of a checkpoint on what was held out; one of an older version has no record."""
        record = self._record(int(listed.step))
        return (listed.metrics or {}).get(_LOSS) if record is None else record[_LOSS]

    def _record(self, update: int) -> dict[str, Any] | None:
        with _quiet(), _readable(self._directory / str(update)):
            return unsealed(self._checkpointer.metadata(update).custom_metadata)

    def save(self, update: int, state: Any, held_out_loss: float | None = None) -> None:
        """Begins to write a checkpoint, as soon as the one before it is on the disk.

        Args:
          held_out_loss: Decides which checkpoint is the best one.

        Raises:
          UserError: The one before it could not be written.
        """
        record = {"checksums": checksums(state), _LOSS: held_out_loss}
        self._wait()  # overwriting one that is being written would tear it
        self._saving = self._directory / str(update)
        with _quiet(), _writable(self._saving):
            self._response = self._checkpointer.save_async(
                update,
                state,
                force=True,
                overwrite=True,
                metrics=None if held_out_loss is None else {_LOSS: held_out_loss},
                custom_metadata=sealed(record),
            )

    def restore(self, target: Any, update: int | None = None) -> Any:
        """Returns a checkpoint, by default the newest, as an abstract tree says (`load_model`).

        Raises:
          UserError: There is none, it is damaged, or holds a state of another shape.
        """
        if update is None:
            update = self.latest
        if update is None:
            raise UserError(f"{self._directory}: there is no checkpoint here")
        path = self._directory / str(update)
        _check(path, target)
        record = self._record(update)
        with _quiet(), _readable(path):
            state = self._checkpointer.load(update, target)
        if record is not None:  # a checkpoint of an older version has none
            _check_values(path, record["checksums"], checksums(state))
        return state

    def _wait(self) -> None:
        """Waits for the checkpoint that is being written, if there is one."""
        response, self._response = self._response, None
        with _quiet(), _writable(self._saving):
            if response is not None:
                response.result()
            self._checkpointer.wait()

    def close(self) -> None:
        """Waits for the newest checkpoint to be on the disk.

        Raises:
          UserError: It could not be written.
        """
        try:
            self._wait()
        finally:
            with _quiet(), _writable(self._saving):
                self._checkpointer.close()


def _orbax() -> Any:
    from orbax.checkpoint import v1  # takes seconds to import

    return v1


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Orbax's reports off the terminal: it logs every save, and errors that it also raises.

    Its threads and abandoned coroutines print tracebacks of their own if a file is damaged.
    """
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    levels = [logger.level for logger in loggers]
    hooks = sys.excepthook, sys.unraisablehook
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    sys.excepthook = sys.unraisablehook = lambda *_: None
    try:
        yield
    except Exception:
        with warnings.catch_warnings(action="ignore"):
            gc.collect()  # the coroutines complain when they are collected
        raise
    finally:
        sys.excepthook, sys.unraisablehook = hooks
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _readable(path: pathlib.Path) -> Iterator[None]:
    """Turns whatever reading raises (Orbax and its storage raise many kinds) into one line."""
    try:
        yield
    except Exception as error:
        raise UserError(
            f"{path}: not a checkpoint that can be read ({first_line(error)})"
        ) from None


@contextlib.contextmanager
def _writable(path: pathlib.Path) -> Iterator[None]:
    """Turns whatever writing raises, on a full disk for example, into one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = first_line(error, 400)
        raise UserError(f"{path}: cannot be written ({reason})") from None


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(leaf.shape) for name, leaf in named_leaves(tree).items()}


def _check_values(path: pathlib.Path, saved: Mapping[str, str], loaded: Mapping[str, str]) -> None:
    for name in sorted(saved.keys() | loaded.keys()):
        if saved.get(name) != loaded.get(name):
            raise UserError(
                f"{path}: damaged (parameter {name} differs from its checksum); delete this folder "
                "to resume from the checkpoint before it"
            )


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
                f"the config requires {wanted.get(name, 'none (no such parameter)')}"
            )
