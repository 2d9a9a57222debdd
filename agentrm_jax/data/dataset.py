"""Datasets on disk: TFDS builders that write and read array_record without TensorFlow.

An example is one JSON text with a few numbers, so that a dataset can be looked at and
filtered with the usual tools.
"""

from __future__ import annotations

import contextlib
import io
import json
import pathlib
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar, overload

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.json_values import parse_json
from agentrm_jax.core.text import first_line, printable
from agentrm_jax.runtime.manifests import check_manifest
from agentrm_jax.runtime.output_folders import new_folder

T = TypeVar("T")

SPLIT = "train"  # TFDS wants a name; a dataset has one split


def write_dataset(
    directory: pathlib.Path, name: str, examples: Iterable[tuple[str, dict[str, Any], Any]]
) -> int:
    """Writes a dataset in one piece: it is there whole or not at all.

    Args:
      examples: (key, numbers, record) of each example; keys are distinct, records plain JSON.

    Returns:
      How many examples were written.

    Raises:
      UserError: There are none, or the folder holds files that agentrm did not write.
    """
    rows = [
        {"key": key, "record": _encoded(directory, key, record), **numbers}
        for key, numbers, record in examples
    ]
    if not rows:
        raise UserError(f"{directory}: there is nothing to write, no {name} was made")
    numbers = {key: type(value) for key, value in rows[0].items() if not isinstance(value, str)}
    with new_folder(directory) as partial:
        builder = _builder(partial, name, rows, numbers)
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # TFDS reports downloads; none are made
                builder.download_and_prepare()
        except Exception as error:  # TFDS and array_record raise many kinds on a full disk
            raise UserError(f"{directory}: cannot be written ({first_line(error)})") from None
        shutil.rmtree(partial / "downloads", ignore_errors=True)  # TFDS makes it, empty
    return len(rows)


def _encoded(directory: pathlib.Path, key: str, record: Any) -> str:
    try:
        return json.dumps(record, separators=(",", ":"), allow_nan=False)
    except ValueError as error:
        raise UserError(f"{directory}: record {printable(key)}: {first_line(error)}") from None


def _builder(
    directory: pathlib.Path, name: str, rows: Sequence[dict[str, Any]], numbers: Mapping[str, type]
) -> Any:
    import numpy as np
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    features = {
        "key": tfds.features.Text(),
        "record": tfds.features.Text(),
        **{
            key: tfds.features.Scalar(np.int64 if kind is int else np.float64)
            for key, kind in numbers.items()
        },
    }

    # TFDS registers a class once in a process; this one is made for each dataset.
    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        name = "examples"

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                description=f"agentrm_jax: {name}",
                features=tfds.features.FeaturesDict(features),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager):
            return {SPLIT: self._generate_examples()}

        def _generate_examples(self):
            yield from enumerate(rows)

    # Without a format TFDS takes one that needs TensorFlow, and says so only when it is done.
    return Builder(data_dir=directory, file_format="array_record")


class Dataset(Sequence[T]):
    """A dataset's records, read when they are asked for."""

    def __init__(self, directory: pathlib.Path, source: Any, decode: Callable[[Any], T]) -> None:
        self._directory, self._source, self._decode = directory, source, decode

    def __len__(self) -> int:
        return len(self._source)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        try:
            return self._decode(parse_json(self._source[index]["record"]))
        except Exception as error:  # array_record raises plain RuntimeError and more
            raise UserError(
                f"{self._directory}: record {index} is corrupt ({first_line(error)}); delete the "
                "folder to make it again"
            ) from None


def open_dataset(directory: pathlib.Path, made_by: str, decode: Callable[[Any], T]) -> Dataset[T]:
    """A dataset that `write_dataset` wrote.

    Raises:
      UserError: It is not there (names the command that makes it) or damaged.
    """
    import tensorflow_datasets as tfds

    found = sorted(directory.glob("examples/*/dataset_info.json"))
    if not found:
        raise UserError(f"{directory}: not found; `agentrm {made_by}` makes it")
    check_manifest(directory)
    try:
        builder: Any = tfds.builder_from_directory(str(found[-1].parent))
        source = builder.as_data_source(split=SPLIT)
        len(source)
    except Exception as error:  # TFDS and array_record raise many kinds
        raise UserError(
            f"{directory}: damaged ({first_line(error)}); delete the folder to make it again"
        ) from None
    dataset = Dataset(directory, source, decode)
    dataset[-1]  # a truncated file says so here, not in the middle of a stage
    return dataset
