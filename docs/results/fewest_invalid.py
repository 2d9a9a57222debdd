"""Chooses among the trajectories of a task that have the fewest invalid actions.

    python docs/results/fewest_invalid.py RUN [RUN ...] > docs/results/fewest_invalid.json

RUN is a run of an experiment, `runs/experiments/NAME-SIZE/runs/RUN`. Runs that differ in their
training seed alone (`RUN-seed1`, `RUN-seed2`) are averaged within a task.
A reward model that does nothing but notice refused actions is as good as random choice here. Reads
best-of-n of evaluated runs (`RUN/eval/best_of_n`); prints a record that `render.py` shows.
"""

import json
import pathlib
import sys
from collections import defaultdict

import numpy as np

from agentrm_jax.evaluation.episodes import AT_OBSERVATION, scored_label
from agentrm_jax.evaluation.rollout_files import read_rollouts
from agentrm_jax.evaluation.rows import ScoreRow, read_rows
from agentrm_jax.evaluation.statistics import paired_bootstrap
from agentrm_jax.runtime.run_paths import RunPaths


def chosen(run: pathlib.Path) -> tuple[list[str], int, dict[str, list[float]]]:
    """The tasks of a run, n, and the mean outcome in each task by the name of the choice."""
    folder = RunPaths(run).method("best_of_n")
    rollouts = defaultdict(dict)
    for rollout in read_rollouts(folder.rollouts, finished=True):
        rollouts[rollout.trajectory.task.task_id][rollout.sample] = rollout.trajectory
    scores = defaultdict(lambda: defaultdict(list))
    for row in read_rows(folder.scores, ScoreRow):
        place = row.get("score_at", AT_OBSERVATION)
        name = scored_label("", row["reward_model"], place).removeprefix(", ")
        scores[name][row["task_id"]].append(row["score"])

    found = defaultdict(list)
    tasks = sorted(rollouts)
    for task_id in tasks:
        samples = rollouts[task_id]
        trajectories = [samples[number] for number in sorted(samples)]
        refused = np.array([trajectory.invalid_actions for trajectory in trajectories])
        left = np.flatnonzero(refused == refused.min())
        outcomes = np.array([trajectories[i].outcome for i in left])
        found["random"].append(float(outcomes.mean()))
        found["the policy's likelihood"].append(
            float(outcomes[np.argmax([trajectories[i].log_prob for i in left])])
        )
        for name, of_task in scores.items():
            found[name].append(float(outcomes[np.argmax(np.array(of_task[task_id])[left])]))
        found["oracle"].append(float(outcomes.max()))
    return tasks, len(rollouts[tasks[0]]), found


def seeds_of(runs: list[pathlib.Path]) -> dict[str, list[pathlib.Path]]:
    """The runs of each experiment and name, whatever their training seed."""
    found = defaultdict(list)
    for run in runs:
        experiment = run.absolute().parents[1].name.rpartition("-")[0]
        found[f"{experiment}, {run.name.partition('-seed')[0]}"].append(run)
    return found


def main() -> None:
    rows = []
    for name, runs in seeds_of([pathlib.Path(run) for run in sys.argv[1:]]).items():
        tasks, n, first = chosen(runs[0])
        every = [first]
        for run in runs[1:]:
            others, _, outcomes = chosen(run)
            if others != tasks:
                raise SystemExit(f"{run}: other tasks than {runs[0]}")
            every.append(outcomes)
        found = {choice: np.mean([of[choice] for of in every], axis=0) for choice in first}
        for choice, outcomes in found.items():
            gain = paired_bootstrap(list(outcomes), list(found["random"]))
            rows.append(
                {
                    "run": f"{name}, {len(runs)} seeds" if len(runs) > 1 else name,
                    "n": n,
                    "chosen_by": choice,
                    "score": float(np.mean(outcomes)),
                    "over_random": [gain.mean, gain.low, gain.high],
                    "n_tasks": gain.n,
                }
            )
    print(json.dumps({"fewest_invalid": rows}, indent=1))


if __name__ == "__main__":
    main()
