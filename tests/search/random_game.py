"""A random game as environment and policy: cheap, deterministic, without any model."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence

from agentrm_jax.core.protocols import EnvironmentFailure, Proposal, Question
from agentrm_jax.core.records import Task, Trajectory, Transition


def draw(*names: object) -> float:
    digest = hashlib.blake2b("/".join(map(str, names)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def game(i: int, max_steps: int = 6) -> Task:
    return Task(
        environment="game", task_id=f"game/{i}", kind="random", split="train",
        problem=f"{i:016x}", max_steps=max_steps, spec={"game": i},
    )  # fmt: skip


def action_key(task: Task, action: str) -> str:
    """The game takes no notice of case and spaces."""
    return " ".join(action.lower().split())


def answer(task: Task, actions: Sequence[str]) -> Transition:
    """What the game says after these actions: it ends at random, with a random outcome."""
    actions = [action_key(task, action) for action in actions]
    ended = draw(task.task_id, "end", *actions) < 0.25
    done = ended or len(actions) >= task.max_steps
    reward = round(draw(task.task_id, "reward", *actions), 2) if done else 0.0
    return Transition(
        observation=f"after {' '.join(actions)}", reward=reward, done=done, success=reward > 0.9
    )


FAILURE = EnvironmentFailure(reason="the game broke")


class GamePool:
    """An `EnvironmentPool` whose episodes are lists of actions; `breaks` says which of them fail.

    A failure kills an episode only where it acted in place, and its handle remains to be released:
    what is left in `episodes` at the end of a search has leaked.
    """

    def __init__(
        self,
        breaks: Callable[[Task, Sequence[str]], bool] = lambda *_: False,
        elsewhere: bool = True,
    ) -> None:
        self.breaks, self._elsewhere = breaks, elsewhere
        self.episodes: dict[int, tuple[Task, tuple[str, ...]]] = {}
        self.dead: set[int] = set()
        self.num_steps = 0
        self._next = 0

    def _enter(self, task: Task, actions: tuple[str, ...]) -> int:
        self._next += 1
        self.episodes[self._next] = (task, actions)
        return self._next

    def _act(self, handle: int, action: str) -> tuple[Task, tuple[str, ...]] | None:
        task, actions = self.episodes[handle]
        assert not answer(task, actions).done or not actions  # nobody acts after the end
        if handle in self.dead or self.breaks(task, (*actions, action)):
            return None
        self.num_steps += 1
        return task, (*actions, action)

    def reset(self, tasks):
        return [
            FAILURE if self.breaks(task, ()) else (self._enter(task, ()), f"game {task.task_id}")
            for task in tasks
        ]

    def branch(self, requests):
        acted = [self._act(*request) for request in requests]
        return [FAILURE if a is None else (self._enter(*a), answer(*a)) for a in acted]

    def step(self, requests):
        out = []
        for handle, action in requests:
            acted = self._act(handle, action)
            if acted is None:
                self.dead.add(handle)
                out.append(FAILURE)
            else:
                self.episodes[handle] = acted
                out.append(answer(*acted))
        return out

    def release(self, handles):
        for handle in handles:
            self.episodes.pop(handle, None)

    def action_key(self, task: Task, action: str) -> str:
        return action_key(task, action)

    def elsewhere(self, task: Task) -> bool:
        return self._elsewhere

    def close(self):
        self.episodes.clear()


class GamePolicy:
    """Draws one of a few moves for each branch, in varying spelling; some replies have no action.

    Of a state with more steps than `remembers` it says that the oldest were left out.
    """

    def __init__(self, moves: str = "NESW", remembers: int = 99) -> None:
        self.moves, self.remembers = moves, remembers
        self.asked: list[tuple[str, str]] = []
        self._open: dict[int, Question] = {}
        self._tickets = self._rounds = 0

    def submit(self, questions: Sequence[Question]) -> list[int]:
        self.asked.extend((state.task.task_id, purpose) for state, purpose, *_ in questions)
        tickets = [self._tickets + i for i in range(len(questions))]
        self._tickets += len(questions)
        self._open.update(zip(tickets, questions, strict=True))
        return tickets

    def collect(self) -> list[tuple[int, list[Proposal]]]:
        """At least one of the requests is answered; others wait, as if their replies were long."""
        self._rounds += 1
        now = [t for t in self._open if draw("late", t, self._rounds) < 0.7]
        now = now or list(self._open)[:1]
        return [(t, self._answer(*self._open.pop(t))) for t in now]

    def room(self) -> int:
        return int(8 * draw("room", self._rounds))

    def _answer(self, trajectory: Trajectory, purpose: str, n: int, rank: float) -> list[Proposal]:
        return [self._one(trajectory, purpose, branch) for branch in range(n)]

    def _one(self, trajectory: Trajectory, purpose: str, branch: int) -> Proposal:
        names = (trajectory.task.task_id, len(trajectory.steps), purpose, branch)
        move = self.moves[int(len(self.moves) * draw("move", *names))]
        if move == "-":
            reply, action = "I do not know.", ""
        else:
            action = f"go  {move}" if draw("case", *names) < 0.5 else f"go {move.lower()}"
            reply = f"Thought: {branch}.\nAction: {action}"
        return Proposal(
            reply=reply,
            action=action,
            token_ids=(ord(move), branch + 1),
            log_probs=(-draw("log", *names), -0.5),
            truncated_steps=max(0, len(trajectory.steps) - self.remembers),
        )


def value(task: Task, replies: Sequence[str]) -> float:
    """A score that cannot be told from the outcome; coarse, so that there are ties."""
    return round(draw("score", task.task_id, *replies), 1)


class GameScorer:
    """Scores states one by one, each with a cost of one token.

    Of the states, and of the depths of a task, the fraction `undecided` has no score.
    """

    def __init__(self, undecided: float = 0.0) -> None:
        self.undecided, self.scored = undecided, 0

    def score(self, groups):
        self.scored += sum(len(group) for group in groups)
        return [[self.one(trajectory) for trajectory in group] for group in groups]

    def one(self, trajectory: Trajectory) -> float:
        task, replies = trajectory.task, [step.reply for step in trajectory.steps]
        places = [("state", *replies), ("depth", len(replies))]
        if any(draw("undecided", task.task_id, *place) < self.undecided for place in places):
            return math.nan
        return value(task, replies)

    def cost(self, group):
        return len(group)
