"""A random game as environment and policy: cheap, deterministic, without any model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from agentrm_jax.core.protocols import EnvironmentFailure, Proposal
from agentrm_jax.core.records import Task, Trajectory, Transition


def draw(*names: object) -> float:
    digest = hashlib.blake2b("/".join(map(str, names)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def game(i: int, max_steps: int = 6) -> Task:
    return Task(
        environment="game", task_id=f"game/{i}", kind="random", split="train",
        problem=f"{i:016x}", max_steps=max_steps, spec={"game": i},
    )  # fmt: skip


def answer(task: Task, actions: Sequence[str]) -> Transition:
    """What the game says after these actions: it ends at random, with a random outcome."""
    ended = draw(task.task_id, "end", *actions) < 0.25
    done = ended or len(actions) >= task.max_steps
    reward = round(draw(task.task_id, "reward", *actions), 2) if done else 0.0
    return Transition(
        observation=f"after {' '.join(actions)}", reward=reward, done=done, success=reward > 0.9
    )


class GamePool:
    """An `EnvPool` whose episodes are lists of actions. `fail` names tasks that break."""

    def __init__(self, fail: frozenset[str] = frozenset()) -> None:
        self.fail = fail
        self.episodes: dict[int, tuple[Task, tuple[str, ...]]] = {}
        self._next = 0

    def _enter(self, task: Task, actions: tuple[str, ...]) -> int:
        self._next += 1
        self.episodes[self._next] = (task, actions)
        return self._next

    def reset(self, tasks):
        return [(self._enter(task, ()), f"game {task.task_id}") for task in tasks]

    def branch(self, requests):
        out = []
        for handle, action in requests:
            task, actions = self.episodes[handle]
            if task.task_id in self.fail and len(actions) >= 2:
                out.append(EnvironmentFailure(reason="the game broke"))
                continue
            actions = (*actions, action)
            out.append((self._enter(task, actions), answer(task, actions)))
        return out

    def step(self, requests):
        out = []
        for handle, action in requests:
            task, actions = self.episodes[handle]
            self.episodes[handle] = (task, (*actions, action))
            out.append(answer(task, (*actions, action)))
        return out

    def release(self, handles):
        for handle in handles:
            self.episodes.pop(handle, None)

    def close(self):
        self.episodes.clear()


class GamePolicy:
    """Draws one of four moves for each branch, in varying spelling; counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def propose(self, requests: Sequence[tuple[Trajectory, str]], n: int) -> list[list[Proposal]]:
        self.calls += 1
        return [
            [self._one(trajectory, purpose, branch) for branch in range(n)]
            for trajectory, purpose in requests
        ]

    def _one(self, trajectory: Trajectory, purpose: str, branch: int) -> Proposal:
        names = (trajectory.task.task_id, len(trajectory.steps), purpose, branch)
        move = int(4 * draw("move", *names))
        action = f"go  {'NESW'[move]}" if draw("case", *names) < 0.5 else f"go {'nesw'[move]}"
        return Proposal(
            reply=f"Thought: {branch}.\nAction: {action}",
            action=action,
            token_ids=(move + 1, branch + 1),
            log_probs=(-draw("log", *names), -0.5),
        )
