"""Beam search against a plain Python beam, one task at a time."""

from __future__ import annotations

import dataclasses

import pytest
from random_game import (
    FAILURE,
    GamePolicy,
    GamePool,
    GameScorer,
    action_key,
    answer,
    draw,
    game,
    value,
)

from agentrm_jax.core.beams import Candidate, InStepPolicy, Kept, ScoredStep, SelectingScorer
from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import propose
from agentrm_jax.core.records import Trajectory
from agentrm_jax.search.beam import BeamConfig, beam_search, search_beams

TASKS = [game(i) for i in range(7)]
CONFIG = BeamConfig(beam_width=3, expansion_width=2, concurrency=4)
AT_ACTION = dataclasses.replace(CONFIG, score_at="action")


class InStep(InStepPolicy):
    """Proposes, drops candidates with equal tokens, scores and selects; one task at a time."""

    def __init__(self, policy: GamePolicy) -> None:
        self.policy = policy

    def propose_scored(self, steps, n, beam_width):
        return [self._one(step, n, beam_width) for step in steps]

    def _one(self, step, n, beam_width):
        requests = [(step.states[parent], purpose) for parent, purpose in step.requests]
        candidates, kept, seen, decoded = [], [], set(), 0
        for (parent, _), group in zip(
            step.requests, propose(self.policy, requests, n), strict=True
        ):
            state = step.states[parent]
            for proposal in group:
                decoded += len(proposal.log_probs)
                if (parent, proposal.token_ids) not in seen:
                    seen.add((parent, proposal.token_ids))
                    replies = [step.reply for step in state.steps] + [proposal.reply]
                    score = value(state.task, replies)
                    kept.append(Kept(score=score, candidate=len(candidates)))
                    candidates.append(Candidate(parent=parent, proposal=proposal))
        ended = [Kept(score=score, finished=b) for b, score in enumerate(step.finished_scores)]
        best = sorted([*ended, *kept], key=lambda k: -k.score)[:beam_width]
        return ScoredStep(candidates=tuple(candidates), kept=tuple(best), tokens_decoded=decoded)


def plain_beam(task, config, breaks=lambda task, actions: False):
    """(trajectory, policy tokens, environment steps) as the paper describes the search."""
    policy = GamePolicy()
    kept = [(0.0, Trajectory(task=task, first_observation=f"game {task.task_id}"))]
    depth = tokens = env_steps = 0
    while not all(state.done for _, state in kept):
        live = [state for _, state in kept if not state.done]
        beams = [entry for entry in kept if entry[1].done]
        if depth == 0:
            live = live * config.beam_width
        seen, candidates = set(), []
        for p, state in enumerate(live):
            [group] = propose(policy, [(state, f"beam/{depth}/{p}")], config.expansion_width)
            for proposal in group:
                tokens += len(proposal.log_probs)
                key = (
                    action_key(task, proposal.action)
                    if config.score_at == "observation"
                    else proposal.token_ids
                )
                if (id(state), key) not in seen:
                    seen.add((id(state), key))
                    candidates.append((state, proposal))
        new = []
        for state, proposal in candidates:
            score = value(task, [step.reply for step in state.steps] + [proposal.reply])
            new.append((score, state, proposal))
        if config.score_at == "action":  # select, then act
            ranked = sorted(
                [*((score, state, None) for score, state in beams), *new], key=lambda c: -c[0]
            )[: config.beam_width]
            beams = [(score, state) for score, state, proposal in ranked if proposal is None]
            new = [c for c in ranked if c[2] is not None]
        for score, state, proposal in new:
            actions = [step.action for step in state.steps] + [proposal.action]
            if not breaks(task, actions):
                step = proposal.as_step(answer(task, actions))
                beams.append((score, state.extended(step)))
                env_steps += 1
        kept = sorted(beams, key=lambda b: -b[0])[: config.beam_width]
        depth += 1
    return max(kept, key=lambda b: b[0])[1], tokens, env_steps


def check_nodes(rollout):
    """The nodes hold the answer's path, and one node for each turn that acted or failed."""
    root, *nodes = rollout.search
    assert (root.parent, root.chosen, root.observation) == (
        -1, True, rollout.trajectory.first_observation
    )  # fmt: skip
    assert [node.reply for node in nodes if node.chosen] == [
        step.reply for step in rollout.trajectory.steps
    ]
    assert sum(node.status != "failed" for node in nodes) == rollout.env_steps
    assert sum(node.status == "failed" for node in nodes) == rollout.failed_candidates
    for node in nodes:
        assert rollout.search[node.parent].status == "kept"
        assert (node.score is None) == (node.status == "failed") or node.status == "removed"
        assert node.done == (node.status == "finished") or node.status == "removed"


def search(tasks, config, pool=None, scorer=None, policy=None):
    pool, policy = pool or GamePool(), policy or GamePolicy()
    in_step = InStep(policy) if config.score_at == "action" else None
    found = list(search_beams(policy, scorer or GameScorer(), pool, tasks, config, in_step))
    assert pool.episodes == {}  # every environment was given back
    for rollout in found:
        check_nodes(rollout)
    return {r.trajectory.task.task_id: dataclasses.replace(r, wall_seconds=0.0) for r in found}


@pytest.mark.parametrize("score_at", ["observation", "action"])
@pytest.mark.parametrize("widths", [(3, 2), (1, 4), (4, 1), (1, 1)])
def test_beams_equal_a_plain_beam(score_at, widths):
    config = BeamConfig(
        beam_width=widths[0], expansion_width=widths[1], score_at=score_at, concurrency=4
    )
    found = search(TASKS, config)
    assert len(found) == len(TASKS)
    for task in TASKS:
        rollout = found[task.task_id]
        expected = plain_beam(task, config)
        assert (rollout.trajectory, rollout.policy_tokens, rollout.env_steps) == expected
        assert rollout.error is None
        assert rollout.trajectory.done


@pytest.mark.parametrize("config", [CONFIG, AT_ACTION], ids=["observation", "action"])
def test_slots_and_order_do_not_change_answers(config):
    expected = search(TASKS, dataclasses.replace(config, concurrency=1))
    assert search(TASKS[::-1], dataclasses.replace(config, concurrency=100)) == expected


@pytest.mark.parametrize("config", [CONFIG, AT_ACTION], ids=["observation", "action"])
def test_the_root_is_asked_for_w1_times_w2_turns(config):
    policy = GamePolicy()
    search([TASKS[0]], config, policy=policy)
    first = [purpose for _, purpose in policy.asked if purpose.startswith("beam/0/")]
    assert first == ["beam/0/0", "beam/0/1", "beam/0/2"]
    assert all(int(purpose.split("/")[2]) < 3 for _, purpose in policy.asked)


def test_each_successor_is_scored_once():
    scorer = GameScorer()
    found = search(TASKS, CONFIG, scorer=scorer)
    assert scorer.scored == sum(rollout.env_steps for rollout in found.values())


def test_equal_actions_of_a_state_act_once():
    """With one possible move every beam but one is a duplicate."""
    found = search(TASKS, CONFIG, policy=GamePolicy("N"))
    for rollout in found.values():
        assert rollout.env_steps == len(rollout.trajectory.steps)


@pytest.mark.parametrize("config", [CONFIG, AT_ACTION], ids=["observation", "action"])
def test_left_out_steps_are_counted(config):
    assert all(rollout.truncated_steps == 0 for rollout in search(TASKS, config).values())
    found = search(TASKS, config, policy=GamePolicy(remembers=0))
    for rollout in found.values():
        longer = len(rollout.trajectory.steps) > 1
        assert (rollout.truncated_steps > 0) >= longer


def breaks_going_north(task, actions):
    return task.task_id != "game/0" and actions != () and actions[-1][-1:] in ("N", "n")


@pytest.mark.parametrize("config", [CONFIG, AT_ACTION], ids=["observation", "action"])
def test_a_broken_environment_costs_its_candidate(config):
    found = search(TASKS, config, GamePool(breaks_going_north))
    whole = 0
    for task in TASKS:
        rollout = found[task.task_id]
        if rollout.error is None:
            whole += 1
            expected = plain_beam(task, config, breaks_going_north)
            assert (rollout.trajectory, rollout.policy_tokens, rollout.env_steps) == expected
    assert whole >= 4


@pytest.mark.parametrize("config", [CONFIG, AT_ACTION], ids=["observation", "action"])
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_task_without_any_beam_left_is_an_error(config, depth):
    whole = search(TASKS, config)
    broken = max(whole, key=lambda task_id: len(whole[task_id].trajectory.steps))
    pool = GamePool(lambda task, actions: task.task_id == broken and len(actions) == depth)
    found = search(TASKS, config, pool)
    for task in TASKS:
        if task.task_id != broken:
            assert found[task.task_id] == whole[task.task_id]
    rollout = found[broken]
    if depth < 2:
        assert rollout.error == "the game broke"
        assert rollout.trajectory.steps == ()
    elif rollout.error is None:  # something had ended before: it is the answer
        assert len(rollout.trajectory.steps) == 1
        assert rollout.trajectory.done


@pytest.mark.parametrize("config", [CONFIG, AT_ACTION], ids=["observation", "action"])
def test_beams_whose_candidates_all_fail_are_asked_again(config):
    """Every branch of the first call fails; the second attempt has a purpose of its own."""

    class Flaky(GamePool):
        calls = 0

        def branch(self, requests):
            self.calls += 1
            return [FAILURE] * len(requests) if self.calls == 1 else super().branch(requests)

    policy = GamePolicy()
    found = search(TASKS[:3], config, Flaky(), policy=policy)
    for rollout in found.values():
        assert rollout.error is None
        assert rollout.trajectory.done
        assert 0 < rollout.failed_candidates <= config.beam_width * config.expansion_width
    purposes = {purpose for _, purpose in policy.asked}
    assert {"beam/0/0", "beam/0/0/again/1"} <= purposes
    assert not any("/again/2" in purpose for purpose in purposes)


class FoldedPolicy(GamePolicy):
    """Says every move in capitals and in small letters; capitals first or last."""

    def __init__(self, capitals_first: bool) -> None:
        super().__init__()
        self.capitals_first = capitals_first

    def _one(self, trajectory, purpose, branch):
        proposal = super()._one(trajectory, purpose.rpartition("/")[0], branch // 2)
        upper = (branch % 2 == 0) == self.capitals_first
        action = proposal.action.upper() if upper else proposal.action.lower()
        return dataclasses.replace(proposal, action=action, reply=f"Action: {action}")


def test_the_order_of_equal_actions_does_not_change_outcomes():
    """Equal keys have equal answers; the scorer sees actions, so that it must not see replies."""

    class ByOutcome(GameScorer):
        def score(self, groups):
            return [
                [draw("s", *(s.transition.observation for s in t.steps)) for t in g] for g in groups
            ]

    config = dataclasses.replace(CONFIG, beam_width=2, expansion_width=4)
    first, last = (
        search(TASKS, config, policy=FoldedPolicy(order), scorer=ByOutcome())
        for order in (True, False)
    )
    for task_id, rollout in first.items():
        other = last[task_id]
        assert rollout.trajectory.outcome == other.trajectory.outcome
        assert rollout.env_steps == other.env_steps
        own = [step.transition for step in rollout.trajectory.steps]
        assert own == [step.transition for step in other.trajectory.steps]


def test_finished_beams_compete_until_the_end():
    """An early end with the best score is the answer; with the worst it is given up."""

    class LengthScorer:
        def __init__(self, sign):
            self.sign = sign

        def score(self, groups):
            return [[self.sign * len(t.steps) for t in group] for group in groups]

        def cost(self, group):
            return 0

    short = search(TASKS, CONFIG, scorer=LengthScorer(-1))
    long = search(TASKS, CONFIG, scorer=LengthScorer(1))
    lengths = [
        (len(short[t.task_id].trajectory.steps), len(long[t.task_id].trajectory.steps))
        for t in TASKS
    ]
    assert all(a <= b for a, b in lengths)
    assert any(a < b for a, b in lengths)
    assert all(rollout.trajectory.done for rollout in [*short.values(), *long.values()])


def test_scoring_at_the_action_needs_a_policy_that_can():
    with pytest.raises(UserError, match=r"score_at must be observation"):
        search_beams(GamePolicy(), GameScorer(), GamePool(), TASKS, AT_ACTION)
    with pytest.raises(UserError, match=r"beam_width must be at least 1"):
        BeamConfig(beam_width=0)


class Selects(SelectingScorer):
    """Scores and selects as beam search does it for other scorers."""

    def __init__(self, ranked: int | None = None) -> None:
        self.scorer, self.calls, self.ranked = GameScorer(), 0, ranked

    def score(self, groups):
        raise AssertionError("select was to be called")

    def cost(self, group):
        return self.scorer.cost(group)

    def select(self, tasks, expansion_width, beam_width):
        self.calls += 1
        chosen = []
        for states, finished in tasks:
            [scores] = self.scorer.score([states])
            members = [Kept(score=score, finished=b) for b, score in enumerate(finished)]
            members += [Kept(score=score, candidate=c) for c, score in enumerate(scores)]
            chosen.append(sorted(members, key=lambda kept: -kept.score)[: self.ranked])
        return chosen


def test_a_scorer_that_selects_is_asked_by_type():
    """The same beams; a scorer with a method of that name alone is not asked for it.

    If it names the next beam alone, only the scores of states that were left out are missing.
    """

    class HasSelect(GameScorer):
        def select(self, *_):
            raise AssertionError("not derived from SelectingScorer")

    scorer, expected = Selects(), search(TASKS, CONFIG)
    assert search(TASKS, CONFIG, scorer=scorer) == expected
    assert scorer.calls > 1
    short = search(TASKS, CONFIG, scorer=Selects(ranked=CONFIG.beam_width))
    for task_id, rollout in expected.items():
        nodes = [
            dataclasses.replace(node, score=None) if node.status == "removed" else node
            for node in rollout.search
        ]
        assert dataclasses.replace(rollout, search=tuple(nodes)) == short[task_id]
    assert search(TASKS, CONFIG, scorer=HasSelect()) == expected


def test_a_task_that_fails_at_once_is_an_error_with_a_selecting_scorer_too():
    """Its root never reaches the selection."""
    pool = GamePool(lambda task, actions: task.task_id == "game/1" and len(actions) == 1)
    found = search(TASKS, CONFIG, pool, scorer=Selects())
    assert found["game/1"].error == "the game broke"
    assert found["game/2"].error is None


def test_plain_functions_are_policy_and_scorer():
    """Texts and scores of functions give the beam of the objects that say the same."""
    states = []

    def policy(state, n, seed):
        states.append(state)
        return [f"Action: go {'NESW'[(seed + k) % 4]}" for k in range(n)]

    def scorer(states):
        return [value(t.task, [s.reply for s in t.steps]) for t in states]

    def run(scorer):
        found = beam_search(
            policy, scorer, GamePool(), TASKS[:2], beam_width=2, expansion_width=3, seed=4
        )
        return sorted(
            (dataclasses.replace(r, wall_seconds=0.0, reward_tokens=0) for r in found),
            key=lambda r: r.trajectory.task.task_id,
        )

    found = run(scorer)
    assert [r.trajectory.task for r in found] == TASKS[:2]
    assert all(r.trajectory.done for r in found)
    assert run(GameScorer()) == found
    assert states


def test_environments_are_released_after_an_error():
    def scorer(states):
        raise ValueError("no memory")

    pool = GamePool()
    with pytest.raises(ValueError, match="no memory"):
        list(beam_search(GamePolicy(), scorer, pool, TASKS[:2]))
    assert pool.episodes == {}
