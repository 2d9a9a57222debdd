"""Moves of environments: acting, forking, replaying the way to a node of a tree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agentrm_jax.core.protocols import EnvironmentFailure, EnvironmentPool, Proposal
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


def act_on_turns(
    pool: EnvironmentPool, requests: Sequence[tuple[int, Proposal, bool]]
) -> list[tuple[int, Transition] | EnvironmentFailure]:
    """Acts for each (handle, turn, fork) as `act` does; a failed turn leaves its episode alone.

    Returns:
      For each request the handle of the episode that acted, and its answer. A turn that failed is
      answered as one whose environment failed.
    """
    sound = [(handle, turn.action, fork) for handle, turn, fork in requests if turn.failure is None]
    acted = iter(act(pool, sound))
    return [
        next(acted) if turn.failure is None else EnvironmentFailure(reason=turn.failure)
        for _, turn, _ in requests
    ]


def bring_environments(
    pool: EnvironmentPool, trees: Mapping[int, GrowingTree], needed: Sequence[tuple[int, int]]
) -> dict[tuple[int, int], str]:
    """Gives nodes an environment: those of rollouts and of restored trees have none.

    The path from the nearest ancestor with an environment is replayed in a copy of it, for all
    trees at the same time.

    Args:
      trees: The trees by slot.
      needed: Slots, each with the number of a node of its tree.

    Returns:
      The reason of each failure, by slot and node.
    """
    routes: dict[tuple[int, int], list[Node]] = {}  # nodes still to be reached, the last first
    handles: dict[tuple[int, int], int] = {}
    for place in needed:
        growing, number = trees[place[0]], place[1]
        node, route = growing.nodes[number], []
        while node.handle is None:
            route.append(node)
            node = growing.nodes[node.parent]
        if route:
            routes[place], handles[place] = route, node.handle
    failures: dict[tuple[int, int], str] = {}
    copied: set[tuple[int, int]] = set()  # those whose handle is a copy made here
    while routes:
        requests = [
            (handles[place], route[-1].action, place not in copied)
            for place, route in routes.items()
        ]
        for place, answer in zip(list(routes), act(pool, requests), strict=True):
            if isinstance(answer, EnvironmentFailure):
                failures[place] = answer.reason
            else:
                handles[place], transition = answer
                copied.add(place)
                node = routes[place].pop()
                if transition != node.trajectory.steps[-1].transition:
                    failures[place] = "a replayed step was answered otherwise than before"
                elif not routes[place]:
                    node.handle = handles[place]
                    del routes[place]
            if place in failures:
                del routes[place]
                if place in copied:
                    pool.release([handles[place]])
    return failures
