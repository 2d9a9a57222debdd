"""AgentBoard's graphs of papers and authors (DBLP): from pickles to JSON, once.

    python -m agentrm_jax.envs.tools.academia_graph FOLDER

reads the six pickles of AgentBoard's `data/tool-query/academia/raw` and writes `tool/academia.json`
in the data directory. A pickle can run any code when it is loaded. These are read without: only
dictionaries, lists, numbers and texts come to life, what belongs to networkx becomes an empty shell
with its contents, and the first thing that is none of these ends the reading.
"""

from __future__ import annotations

import argparse
import collections
import functools
import hashlib
import json
import pickle
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.json_values import parse_json
from agentrm_jax.core.text import first_line
from agentrm_jax.envs.data_directory import data_directory, require

FILE = "tool/academia.json"
SOURCE = (
    "AgentBoard's graphs (https://huggingface.co/datasets/hkust-nlp/agentboard, "
    "data/tool-query/academia/raw), converted by "
    "`python -m agentrm_jax.envs.tools.academia_graph FOLDER`"
)
_FILES = ("paper_net", "author_net", "title2id_dict", "author2id_dict", "id2title_dict",
          "id2author_dict")  # fmt: skip
_PLAIN = {
    ("builtins", "dict"): dict,
    ("builtins", "list"): list,
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("collections", "OrderedDict"): collections.OrderedDict,
}
_FORMAT = 1

Net = Mapping[str, Any]


class _Shell:
    """Stands for an object of networkx: it keeps what it was made of and does nothing."""

    contents: Any = None

    def __setstate__(self, state: Any) -> None:
        self.contents = state


def _reconstructed(cls: Any, base: Any, state: Any) -> Any:
    """`copyreg._reconstructor` for shells."""
    if cls is not _Shell:
        raise pickle.UnpicklingError("an object that is not of networkx")
    return _Shell()


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)  # Python 2
        plain = _PLAIN.get((module, name))
        if plain is not None:
            return plain
        if module.split(".")[:2] == ["networkx", "classes"]:
            return _Shell
        if (module, name) == ("copyreg", "_reconstructor"):
            return _reconstructed
        if (module, name) == ("builtins", "object"):
            return object
        raise pickle.UnpicklingError(f"it holds {module}.{name}, which is not loaded")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to something outside")


def read_pickle(file: BinaryIO) -> Any:
    """Returns the content of a pickle, with shells for objects of networkx.

    Raises:
      pickle.UnpicklingError: It holds anything else, or is broken.
    """
    try:
        return _Reader(file).load()
    except pickle.UnpicklingError:
        raise
    except Exception as error:  # a broken pickle can raise nearly anything
        raise pickle.UnpicklingError(f"{type(error).__name__}: {error}") from None


def convert(folder: Path) -> dict[str, Any]:
    """Both graphs of a folder with AgentBoard's six pickles, as JSON values.

    Raises:
      UserError: A file is missing or cannot be read.
    """
    loaded = {name: _load(folder / f"{name}.pkl") for name in _FILES}
    titles = loaded["id2title_dict"]
    try:
        papers = _net(loaded["paper_net"], loaded["title2id_dict"], titles)
        authors = _net(loaded["author_net"], loaded["author2id_dict"], loaded["id2author_dict"])
        for edge in authors["edges"]:
            ids = edge.get("collaborative_papers", [])
            edge["collaborative_papers"] = [titles[key] for key in ids]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder}: not AgentBoard's graphs ({error!r})") from None
    return {"format": _FORMAT, "PaperNet": papers, "AuthorNet": authors}


def _load(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"{path}: not found; it is one of {SOURCE}")
    with path.open("rb") as file:
        try:
            return read_pickle(file)
        except pickle.UnpicklingError as error:
            raise UserError(f"{path}: {error}") from None


def _net(graph: _Shell, numbers: Mapping[str, Any], names: Mapping[Any, str]) -> dict[str, Any]:
    """A graph under the names of its nodes; neighbours keep their order.

    Attributes of an edge that both its ends share are stored once.
    """
    state = graph.contents
    neighbours = state["_adj"] if "_adj" in state else state["adj"]
    attributes = state["_node"] if "_node" in state else state["node"]
    edges: list[Any] = []
    places: dict[int, int] = {}
    nodes: dict[str, Any] = {}
    for key, around in neighbours.items():
        links = []
        for other, data in around.items():
            if id(data) not in places:
                places[id(data)] = len(edges)
                edges.append(_json(data))
            links.append([names[other], places[id(data)]])
        nodes[names[key]] = [_json(attributes[key]), links]
    aliases = {name: names[key] for name, key in numbers.items() if names.get(key, name) != name}
    unknown = [name for name in nodes if name not in numbers]
    return {"nodes": nodes, "edges": edges, "aliases": aliases, "unnamed": unknown}


def _json(value: Any) -> Any:
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, list | tuple):
        return [_json(item) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _json(item) for key, item in value.items()}
    raise TypeError(f"an attribute of type {type(value).__name__}")


def nets() -> Mapping[str, Net]:
    """`PaperNet` and `AuthorNet`.

    Raises:
      UserError: The file is missing or broken.
    """
    path = require(FILE, SOURCE)
    return _read(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=1)
def _read(path: Path, _changed: int) -> Mapping[str, Net]:
    try:
        value = parse_json(path.read_bytes())
        if value["format"] != _FORMAT or not {"PaperNet", "AuthorNet"} <= set(value):
            raise ValueError("another format")
        if "sha256" in value and value.pop("sha256") != _digest(value):
            raise ValueError("damaged: its sha256 is another")
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = first_line(error)
        raise UserError(f"{path}: not a converted graph ({reason}); see {SOURCE}") from None
    return {name: value[name] for name in ("PaperNet", "AuthorNet")}


def _digest(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def main() -> int:
    parser = argparse.ArgumentParser(description="Converts AgentBoard's academia graphs to JSON.")
    parser.add_argument("folder", type=Path, help="with the six .pkl files")
    given = parser.parse_args()
    target = data_directory() / FILE
    try:
        value = convert(given.folder)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    target.parent.mkdir(parents=True, exist_ok=True)
    kept = {**value, "sha256": _digest(value)}
    target.write_text(json.dumps(kept, ensure_ascii=False), encoding="utf-8")
    for name in ("PaperNet", "AuthorNet"):
        net = value[name]
        print(f"{name}: {len(net['nodes'])} nodes, {len(net['edges'])} edges")
    print(target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
