"""Best-of-n and beam search with an environment, a policy and a trained reward model of your own.

python docs/examples/best_of_n.py runs/quickstart
"""

import random
import sys

import agentrm_jax as arm


class Guess:
    def reset(self, task):
        self.number = task.spec["number"]
        return "Guess a number from 1 to 9."

    def step(self, action):
        right = action == f"guess {self.number}"
        text = "Right." if right else "Wrong, try another one."
        return arm.Transition(observation=text, reward=float(right), done=right, success=right)


def policy(state, n, seed):
    draw = random.Random(seed)
    return [f"Thought: A guess.\nAction: guess {draw.randint(1, 9)}" for _ in range(n)]


numbers = range(1, 10)
tasks = [
    arm.Task(environment="guess", task_id=f"guess/{i}", max_steps=6, spec={"number": i})
    for i in numbers
]
prompts = {"guess": arm.Prompt(instruction="Guess the number. Action: guess <number>")}
scorer = arm.RewardModel.load(sys.argv[1], prompts=prompts)
with arm.EnvPool({"guess": Guess}, workers=2) as envs:
    chosen = arm.best_of_n(policy, scorer, envs, tasks, n=5)
    beams = list(arm.beam_search(policy, scorer, envs, tasks, beam_width=3, expansion_width=3))
results = {"best of 5": chosen, "beam 3x3": beams}
print(arm.compare(results, baselines=["random", "shortest", "oracle"]))
