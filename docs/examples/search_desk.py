"""Searches with the reward model: the same policy, and better decisions.

python docs/examples/search_desk.py MODEL
"""

import sys

from desk import Desk, clerk, desk_tasks

import agentrm_jax as arm

model = arm.RewardModel.load(sys.argv[1])
unseen = desk_tasks(40, seed=1)
with arm.EnvPool({"desk": Desk}) as envs:
    results = {
        "best of 5": arm.best_of_n(clerk, model, envs, unseen, n=5),
        "beam 3x6": list(
            arm.beam_search(clerk, model, envs, unseen, beam_width=3, expansion_width=6)
        ),
    }
print(arm.compare(results, baselines=["random", "shortest", "oracle"]))
