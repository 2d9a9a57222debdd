"""Gains of `agentrm experiment transfer` on the task of the training and on the other tasks.

    python docs/results/off_diagonal.py RUNS > docs/results/off_diagonal.json

RUNS is the folder `runs/experiments/transfer-SIZE/runs`. A policy that was fine-tuned on a task is
compared with the general policy, both greedy; best-of-n of the general policy under a reward model
of a task (blind) with random choice among the same trajectories, with the greedy general policy,
and with the choice of the fewest invalid actions.
"""

import json
import pathlib
import sys
from collections import defaultdict

from agentrm_jax.evaluation.episodes import Episode, read_episodes
from agentrm_jax.evaluation.statistics import paired_bootstrap
from agentrm_jax.pipeline.load_config import load_config
from agentrm_jax.runtime.run_paths import EPISODES, RunPaths

BLIND = "best-of-5, explicit, blind"
COMPARED = (
    ("policy", "fine-tuned policy, greedy, over the general one", "greedy", "greedy"),
    ("reward", "reward model, best-of-5, over random choice", BLIND, "random-of-5"),
    ("reward", "reward model, best-of-5, over greedy", BLIND, "greedy"),
    ("reward", "reward model, best-of-5, over fewest invalid", BLIND, "fewest invalid-of-5"),
)
"""Kind of run, name, method, and what it is compared with."""


def outcomes(run: pathlib.Path) -> dict[str, dict[str, Episode]]:
    """The episodes of a run by method and task."""
    found: dict[str, dict[str, Episode]] = defaultdict(dict)
    for file in sorted(RunPaths(run).stage("evaluate").glob(f"*/{EPISODES}")):
        for episode in read_episodes(file):
            found[episode.variant.label][episode.task.task_id] = episode
    return found


def main() -> None:
    runs = pathlib.Path(sys.argv[1])
    rows = []
    for kind, name, method, other in COMPARED:
        pairs: dict[bool, dict[str, list[tuple[float, float]]]] = {
            True: defaultdict(list),
            False: defaultdict(list),
        }
        for run in sorted(runs.glob(f"{kind}_*")):
            found = outcomes(run)
            # The runs of reward models have the greedy general policy on the same tasks.
            base = outcomes(runs / run.name.replace("policy", "reward"))[other]
            (trained,) = load_config(run / "config.resolved.yaml").environments[0].kinds
            for task_id, episode in found[method].items():
                if task_id in base:
                    own = episode.task.kind == trained
                    pairs[own][task_id].append((episode.outcome, base[task_id].outcome))
        for own, tasks in pairs.items():
            means = [
                [sum(side) / len(side) for side in zip(*each, strict=True)]
                for each in tasks.values()
            ]
            gain = paired_bootstrap(*zip(*means, strict=True))
            rows.append(
                {
                    "name": name,
                    "tested_on": "the task of the training" if own else "other tasks",
                    "gain": [gain.mean, gain.low, gain.high],
                    "n_tasks": gain.n,
                }
            )
    print(json.dumps({"off_diagonal": rows}, indent=1))


if __name__ == "__main__":
    main()
