"""A reward model of logged conversations with outcomes, without an environment.

    python docs/examples/logged_trajectories.py LOG.jsonl OUTPUT

A line of LOG.jsonl: {"id": "7", "goal": "...", "turns": [["reply", "answer"], ...], "outcome": 0.5}
"""

import json
import pathlib
import sys

import agentrm_jax as arm


def trajectory(log: dict) -> arm.Trajectory:
    task = arm.Task(environment="support", task_id=f"support/{log['id']}", max_steps=50)
    steps = []
    for number, (reply, answer) in enumerate(log["turns"], start=1):
        last = number == len(log["turns"])
        transition = arm.Transition(
            observation=answer,
            reward=log["outcome"] if last else 0.0,
            done=last,
            success=last and log["outcome"] == 1,
        )
        steps.append(arm.Step(reply=reply, action=reply, transition=transition))
    return arm.Trajectory(task=task, first_observation=log["goal"], steps=tuple(steps))


lines = pathlib.Path(sys.argv[1]).read_text().splitlines()
logged = [trajectory(json.loads(line)) for line in lines]
prompts = {"support": arm.Prompt(instruction="Help the customer.")}
model = arm.train_reward_model(logged, sys.argv[2], prompts=prompts)
for scored in model.score_steps(logged[:3]):
    print(scored.task_id, scored.outcome, [round(score, 3) for score in scored.after_observation])
