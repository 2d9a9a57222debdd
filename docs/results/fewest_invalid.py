"""Chooses among the trajectories of a task that have the fewest invalid actions.

    python docs/results/fewest_invalid.py RUN [RUN ...] > docs/results/fewest_invalid.json

RUN is a run of an experiment, `runs/experiments/NAME-SIZE/runs/RUN`.
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


def chosen(run: pathlib.Path) -> dict[str, list[float]]:
    """The mean outcome of each choice in each task of a run, by the name of the choice."""
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
    for task_id, samples in sorted(rollouts.items()):
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
        found["n"].append(len(trajectories))
    return found


def main() -> None:
    rows = []
    for run in map(pathlib.Path, sys.argv[1:]):
        found = chosen(run)
        n = found.pop("n")[0]
        for name, outcomes in found.items():
            gain = paired_bootstrap(outcomes, found["random"])
            rows.append(
                {
                    "run": f"{run.absolute().parents[1].name.rsplit('-', 1)[0]}, {run.name}",
                    "n": n,
                    "chosen_by": name,
                    "score": float(np.mean(outcomes)),
                    "over_random": [gain.mean, gain.low, gain.high],
                    "n_tasks": gain.n,
                }
            )
    print(json.dumps({"fewest_invalid": rows}, indent=1))


if __name__ == "__main__":
    main()
