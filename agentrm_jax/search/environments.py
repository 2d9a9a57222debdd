"""Moves of environments: acting, forking, replaying the way to a node of a tree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agentrm_jax.core.protocols import EnvironmentFailure, EnvironmentPool
from agentrm_jax.core.records import Transition
from agentrm_jax.search.growing import GrowingTree, Node


def act(
    pool: EnvironmentPool, requests: Sequence[tuple[int, str, bool]]
) -> list[tuple[int, Transition] | EnvironmentFailure]:
    """Acts for each (handle, action, fork): in a copy of the episode if `fork`, else in place.

    Returns:
      For each request the handle of the episode that acted, and its answer.
    """
    forks = [(handle, action) for handle, action, fork in requests if fork]
    steps = [(handle, action) for handle, action, fork in requests if not fork]
    forked = iter(pool.branch(forks) if forks else [])
    stepped = iter(pool.step(steps) if steps else [])
    answers: list[tuple[int, Transition] | EnvironmentFailure] = []
    for handle, _, fork in requests:
        if fork:
            answers.append(next(forked))
        else:
            answer = next(stepped)
            failed = isinstance(answer, EnvironmentFailure)
            answers.append(answer if failed else (handle, answer))
    return answers


def bring_environments(
    pool: EnvironmentPool, needed: Mapping[int, tuple[GrowingTree, int]]
) -> dict[int, str]:
    """Gives nodes an environment: those of rollouts and of restored trees have none.

    The path from the nearest ancestor with an environment is replayed in a copy of it, for all
    trees at the same time.

    Args:
      needed: A tree and the number of its node, by slot.

    Returns:
      The reason of each failure, by slot.
    """
    routes: dict[int, list[Node]] = {}  # nodes still to be reached, the last first
    handles: dict[int, int] = {}
    for e, (growing, number) in needed.items():
        node, route = growing.nodes[number], []
        while node.handle is None:
            route.append(node)
            node = growing.nodes[node.parent]
        if route:
            routes[e], handles[e] = route, node.handle
    failures: dict[int, str] = {}
    copied: set[int] = set()  # slots whose handle is a copy made here
    while routes:
        requests = [(handles[e], route[-1].action, e not in copied) for e, route in routes.items()]
        for e, answer in zip(list(routes), act(pool, requests), strict=True):
            if isinstance(answer, EnvironmentFailure):
                failures[e] = answer.reason
            else:
                handles[e], transition = answer
                copied.add(e)
                node = routes[e].pop()
                if transition != node.trajectory.steps[-1].transition:
                    failures[e] = "a replayed step was answered otherwise than before"
                elif not routes[e]:
                    node.handle = handles[e]
                    del routes[e]
            if e in failures:
                del routes[e]
                if e in copied:
                    pool.release([handles[e]])
    return failures
