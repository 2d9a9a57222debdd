"""A test-time method of your own, with its own keys in configuration files and its own row.

    agentrm evaluate CONFIG --output NEW --policy=runs/quickstart/sft/model --train_policy=false \\
        --reward_model=runs/quickstart/reward/explicit/model --evaluate.options.lookahead.depth=2 \\
        --plugins='[docs/examples/lookahead.py]' --evaluate.methods='[greedy, lookahead]'
"""

import dataclasses

import agentrm_jax as arm


@arm.register_method("lookahead")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Lookahead:
    width: int = 3  # turns to choose from
    depth: int = 1  # turns after each, before the reward model scores

    def run(self, policy, scorer, envs, tasks, seed):
        for task in tasks:
            [(handle, text)] = envs.reset([task])
            state = arm.Trajectory(task=task, first_observation=text)
            while not state.done:
                children = self.children(policy, envs, handle, state, self.width)
                [scores] = scorer.score([[self.end(policy, envs, *child) for child in children]])
                handle, state = children[scores.index(max(scores))]
            yield arm.Rollout(trajectory=state)

    def children(self, policy, envs, handle, state, n):
        [turns] = arm.propose(policy, [(state, f"look/{len(state.steps)}")], n)
        answers = envs.branch([(handle, turn.action) for turn in turns])
        envs.release([handle] if n > 1 else [])
        pairs = zip(turns, answers, strict=True)
        return [(child, state.extended(turn.as_step(answer))) for turn, (child, answer) in pairs]

    def end(self, policy, envs, handle, state):
        for _ in range(self.depth):
            if not state.done:
                [(handle, state)] = self.children(policy, envs, handle, state, 1)
        return state
