"""Trains a reward model on search trees of the desk.

python docs/examples/train_desk.py OUTPUT
"""

import sys

from desk import PROMPT, Desk, clerk, desk_tasks

import agentrm_jax as arm

with arm.EnvPool({"desk": Desk}) as envs:
    trees = arm.explore(clerk, envs, desk_tasks(120, seed=0), num_iterations=8)
labelled = arm.label(trees)
print(f"{len(trees)} trees, {sum(tree.num_labels for tree in labelled)} states with a value")

model = arm.train_reward_model(
    labelled,
    sys.argv[1],
    prompts={"desk": PROMPT},
    init=arm.ModelConfig(vocab_size=400, d_model=64, num_layers=2, head_dim=32, d_ff=128),
    fit=arm.FitConfig(num_updates=300, batch_size=8, length=512),
    optimizer=arm.OptimizerConfig(learning_rate=3e-3),
)
print("value and score of states:")
tree = labelled[0]
for node in range(min(6, len(tree.values))):
    state = tree.state(node)
    [[score]] = model.score([[state]])
    print(f"  {tree.values[node]:.2f} {score:.2f} {[step.action for step in state.steps]}")
