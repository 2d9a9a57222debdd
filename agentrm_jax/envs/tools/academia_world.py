"""AgentBoard's academia tools on graphs of papers and authors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from agentrm_jax.envs.tools.academia_graph import Net
from agentrm_jax.envs.tools.calls import Call, Tool, ToolError
from agentrm_jax.envs.tools.episode import Result
from agentrm_jax.envs.tools.final import final

TOOLS = (
    Tool("loadPaperNet", (), "loads PaperNet: papers, linked where one cites another."),
    Tool("loadAuthorNet", (), "loads AuthorNet: authors, linked where they wrote together."),
    Tool("neighbourCheck", ("graph", "node"), 'the neighbours in "PaperNet" or "AuthorNet".'),
    Tool("paperNodeCheck", ("node",), "a paper's authors, year, venue, citations, keywords."),
    Tool("authorNodeCheck", ("node",), "an author's name and organisation."),
    Tool("authorEdgeCheck", ("node1", "node2"), "what two authors wrote together."),
    Tool("paperEdgeCheck", ("node1", "node2"), "the citation between two papers."),
    Tool("check_valid_actions", (), "the names of all tools."),
    Tool("finish", ("answer",), "ends with the answer."),
)


@dataclasses.dataclass(frozen=True, slots=True)
class AcademiaWorld:
    """Two graphs, and which of them were loaded."""

    nets: Mapping[str, Net]
    loaded: frozenset[str] = frozenset()

    @property
    def tools(self) -> Sequence[Tool]:
        return TOOLS

    def call(self, call: Call) -> tuple[Result, AcademiaWorld]:
        given = call.arguments
        match call.name:
            case "loadPaperNet" | "loadAuthorNet":
                name = call.name.removeprefix("load")
                text = f"{name} is loaded."
                loaded = dataclasses.replace(self, loaded=self.loaded | {name})
                return Result(text, reached=text), loaded
            case "neighbourCheck" | "neighborCheck":
                name, node = given["graph"], given["node"]
                if name not in self.nets:
                    raise ToolError(f"There is no graph named {name}.")
                _, links = self._node(name, node)
                return _answer([other for other, _ in links]), self
            case "paperNodeCheck" | "authorNodeCheck":
                name = "PaperNet" if call.name.startswith("paper") else "AuthorNet"
                return _answer(self._node(name, given["node"])[0]), self
            case "paperEdgeCheck" | "authorEdgeCheck":
                name = "PaperNet" if call.name.startswith("paper") else "AuthorNet"
                return self._edge(name, given["node1"], given["node2"]), self
        return final(call, TOOLS), self

    def _node(self, name: str, node: Any) -> tuple[Any, Sequence[Any]]:
        """Attributes and links of a node."""
        if name not in self.loaded:
            raise ToolError(f"Please load the {name} first.")
        found = self.nets[name]["nodes"].get(self._own_name(name, node))
        if found is None or node in self.nets[name]["unnamed"]:
            raise ToolError(f"There is no node named {node} in the {name}.")
        return found

    def _edge(self, name: str, node1: Any, node2: Any) -> Result:
        _, links = self._node(name, node1)
        self._node(name, node2)
        other = self._own_name(name, node2)
        for neighbour, number in links:
            if neighbour == other:
                return _answer(self.nets[name]["edges"][number])
        raise ToolError(f"There is no edge between {node1} and {node2}.")

    def _own_name(self, name: str, node: Any) -> Any:
        return self.nets[name]["aliases"].get(node, node)


def _answer(value: Any) -> Result:
    return Result(value, reached=value)
