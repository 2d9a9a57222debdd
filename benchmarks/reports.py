"""A made-up run and its report, of any size (`benchmarks.report`)."""

from __future__ import annotations

import dataclasses
import pathlib
import random
from collections.abc import Sequence

from agentrm_jax.core.records import Step, Task, Trajectory, Transition
from agentrm_jax.data.trees import IterationRecord, NodeRecord, TreeRecord
from agentrm_jax.evaluation.depths import value_by_depth
from agentrm_jax.evaluation.episodes import Episode
from agentrm_jax.evaluation.report import ReportPage, write_report
from agentrm_jax.evaluation.results import comparisons, oracle_gaps, result_rows
from agentrm_jax.evaluation.searches import Search, rollout_search, samples_search, tree_search
from agentrm_jax.evaluation.viewer import episode_answer, make_viewer, tree_answer
from agentrm_jax.search.rollouts import Rollout
from agentrm_jax.search.search_nodes import SearchNode

_ACTIONS = ("turn left", "turn right", "move forward", "pick up the red ball", "open the grey door",
            "go to the wooden cabinet 3", "look", "put the apple on the table")  # fmt: skip
_METHODS = (
    ("greedy", None, 1, None, 0.42), ("random_of_n", None, 5, None, 0.4),
    ("oracle_of_n", None, 5, None, 0.8), ("best_of_n", "explicit", 5, None, 0.65),
    ("best_of_n", "implicit", 5, None, 0.52), ("beam", "explicit", 1, 5, 0.7),
)  # fmt: skip


def made_up_tree(task: Task, nodes: int, rng: random.Random) -> TreeRecord:
    """Returns an exploration tree: each iteration expands a node and rolls out.

    Args:
      task: Its task.
      nodes: Least number of nodes, the root included.
      rng: Draws actions, branches and outcomes.
    """
    steps: dict[int, Step] = {}
    paths: dict[int, tuple[int, ...]] = {0: (0,)}
    closed, iterations = [0], []
    while len(paths) < nodes:
        # Early nodes are expanded first, most of the time: the tree grows in width and depth.
        at = closed.pop(min(int(rng.expovariate(0.1)), len(closed) - 1))
        added: list[NodeRecord] = []
        length = rng.randrange(2, 7)
        for depth in range(length):
            for sibling in range(5 if depth == 0 else 1):
                number = len(paths)
                ends = depth == length - 1
                reward = float(rng.random() < 0.5) if ends else 0.0
                steps[number] = made_up_step(rng, done=ends, reward=reward)
                added.append(
                    NodeRecord(
                        node=number, parent=at, step=steps[number], multiplicity=1 + (sibling == 0)
                    )
                )
                paths[number] = (*paths[at], number)
                if not ends:
                    closed.append(number)
            at = len(paths) - 1
        iterations.append(
            IterationRecord(
                task_id=task.task_id,
                iteration=len(iterations),
                nodes=tuple(added),
                path=paths[at],
                outcome=steps[at].transition.reward,
            )
        )
    return TreeRecord(
        task=task,
        first_observation=_goal(task),
        iterations=tuple(iterations),
        finished=True,
    )


def made_up_step(rng: random.Random, *, done: bool = False, reward: float = 0.0) -> Step:
    """Returns a step with a drawn action."""
    action = rng.choice(_ACTIONS)
    seen = ", ".join(f"a {rng.choice(('red', 'green', 'grey'))} door {n}" for n in range(3))
    return Step(
        reply=f"Thought: The goal is not reached yet; I think that I should {action} now, because "
        f"number {rng.randrange(1000)} is still open.\nAction: {action}",
        action=action,
        transition=Transition(
            observation=f"In front of you in this room you can see {seen}. You carry nothing.",
            reward=reward,
            done=done,
            success=reward > 0.99,
        ),
    )


def made_up_beam(task: Task, rng: random.Random, depth: int = 7, width: int = 3) -> Rollout:
    """Returns an answer of a beam search with its nodes."""
    nodes = [SearchNode(parent=-1, observation=_goal(task), visits=width)]
    beam = [0]
    for level in range(depth):
        made = []
        for parent in beam:
            for _ in range(width):
                step = made_up_step(rng, done=level == depth - 1, reward=float(level == depth - 1))
                score = min(1.0, max(0.0, 0.3 + level / 12 + rng.gauss(0, 0.15)))
                made.append((score, SearchNode(
                    parent=parent, reply=step.reply, action=step.action, score=score,
                    observation=step.transition.observation, outcome=step.transition.reward,
                    done=step.transition.done, success=step.transition.success)))  # fmt: skip
        made.sort(key=lambda pair: -pair[0])
        beam = []
        for rank, (_, node) in enumerate(made):
            kept = rank < width
            status = "finished" if kept and node.done else "kept" if kept else "removed"
            nodes.append(dataclasses.replace(node, status=status))
            if kept:
                beam.append(len(nodes) - 1)
    path, at = [], beam[0]
    while at >= 0:
        path.append(at)
        at = nodes[at].parent
    for i in path:
        nodes[i] = dataclasses.replace(nodes[i], chosen=True)
    steps = tuple(made_up_step(rng) for _ in range(depth))
    trajectory = Trajectory(task=task, first_observation=_goal(task), steps=steps)
    return Rollout(trajectory=trajectory, search=tuple(nodes))


def made_up_samples(task: Task, rng: random.Random, n: int = 5) -> list[Rollout]:
    """Returns n sampled trajectories of which some share their first steps."""
    first = [made_up_step(rng) for _ in range(2)]
    found = []
    for sample in range(n):
        own = tuple(made_up_step(rng) for _ in range(rng.randrange(2, 6)))
        end = made_up_step(rng, done=True, reward=float(rng.random() < 0.5))
        steps = (*first[: rng.randrange(3)], *own, end)
        trajectory = Trajectory(task=task, first_observation=_goal(task), steps=steps)
        found.append(Rollout(trajectory=trajectory, sample=sample))
    return found


def write_made_up_report(folder: pathlib.Path, *, nodes: int, tasks: int = 40) -> pathlib.Path:
    """Writes the report of a made-up run.

    Args:
      folder: The folder to write.
      nodes: Nodes of the first exploration tree; the others have 60.
      tasks: Number of test tasks, and of trees.

    Returns:
      The path of report.html.
    """
    rng = random.Random(0)
    test = [_task(number, "test") for number in range(tasks)]
    episodes = [episode for task in test for episode in _episodes(task, rng)]
    trees = [
        made_up_tree(_task(number, "train"), nodes if number == 0 else 60, rng)
        for number in range(tasks)
    ]
    searches: list[Search] = []
    for tree in trees:
        scores = {number: rng.random() for number in range(tree.num_nodes)}
        other = {number: rng.gauss(0, 2) for number in range(tree.num_nodes)}
        searches.append(tree_search(tree, {"explicit": scores, "implicit": other}))
    for task in test:
        samples = made_up_samples(task, rng)
        scores = {name: [rng.random() for _ in samples] for name in ("explicit", "implicit")}
        searches.append(samples_search(samples, scores, "best of n: samples"))
        searches.append(rollout_search(made_up_beam(task, rng), "beam 3x3, explicit"))
    answers = [tree_answer(search) for search in searches[:tasks]]
    answers += [episode_answer(episode) for episode in episodes]
    return write_report(
        folder,
        {
            "results": result_rows(episodes),
            "comparisons": comparisons(episodes),
            "oracle_gap": oracle_gaps(episodes),
            "value_by_depth": value_by_depth(trees),
            "stages": [{"stage": "explore", "seconds": 61.0, "summary": {"trees": tasks}}],
            "by_n": _by_n(),
            "curves": _curves(),
            "transfer": [
                {"row": row, "column": column, "value": rng.random(), "ci95": [0.2, 0.6]}
                for row in ("babyai", "maze", "pddl")
                for column in ("babyai", "maze", "pddl")
            ],
        },
        ReportPage(
            metrics=[{"stage": "sft", "update": u, "loss": 1 / u} for u in range(1, 60)],
            scores=[
                {"reward_model": "explicit", "task_id": str(i // 5), "score": rng.random(),
                 "outcome": float(rng.random() < 0.5)} for i in range(200)
            ],
            viewer=make_viewer(answers, searches),
            config={"seed": 0, "evaluate": {"n": 5}},
            versions={"python": "3.11"},
        ),
    )  # fmt: skip


def _task(number: int, split: str) -> Task:
    environment = ("babyai", "maze")[number % 3 == 2]
    kind = ("OpenDoor", "PickupLoc", "double_t")[number % 3]
    return Task(
        environment=environment,
        task_id=f"{environment}/{kind}/{split}/{number}",
        kind=kind,
        split="train" if split == "train" else "test",
        max_steps=20,
        held_out=kind == "PickupLoc",
    )


def _goal(task: Task) -> str:
    return f"Your goal is to open the red door and then pick up ball {task.task_id[-2:]}."


def _episodes(task: Task, rng: random.Random) -> Sequence[Episode]:
    tokens = {"greedy": 70, "beam": 1100}
    return [
        Episode(
            task=task,
            method=method,
            reward_model=reward_model,
            n=n,
            beam_width=width,
            expansion_width=width,
            seed=0,
            outcome=(solved := float(rng.random() < mean)),
            success=solved,
            policy_tokens=tokens.get(method, 350),
            reward_tokens=0 if reward_model is None else 900,
            env_steps=7 * n,
            wall_seconds=0.5,
            steps=7,
            error="the environment's process ended" if rng.random() < 0.02 else None,
        )
        for method, reward_model, n, width, mean in _METHODS
    ]


def _by_n() -> list[dict[str, object]]:
    return [
        {"task": task, "reward_model": model, "n": n, "score_mean": 0.4 + gain * (1 - 1 / n),
         "score_ci95": [0.32 + gain * (1 - 1 / n), 0.48 + gain * (1 - 1 / n)], "n_tasks": 40}
        for task in ("all", "babyai", "maze")
        for model, gain in (("explicit", 0.3), ("implicit", 0.15), ("oracle", 0.5))
        for n in range(1, 9)
    ]  # fmt: skip


def _curves() -> list[dict[str, object]]:
    rows: list[dict[str, object]] = [
        {"task": "all", "label": label, "method": "best_of_n",
         "reward_model": model, "score_at": place, "k": k, "tokens": 70.0 * k,
         "score_mean": 0.4 + gain * (1 - 1 / k), "n_tasks": 40,
         "score_ci95": [0.32 + gain * (1 - 1 / k), 0.48 + gain * (1 - 1 / k)]}
        for label, model, place, gain in (
            ("best-of-n, explicit", "explicit", "observation", 0.3),
            ("best-of-n, explicit, blind", "explicit", "action", 0.1),
            ("oracle-of-n", "oracle", "observation", 0.5),
        )
        for k in range(1, 9)
    ]  # fmt: skip
    for label, model, tokens, mean in (
        ("greedy", None, 70.0, 0.42), ("beam 5x5, explicit", "explicit", 1100.0, 0.72),
        ("smc 8, explicit", "explicit", 560.0, 0.66),
    ):  # fmt: skip
        rows.append(
            {"task": "all", "label": label, "method": "m", "reward_model": model,
             "score_at": "observation", "k": None, "tokens": tokens, "score_mean": mean,
             "score_ci95": [mean - 0.1, mean + 0.1], "n_tasks": 40}
        )  # fmt: skip
    return rows
