"""The bookkeeping of one search in plain Python: no batches, no handles, no other tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from random_game import GamePolicy, GameScorer, action_key, answer

from agentrm_jax.core.protocols import Proposal, propose
from agentrm_jax.core.records import Task, Trajectory
from agentrm_jax.search.rollouts import Rollout
from agentrm_jax.search.search_nodes import SearchNode

Candidate = tuple[int, Proposal, int]
"""Node, turn, and how many samples have its action."""


class PlainSearch:
    """Nodes and costs of the search of one task."""

    def __init__(
        self,
        task: Task,
        breaks: Callable[[Task, Sequence[str]], bool] = lambda task, actions: False,
        undecided: float = 0.0,
        policy: GamePolicy | None = None,
    ) -> None:
        self.task, self.breaks = task, breaks
        self.policy, self.scorer = policy or GamePolicy(), GameScorer(undecided)
        self.tokens = self.truncated = self.env_steps = self.failed = 0
        root = Trajectory(task=task, first_observation=f"game {task.task_id}")
        self.states = [root]
        self.nodes = [{"parent": -1, "observation": root.first_observation}]

    def ask(self, node: int, purpose: str, n: int) -> list[Proposal]:
        [proposals] = propose(self.policy, [(self.states[node], purpose)], n)
        for proposal in proposals:
            self.tokens += len(proposal.log_probs)
            self.truncated += proposal.truncated_steps
        return proposals

    def merged(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Equal actions of a node become one candidate."""
        found: list[Candidate] = []
        for node, proposal, count in candidates:
            key = action_key(self.task, proposal.action)
            for i, (other, first, before) in enumerate(found):
                if other == node and action_key(self.task, first.action) == key:
                    found[i] = (node, first, before + count)
                    break
            else:
                found.append((node, proposal, count))
        return found

    def act(self, node: int, proposal: Proposal, visits: int = 1) -> int | None:
        """Returns the new node; None if the environment breaks."""
        state = self.states[node]
        actions = [step.action for step in state.steps] + [proposal.action]
        record = {"parent": node, "reply": proposal.reply, "action": proposal.action}
        self.nodes.append(record)
        if self.breaks(self.task, actions):
            self.failed += 1
            self.states.append(state)
            record |= {"status": "failed"}
            return None
        self.env_steps += 1
        transition = answer(self.task, actions)
        self.states.append(state.extended(proposal.as_step(transition)))
        record |= {
            "observation": transition.observation,
            "outcome": transition.reward,
            "done": transition.done,
            "success": transition.success,
            "visits": visits,
            "status": "removed",
        }
        return len(self.states) - 1

    def score(self, node: int) -> None:
        score = self.scorer.score([[self.states[node]]])[0][0]
        self.nodes[node]["score"] = None if score != score else score

    def of(self, node: int) -> float:
        score = self.nodes[node].get("score")
        return float("-inf") if score is None else score

    def done(self, node: int) -> bool:
        return self.states[node].done

    def keep(self, nodes: Sequence[int]) -> None:
        for node in nodes:
            self.nodes[node]["status"] = "finished" if self.done(node) else "kept"

    def step(
        self, finished: Sequence[int], sample: Callable[[str], list[Candidate]]
    ) -> list[int] | None:
        """Samples candidates and acts; again if all of them fail and nothing is finished.

        Returns:
          The new nodes; None if three attempts have failed.
        """
        for again in ("", "/again/1", "/again/2"):
            new = [self.act(*candidate) for candidate in sample(again)]
            if finished or any(node is not None for node in new):
                return [node for node in new if node is not None]
        return None

    def best(self, nodes: Sequence[int]) -> int:
        """The first node with the best score."""
        return min(nodes, key=lambda node: (-self.of(node), nodes.index(node)))

    def rollout(self, answer: int, error: str | None = None) -> Rollout:
        path = [answer]
        while path[-1]:
            path.append(self.nodes[path[-1]]["parent"])
        return Rollout(
            trajectory=self.states[answer],
            policy_tokens=self.tokens,
            truncated_steps=self.truncated,
            env_steps=self.env_steps,
            failed_candidates=self.failed,
            reward_tokens=self.scorer.scored,
            error=error,
            search=tuple(
                SearchNode(**record, chosen=i in path) for i, record in enumerate(self.nodes)
            ),
        )


def broken(search: PlainSearch, live: Sequence[int]) -> Rollout:
    return search.rollout(live[0], "the game broke")
