"""Searches as the report draws them: exploration trees, test-time searches, and samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from agentrm_jax.core.records import Step, Task
from agentrm_jax.data.trees import TreeRecord
from agentrm_jax.search.rollouts import Rollout
from agentrm_jax.search.search_nodes import SearchNode

Scores = Sequence[float | None]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """A tree of states that the report draws.

    Attributes:
      task: The task.
      label: Name of the search on the page, for example `exploration tree`.
      nodes: Its nodes; a parent stands before its children, and the first node is the root.
      scores: By reward model, the score of each node; None for a node without one.
      chosen: By reward model, the last node of the path that it chose. Searches that chose while
        they ran have the path in their nodes.
      multiplicity: For each node the number of sampled turns with its action; empty if each was
        sampled once.
      note: One line about the search, for example why it ended early.
    """

    task: Task
    label: str
    nodes: tuple[SearchNode, ...]
    scores: Mapping[str, Scores] = dataclasses.field(default_factory=dict)
    chosen: Mapping[str, int] = dataclasses.field(default_factory=dict)
    multiplicity: tuple[int, ...] = ()
    note: str = ""


def tree_search(
    tree: TreeRecord, scores: Mapping[str, Mapping[int, float]] | None = None
) -> Search:
    """Returns an exploration tree as a search.

    Visits and values are added up from the stored iterations. Candidates whose environment failed
    are nodes with the reason as their observation.

    Args:
      tree: The stored tree.
      scores: By reward model, the scores of nodes by node number.
    """
    visits, sums = tree.backed_up()
    records = [record for _, record in sorted(tree.nodes.items())]
    nodes = [SearchNode(parent=-1, observation=tree.first_observation, visits=int(visits[0]),
                        value=_mean(sums[0], visits[0]))]  # fmt: skip
    for record in records:
        count = int(visits[record.node])
        value = _mean(sums[record.node], visits[record.node])
        above = nodes[record.parent]
        nodes.append(_node(record.step, record.parent, above.outcome, count, value))
    multiplicity = [1, *(record.multiplicity for record in records)]
    for failure in tree.failures:
        if failure.purpose != "replay":
            nodes.append(
                SearchNode(
                    parent=failure.node,
                    action=failure.action,
                    observation=failure.reason,
                    visits=0,
                    status="failed",
                )
            )
            multiplicity.append(failure.multiplicity)
    notes = [f"{len(tree.iterations)} iterations"]
    if tree.failures:
        notes.append(f"{len(tree.failures)} candidates failed")
    if tree.error:
        notes.append(f"ended early: {tree.error}")
    return Search(
        task=tree.task,
        label="exploration tree",
        nodes=tuple(nodes),
        scores={
            name: [own.get(number) for number in range(len(nodes))]
            for name, own in (scores or {}).items()
        },
        multiplicity=tuple(multiplicity),
        note=", ".join(notes),
    )


def rollout_search(rollout: Rollout, label: str) -> Search:
    """Returns the search that found an answer; the answer itself if its method stored none.

    Args:
      rollout: The answer.
      label: Name of the method on the page.
    """
    if not rollout.search:
        return samples_search([rollout], {}, label)
    nodes = rollout.search
    scores = {"": [node.score for node in nodes]}
    scored = any(node.score is not None for node in nodes)
    return Search(
        task=rollout.trajectory.task,
        label=label,
        nodes=nodes,
        scores=scores if scored else {},
        note=f"ended early: {rollout.error}" if rollout.error else "",
    )


def samples_search(
    samples: Sequence[Rollout], scores: Mapping[str, Sequence[float]], label: str
) -> Search:
    """Returns the sampled trajectories of a task as a tree: equal first steps are drawn once.

    Visits are the trajectories through a node, the value is the mean of their outcomes.

    Args:
      samples: The trajectories of one task, in order.
      scores: By reward model, the score of each trajectory. The highest one chooses, of several the
        first.
      label: Name of the method on the page.
    """
    steps: list[tuple[int, Step | None]] = [(-1, None)]
    passed: list[list[float]] = [[]]
    known: dict[tuple[int, str, str], int] = {}
    ends = []
    for sample in samples:
        outcome = 0.0 if sample.error else sample.trajectory.outcome
        node = 0
        passed[0].append(outcome)
        for step in sample.trajectory.steps:
            key = (node, step.action, step.transition.observation)
            if key not in known:
                known[key] = len(steps)
                steps.append((node, step))
                passed.append([])
            node = known[key]
            passed[node].append(outcome)
        ends.append(node)
    nodes: list[SearchNode] = []
    for (parent, step), outcomes in zip(steps, passed, strict=True):
        count, value = len(outcomes), _mean(sum(outcomes), len(outcomes))
        if step is None:
            first = samples[0].trajectory.first_observation
            nodes.append(SearchNode(parent=-1, observation=first, visits=count, value=value))
        else:
            nodes.append(_node(step, parent, nodes[parent].outcome, count, value))
    errors = [sample.error for sample in samples if sample.error]
    return Search(
        task=samples[0].trajectory.task,
        label=label,
        nodes=tuple(nodes),
        scores={name: _at_ends(len(nodes), ends, own) for name, own in scores.items()},
        chosen={name: ends[max(range(len(own)), key=own.__getitem__)]
                for name, own in scores.items()},
        note=f"{len(errors)} ended by an error: {errors[0]}" if errors else "",
    )  # fmt: skip


def _at_ends(count: int, ends: Sequence[int], scores: Sequence[float]) -> list[float | None]:
    """The score of each node: that of the trajectories that end there."""
    found: list[float | None] = [None] * count
    for node, score in zip(ends, scores, strict=True):
        found[node] = score
    return found


def _node(step: Step, parent: int, outcome: float, visits: int, value: float | None) -> SearchNode:
    return SearchNode(
        parent=parent,
        reply=step.reply,
        action=step.action,
        observation=step.transition.observation,
        outcome=outcome + step.transition.reward,
        done=step.transition.done,
        success=step.transition.success,
        visits=visits,
        value=value,
    )


def _mean(total: float, count: float) -> float | None:
    return float(total / count) if count else None
