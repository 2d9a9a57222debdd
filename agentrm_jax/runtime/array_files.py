"""One array in a file with a checksum: `.npz`, whose zip container has a CRC-32 of its contents."""

from __future__ import annotations

import pathlib
import zipfile

import numpy as np

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.text import first_line
from agentrm_jax.runtime.output_folders import new_file


def write_array(path: pathlib.Path, values: np.ndarray) -> None:
    """Writes an array; the file, `.npz`, is there whole or not at all.

    Raises:
      UserError: It cannot be written.
    """
    with new_file(path) as file:
        np.savez(file.buffer, values=values)  # pyright: ignore[reportAttributeAccessIssue]


def read_array(path: pathlib.Path) -> np.ndarray:
    """Returns the array of a file that `write_array` wrote.

    Raises:
      UserError: It is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise ValueError("it is compressed, and may hold any number of bytes")
        with np.load(path, allow_pickle=False) as stored:
            values = stored["values"]
        if not isinstance(values, np.ndarray):  # a member without numpy's mark is given as bytes
            raise ValueError("it holds no array")
        return values
    except Exception as error:  # numpy and zipfile raise many kinds
        raise UserError(
            f"{path}: damaged ({first_line(error)}); delete the file to make it again"
        ) from None
