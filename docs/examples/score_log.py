"""Scores a log with a trained reward model, and shows the turn after which the score fell most.

    python docs/examples/score_log.py LOG MODEL

LOG is a folder of a run (RUN/eval/greedy), or a file of conversations in JSON lines or ATIF. MODEL
is a run, a model folder, or what `agentrm export` wrote.
"""

import itertools
import sys

import agentrm_jax as arm

log, path = sys.argv[1:]
model = arm.RewardModel.load(path)
trajectories = arm.read_trajectories(log)
for scored, trajectory in zip(model.score_steps(trajectories), trajectories, strict=True):
    scores = [scored.start, *scored.after_observation]
    known = [score for score in scores if score is not None]
    print(f"{scored.task_id}: outcome {scored.outcome:.2f}, score {scored.score:.3f}")
    falls = [after - before for before, after in itertools.pairwise(known)]
    if falls and min(falls) < 0:
        worst = falls.index(min(falls))
        action = trajectory.steps[worst].action
        print(f"  {known[worst]:.3f} -> {known[worst + 1]:.3f} after turn {worst + 1}: {action!r}")
