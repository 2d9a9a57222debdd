"""Imports the files and modules that a configuration names in `plugins`.

A plugin registers what the package does not have: methods, selection rules, value heads, kinds of
reward models, policies.
"""

from __future__ import annotations

import importlib
import importlib.util
import pathlib
import sys

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.text import described, printable, shown


def import_plugin(name: str) -> None:
    """Imports a plugin; does nothing if this process has imported it already.

    Args:
      name: A module's name, or the path of a `.py` file, from the current folder.

    Raises:
      UserError: It is not there, or an exception is raised while it is imported.
    """
    try:
        if name.endswith(".py"):
            _import_file(pathlib.Path(name).resolve())
        else:
            importlib.import_module(name)
    except UserError:
        raise
    except Exception as error:  # a user's code may raise anything
        raise UserError(
            f"{shown(name)} cannot be imported ({described(error)}){_advice(name, error)}"
        ) from error


def _advice(name: str, error: Exception) -> str:
    """The advice for a module that lies next to the plugin: Python does not search that folder."""
    if not isinstance(error, ModuleNotFoundError) or not error.name or not name.endswith(".py"):
        return ""
    folder = pathlib.Path(name).parent
    if not ((folder / f"{error.name}.py").is_file() or (folder / error.name).is_dir()):
        return ""
    return f"; its folder is not searched: set PYTHONPATH={printable(str(folder))}"


def _import_file(path: pathlib.Path) -> None:
    name = f"agentrm_plugin_{path.stem}"
    loaded = sys.modules.get(name)
    if loaded is not None and loaded.__file__ == str(path):
        return
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look the types of their fields up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
