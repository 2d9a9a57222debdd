"""An environment of your own: an agent looks an order up, then decides what the customer gets.

python docs/examples/desk.py
"""

import random

import agentrm_jax as arm

RULES = {"late": "refund", "broken": "replace", "worn out": "decline"}
DECISIONS = tuple(RULES.values())
PROMPT = arm.Prompt(
    instruction="Late orders are refunded, broken ones replaced, worn out ones declined. Reply "
    "with Action: look up <order>, refund, replace or decline."
)


class Desk:
    def reset(self, task):
        self.order, self.case, self.known = task.spec["order"], task.spec["case"], False
        return f"A customer complains about order {self.order}."

    def step(self, action):
        if action in DECISIONS:  # half of the reward; the text is the same, right or wrong
            right = action == RULES[self.case]
            return answer("The case is closed.", right / 2, done=True, success=right and self.known)
        if action != f"look up {self.order}":
            return answer("Say: look up <order>, or a decision.", valid=False)
        first, self.known = not self.known, True
        return answer(f"It is {self.case}.", first / 2)  # the other half, once


def answer(text, reward=0.0, done=False, success=False, valid=True):
    return arm.Transition(observation=text, reward=reward, done=done, success=success, valid=valid)


def desk_tasks(n, seed):
    draw = random.Random(seed)
    specs = [{"order": draw.randint(100, 999), "case": draw.choice([*RULES])} for _ in range(n)]
    return [
        arm.Task(environment="desk", task_id=f"desk/{seed}/{i}", max_steps=4, spec=spec)
        for i, spec in enumerate(specs)
    ]


def clerk(state, n, seed):  # a policy that does not know the rules
    order, draw = state.task.spec["order"], random.Random(seed)
    return [f"Action: {draw.choice((f'look up {order}', *DECISIONS))}" for _ in range(n)]


if __name__ == "__main__":
    with arm.EnvPool({"desk": Desk}) as envs:
        for rollout in arm.rollouts(clerk, envs, desk_tasks(5, seed=0)):
            actions = [step.action for step in rollout.trajectory.steps]
            print(rollout.trajectory.outcome, actions)
