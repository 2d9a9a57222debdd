"""A text maze: the fixed double T of LMRL-Gym, and generated mazes of its size.

The texts are those of AgentGym's version, which the paper uses. A blocked or unknown action moves
nothing and is answered by the same observation, without a comment. Differences: the newline after
"Success" is dropped; of an action's text, case and runs of spaces do not matter; an episode ends
with its last step and the usual observation, not after one more with "Failure" and -1.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections import deque
from collections.abc import Iterator, Mapping, Sequence

from agentrm_jax.core.protocols import Demonstration, Prompt
from agentrm_jax.core.records import Split, Task, Transition, canonical_form, is_test_problem
from agentrm_jax.envs.task_lists import check_kinds

Position = tuple[int, int]  # row and column, counted from the top left corner

_PAPER_KIND = "double_t"
_GENERATED_KIND = "generated"
_PAPER_GRID = (
    "#############",
    "#.....#.....#",
    "###.#####.###",
    "###.#####.###",
    "###.#####.###",
    "###.......###",
    "######.######",
    "######.######",
    "######.######",
    "#############",
)
_PAPER_GOAL = (8, 6)
_PAPER_STARTS = (
    *((1, column) for column in range(1, 6)),
    *((1, column) for column in range(7, 12)),
    *((row, 3) for row in range(2, 6)),
    *((5, column) for column in range(4, 7)),
    *((6, 6), (7, 6)),
    *((5, column) for column in range(7, 10)),
    *((row, 9) for row in range(4, 1, -1)),
)
_HEIGHT, _WIDTH = len(_PAPER_GRID), len(_PAPER_GRID[0])
_MAX_STEPS = 15
_OPEN_CELLS = (20, 45)  # the double T has 26
_DISTANCES = (2, 12)  # those of the double T are at most 12
_MOVES = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
# In the order in which an observation lists walls.
_SIDES = {
    "to your right": _MOVES["right"],
    "to your left": _MOVES["left"],
    "above you": _MOVES["up"],
    "below you": _MOVES["down"],
}

_INSTRUCTION = """\
You are in a maze and have to reach the goal. A position is given as row, column. Rows are counted \
from the top and columns from the left. You are told only which walls touch you.
You can use these actions, one in each turn:
move up: the row gets smaller by 1.
move down: the row gets larger by 1.
move left: the column gets smaller by 1.
move right: the column gets larger by 1.
A move against a wall changes nothing.
Reply in this format:
Thought: <what you think>
Action: <one action>"""

_EXAMPLE = (
    "The goal is at position 3, 2. Your current position is at position 2, 1. There are walls to "
    "your left, below you.",
    "Thought: The goal is 1 below and 1 to the right. I move right, which is nearer.\n"
    "Action: move right",
    "The goal is at position 3, 2. Your current position is at position 2, 2. There are walls to "
    "your right, above you.",
    "Thought: The goal is 1 below. I move down, which is nearer.\nAction: move down",
    "Success",
)


class Maze:
    """The mazes. Kind `double_t` is the paper's grid with its 25 starts (split `paper` only);
    kind `generated` holds random connected mazes with random goals and starts (`train`, `test`).
    """

    name = "maze"
    pooled = False
    metric = "success rate"
    end_reveals_outcome = True  # "Success"

    def missing(self) -> None:
        """Nothing: it is all here."""

    def counts(self) -> Mapping[Split, int | None]:
        return {"train": None, "test": None, "paper": len(_PAPER_STARTS)}

    def kinds(self) -> Sequence[str]:
        return (_PAPER_KIND, _GENERATED_KIND)

    def tasks(self, split: Split, *, kinds: Sequence[str], n: int, seed: int = 0) -> list[Task]:
        """The paper's tasks in their own order, or generated ones.

        Raises:
          UserError: For an unknown kind.
        """
        check_kinds(self.name, self.kinds(), kinds)
        kind = _PAPER_KIND if split == "paper" else _GENERATED_KIND
        stream = _paper_tasks() if split == "paper" else _generated_tasks(split, seed)
        return list(itertools.islice(stream, n if kind in kinds else 0))

    def prompt(self) -> Prompt:
        return Prompt(instruction=_INSTRUCTION, example=_EXAMPLE)

    def action_key(self, action: str) -> str:
        return action_key(action)

    def create(self) -> MazeEpisode:
        return MazeEpisode()

    def demonstrate(self, task: Task) -> list[Demonstration] | None:
        """A shortest path (breadth-first search), or None if it is longer than `max_steps`."""
        grid, goal, start = _layout(task)
        distance = _distances(grid, goal)
        if distance.get(start, task.max_steps + 1) > task.max_steps:
            return None
        steps, position = [], start
        while position != goal:
            here = position
            move = next(m for m in _MOVES if distance.get(_moved(here, m)) == distance[here] - 1)
            steps.append(Demonstration(thought=_thought(here, goal, move), action=f"move {move}"))
            position = _moved(here, move)
        return steps


def action_key(action: str) -> str:
    """Returns an action as the maze reads it: letter case and the number of blanks do not count."""
    return " ".join(action.lower().split())


@dataclasses.dataclass(slots=True)
class MazeEpisode:
    """One episode. The reward is 1 for the step that reaches the goal, else 0."""

    _grid: tuple[str, ...] = ()
    _goal: Position = (0, 0)
    _position: Position = (0, 0)
    _steps_left: int = 0

    def reset(self, task: Task) -> str:
        self._grid, self._goal, self._position = _layout(task)
        self._steps_left = task.max_steps
        return self._look()

    def step(self, action: str) -> Transition:
        self._steps_left -= 1
        verb, _, move = action_key(action).partition(" ")
        valid = False
        if verb == "move" and move in _MOVES:
            row, column = _moved(self._position, move)
            if valid := self._grid[row][column] == ".":
                self._position = (row, column)
        success = self._position == self._goal
        return Transition(
            observation="Success" if success else self._look(),
            reward=1.0 if success else 0.0,
            done=success or self._steps_left <= 0,
            success=success,
            valid=valid,
        )

    def fork(self) -> MazeEpisode:
        return dataclasses.replace(self)

    def _look(self) -> str:
        row, column = self._position
        walls = [
            side
            for side, (down, right) in _SIDES.items()
            if self._grid[row + down][column + right] == "#"
        ]
        if not walls:
            seen = "There are no walls near you."
        elif len(walls) == 1:
            seen = f"There is a wall {walls[0]}."
        else:
            seen = f"There are walls {', '.join(walls)}."
        return (
            f"The goal is at position {self._goal[0]}, {self._goal[1]}. "
            f"Your current position is at position {row}, {column}. {seen}"
        )


def _paper_tasks() -> Iterator[Task]:
    for index, start in enumerate(_PAPER_STARTS):
        yield _task(_PAPER_KIND, str(index), "paper", _PAPER_GRID, _PAPER_GOAL, start)


def _generated_tasks(split: Split, seed: int) -> Iterator[Task]:
    """Tasks of distinct problems that belong to the split, without end."""
    seen = set()
    for draw in itertools.count():
        rng = random.Random(f"maze/{seed}/{draw}")
        grid = _draw_grid(rng)
        if grid == _PAPER_GRID:
            continue
        goal, start = _draw_ends(rng, grid)
        task = _task(_GENERATED_KIND, f"{seed}-{draw}", split, grid, goal, start)
        if task.problem not in seen and is_test_problem(task.problem) == (split == "test"):
            seen.add(task.problem)
            yield task


def _task(
    kind: str, name: str, split: Split, grid: Sequence[str], goal: Position, start: Position
) -> Task:
    spec = {"grid": list(grid), "goal": list(goal), "start": list(start)}
    return Task(
        environment=Maze.name,
        task_id=f"{Maze.name}/{kind}/{name}",
        kind=kind,
        split=split,
        problem=canonical_form(spec),
        max_steps=_MAX_STEPS,
        spec=spec,
    )


def _layout(task: Task) -> tuple[tuple[str, ...], Position, Position]:
    (goal_row, goal_column), (row, column) = task.spec["goal"], task.spec["start"]
    return tuple(task.spec["grid"]), (goal_row, goal_column), (row, column)


def _draw_grid(rng: random.Random) -> tuple[str, ...]:
    """A connected maze, grown from a cell by cells that touch it (once, so mostly corridors)."""
    size = rng.randint(*_OPEN_CELLS)
    loops = rng.choice((0.0, 0.1, 0.3))  # how often a cell that closes a loop is let in
    open_cells = {(rng.randint(1, _HEIGHT - 2), rng.randint(1, _WIDTH - 2))}
    for _ in range(10_000):  # corridors may leave no room for more: then it stays smaller
        if len(open_cells) == size:
            break
        row, column = _moved(rng.choice(sorted(open_cells)), rng.choice(tuple(_MOVES)))
        inside = 0 < row < _HEIGHT - 1 and 0 < column < _WIDTH - 1
        contacts = sum(_moved((row, column), move) in open_cells for move in _MOVES)
        if inside and (contacts == 1 or rng.random() < loops):
            open_cells.add((row, column))
    return tuple(
        "".join(".#"[(row, column) not in open_cells] for column in range(_WIDTH))
        for row in range(_HEIGHT)
    )


def _draw_ends(rng: random.Random, grid: Sequence[str]) -> tuple[Position, Position]:
    """A goal and a start within the range of distances, near and far ones alike."""
    goal = rng.choice([(r, c) for r in range(_HEIGHT) for c in range(_WIDTH) if grid[r][c] == "."])
    starts: dict[int, list[Position]] = {}
    for cell, distance in sorted(_distances(grid, goal).items()):
        starts.setdefault(distance, []).append(cell)
    shortest, longest = _DISTANCES
    # A grid has 20 open cells or more, or else its corridors filled the whole area: either way
    # some cell is two moves from any goal.
    distance = rng.choice([d for d in starts if shortest <= d <= longest])
    return goal, rng.choice(starts[distance])


def _distances(grid: Sequence[str], goal: Position) -> dict[Position, int]:
    """The number of moves to the goal, for each cell from which it can be reached."""
    distance, queue = {goal: 0}, deque([goal])
    while queue:
        cell = queue.popleft()
        for move in _MOVES:
            row, column = near = _moved(cell, move)
            if grid[row][column] == "." and near not in distance:
                distance[near] = distance[cell] + 1
                queue.append(near)
    return distance


def _moved(position: Position, move: str) -> Position:
    down, right = _MOVES[move]
    return position[0] + down, position[1] + right


def _thought(position: Position, goal: Position, move: str) -> str:
    """A thought: the direction of the goal, and whether the move leads nearer to it."""
    below, right = goal[0] - position[0], goal[1] - position[1]
    parts = []
    if below:
        parts.append(f"{abs(below)} {'below' if below > 0 else 'above'}")
    if right:
        parts.append(f"{abs(right)} to the {'right' if right > 0 else 'left'}")
    row, column = _moved(position, move)
    nearer = abs(goal[0] - row) + abs(goal[1] - column) < abs(below) + abs(right)
    why = "which is nearer" if nearer else "because the way goes round the walls"
    return f"The goal is {' and '.join(parts)}. I move {move}, {why}."
