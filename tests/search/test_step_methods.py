"""Methods that move one step at a time against plain searches of one task after the other."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from plain_search import PlainSearch, broken
from random_game import FAILURE, GamePolicy, GamePool, GameScorer, action_key, draw, game

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.seeds import seeded_bytes
from agentrm_jax.search.adaptive_expansion import AdaptiveExpansion
from agentrm_jax.search.dvts import DVTS
from agentrm_jax.search.look_ahead import LookAhead
from agentrm_jax.search.methods import Beam
from agentrm_jax.search.smc import SMC, effective_sample_size, systematic_counts

TASKS = [game(i) for i in range(24)]
SEED = 3


def plain_dvts(method: DVTS, search: PlainSearch):
    live, finished, depth = [0], [], 0
    while live:
        places = live * method.num_subtrees if depth == 0 else live

        def sample(again, places=places, depth=depth):
            return search.merged([
                (node, turn, 1)
                for p, node in enumerate(places)
                for turn in search.ask(node, f"dvts/{depth}/{p}{again}", method.expansion_width)
            ])  # fmt: skip

        new = search.step(finished, sample)
        if new is None:
            return broken(search, live)
        for node in new:
            search.score(node)
        if depth == 0:
            kept = sorted(new, key=lambda node: -search.of(node))[: method.num_subtrees]
        else:
            children = [[n for n in new if search.nodes[n]["parent"] == p] for p in live]
            kept = [search.best(own) for own in children if own]
        search.keep(kept)
        finished += [node for node in kept if search.done(node)]
        live = [node for node in kept if not search.done(node)]
        depth += 1
    return search.rollout(search.best(finished))


def plain_look_ahead(method: LookAhead, search: PlainSearch):
    beam, depth = [0], 0
    while live := [node for node in beam if not search.done(node)]:
        finished = [node for node in beam if search.done(node)]
        places = live * method.beam_width if depth == 0 else live

        def sample(again, places=places, depth=depth):
            return search.merged([
                (node, turn, 1)
                for p, node in enumerate(places)
                for turn in search.ask(node, f"beam/{depth}/{p}{again}", method.expansion_width)
            ])  # fmt: skip

        new = search.step(finished, sample)
        if new is None:
            return broken(search, live)
        ends = dict(zip(new, new, strict=True))
        stopped = set()
        for further in range(method.depth):
            for c, node in enumerate(new):
                if search.done(ends[node]) or node in stopped:
                    continue
                [turn] = search.ask(ends[node], f"look/{depth + 1}/{c}/{further}", 1)
                end = search.act(ends[node], turn)
                stopped |= {node} if end is None else set()
                ends[node] = ends[node] if end is None else end
        for node, end in ends.items():
            search.score(end)
            search.nodes[node]["score"] = search.nodes[end]["score"]
        beam = sorted([*finished, *new], key=lambda node: -search.of(node))[: method.beam_width]
        search.keep(beam)
        depth += 1
    return search.rollout(beam[0])


def plain_adaptive(method: AdaptiveExpansion, search: PlainSearch):
    node, depth = 0, 0
    while not search.done(node):
        searched = []

        def sample(again, node=node, depth=depth, searched=searched):
            def asked(name, n):
                purpose = f"{name}/{depth}/0{again}"
                return [(node, turn, 1) for turn in search.ask(node, purpose, n)]

            candidates = asked("adaptive", method.num_samples)
            merged = search.merged(candidates)
            most = max(count for _, _, count in merged)
            searched.append(most / method.num_samples < method.agreement)
            if not searched[-1]:
                return [next(c for c in merged if c[2] == most)]
            if further := method.expansion_width - method.num_samples:
                candidates += asked("adaptive/further", further)
            return search.merged(candidates)

        new = search.step([], sample)
        if new is None:
            return broken(search, [node])
        if searched[-1]:
            for state in new:
                search.score(state)
        node = search.best(new)
        search.keep([node])
        depth += 1
    return search.rollout(node)


@dataclasses.dataclass
class Particle:
    node: int = 0
    value: float | None = None
    log_weight: float = 0.0


def plain_smc(method: SMC, search: PlainSearch):
    """Every particle by itself."""
    search.nodes[0]["visits"] = method.num_particles
    particles = [Particle() for _ in range(method.num_particles)]
    finished, depth, root_value = [], 0, None
    while live := [p for p in particles if not search.done(p.node)]:
        keys = {}

        def sample(again, live=live, depth=depth, keys=keys):
            candidates = []
            for i, particle in enumerate(live):
                [turn] = search.ask(particle.node, f"smc/{depth}/{i}{again}", 1)
                keys[i] = (particle.node, action_key(search.task, turn.action))
                candidates.append((particle.node, turn, 1))
            return search.merged(candidates)

        new = search.step(finished, sample)
        if new is None:
            return broken(search, sorted(p.node for p in live))
        for node in new:
            search.score(node)
        node_of = {
            (search.nodes[n]["parent"], action_key(search.task, search.nodes[n]["action"])): n
            for n in new
        }
        if root_value is None and (known := [search.of(n) for n in new if search.of(n) > -9]):
            root_value = sum(known) / len(known)
        moved = []
        for i, particle in enumerate(live):
            if keys[i] not in node_of:
                continue  # its environment failed
            node = node_of[keys[i]]
            value, log_weight = particle.value, particle.log_weight
            if (score := search.nodes[node]["score"]) is not None:
                log_weight += (score - (root_value if value is None else value)) / (
                    method.weight_temperature
                )
                value = score
            moved.append(Particle(node, value, log_weight))
        search.keep(new)
        finished += [node for node in new if search.done(node)]
        particles = [p for p in particles if search.done(p.node)]
        particles += sorted(moved, key=lambda particle: particle.node)
        depth += 1
        if not all(search.done(p.node) for p in particles):
            particles = plain_draw(method, search, particles, depth)
    return search.rollout(search.best(finished))


def plain_draw(method, search, particles, depth):
    top = max(p.log_weight for p in particles)
    weights = [math.exp(p.log_weight - top) for p in particles]
    if sum(weights) ** 2 / sum(w * w for w in weights) >= (
        method.resample_below * method.num_particles
    ):
        return particles
    digest = seeded_bytes(SEED, search.task.task_id, f"smc/resample/{depth}")
    offset = np.random.default_rng(int.from_bytes(digest, "big")).random()
    drawn = []
    for k in range(method.num_particles):
        point, i = (k + offset) / method.num_particles * sum(weights), 0
        while point > weights[i] and i + 1 < len(weights):
            point -= weights[i]
            i += 1
        drawn.append(Particle(particles[i].node, particles[i].value))
    nodes = [p.node for p in drawn]
    for node in {p.node for p in particles}:
        if node in nodes:
            search.nodes[node]["visits"] = nodes.count(node)
        elif not search.done(node):
            search.nodes[node]["status"] = "removed"
    return drawn


METHODS = {
    "dvts 3x2": (DVTS(num_subtrees=3, expansion_width=2, concurrency=5), plain_dvts),
    "dvts 1x4": (DVTS(num_subtrees=1, expansion_width=4, concurrency=5), plain_dvts),
    "dvts 9x1": (DVTS(num_subtrees=9, expansion_width=1, concurrency=5), plain_dvts),
    "look ahead 0": (
        LookAhead(beam_width=3, expansion_width=2, depth=0, concurrency=5), plain_look_ahead
    ),
    "look ahead 1": (
        LookAhead(beam_width=3, expansion_width=2, depth=1, concurrency=5), plain_look_ahead
    ),
    "look ahead 9": (
        LookAhead(beam_width=2, expansion_width=3, depth=9, concurrency=5), plain_look_ahead
    ),
    "adaptive 0.5": (AdaptiveExpansion(agreement=0.5, concurrency=5), plain_adaptive),
    "adaptive 1": (
        AdaptiveExpansion(agreement=1.0, num_samples=2, expansion_width=6, concurrency=5),
        plain_adaptive,
    ),
    "adaptive 3 of 3": (
        AdaptiveExpansion(agreement=0.7, num_samples=3, expansion_width=3, concurrency=5),
        plain_adaptive,
    ),
    "smc": (SMC(num_particles=6, concurrency=5), plain_smc),
    "smc, every step": (
        SMC(num_particles=5, resample_below=1.0, weight_temperature=0.5, concurrency=5), plain_smc
    ),
    "smc, never": (SMC(num_particles=3, resample_below=0.0, concurrency=5), plain_smc),
}  # fmt: skip
ONE_OF_EACH = ["dvts 3x2", "look ahead 1", "adaptive 0.5", "smc"]


def run(method, tasks=TASKS, pool=None, scorer=None, policy=None):
    pool = pool or GamePool()
    rollouts = list(method.run(policy or GamePolicy(), scorer or GameScorer(), pool, tasks, SEED))
    assert pool.episodes == {}  # every environment was given back
    assert len(rollouts) == len(tasks)
    return {r.trajectory.task.task_id: dataclasses.replace(r, wall_seconds=0.0) for r in rollouts}


def never(task, actions):
    return False


def going_north(task, actions):
    return bool(actions) and action_key(task, actions[-1]) == "go n"


def at_random(task, actions):
    key = [action_key(task, action) for action in actions]
    return bool(actions) and draw("break", task.task_id, *key) < 0.4


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("breaks", [never, going_north, at_random])
@pytest.mark.parametrize("undecided", [0.0, 0.3])
def test_methods_equal_plain_searches(name, breaks, undecided):
    """Answers, costs and every node, with environments that fail and states without a score."""
    method, plain = METHODS[name]
    found = run(method, pool=GamePool(breaks), scorer=GameScorer(undecided))
    for task in TASKS:
        expected = plain(method, PlainSearch(task, breaks, undecided))
        assert found[task.task_id] == expected
    failed = [rollout for rollout in found.values() if rollout.error]
    assert all(not rollout.trajectory.done for rollout in failed)
    assert (len(failed) == 0) if breaks is never else (len(failed) < len(TASKS))
    if breaks is not never:
        assert any(rollout.failed_candidates for rollout in found.values() if not rollout.error)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_order_and_concurrency_do_not_change_answers(name):
    """A resumed evaluation runs the tasks that are left."""
    method, _ = METHODS[name]
    expected = run(method)
    alone = dataclasses.replace(method, concurrency=1)
    together = dataclasses.replace(method, concurrency=100)
    assert run(together, TASKS[::-1]) == expected
    assert run(alone, TASKS[5:9]) == {t.task_id: expected[t.task_id] for t in TASKS[5:9]}


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_all_tasks_are_asked_and_scored_together(name):
    """The number of calls is that of the longest search, not the sum over the tasks."""

    class Counting(GameScorer):
        calls = 0

        def score(self, groups):
            assert groups
            self.calls += 1
            return super().score(groups)

    class CountingPool(GamePool):
        calls = 0

        def branch(self, requests):
            self.calls += 1
            return super().branch(requests)

    method = dataclasses.replace(METHODS[name][0], concurrency=100)
    pool, scorer = CountingPool(), Counting()
    found = run(method, pool=pool, scorer=scorer)
    longest = max(map(depth_of, found.values()))
    assert 0 < scorer.calls <= longest  # no call if all samples agree
    looks = longest if name == "look ahead 1" else 0  # none if no candidate is left to look from
    assert longest <= pool.calls <= longest + looks


def depth_of(rollout) -> int:
    """Steps of a search: the depth of its deepest node that is not of a look-ahead alone."""
    depths = [0]
    for node in rollout.search[1:]:
        depths.append(depths[node.parent] + 1)
    nodes = zip(depths, rollout.search, strict=True)
    return max(depth for depth, node in nodes if node.status != "removed")


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_all_candidates_are_sampled_again_if_every_environment_fails(name):
    class Flaky(GamePool):
        calls = 0

        def branch(self, requests):
            self.calls += 1
            return [FAILURE] * len(requests) if self.calls == 1 else super().branch(requests)

    policy, method = GamePolicy(), dataclasses.replace(METHODS[name][0], concurrency=100)
    found = run(method, pool=Flaky(), policy=policy)
    assert all(rollout.error is None for rollout in found.values())
    assert all(rollout.trajectory.done for rollout in found.values())
    assert all(rollout.failed_candidates for rollout in found.values())
    assert any(purpose.endswith("/0/again/1") for _, purpose in policy.asked)
    assert not any("/again/2" in purpose for _, purpose in policy.asked)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_reset_that_fails_is_an_error_of_its_task(name):
    pool = GamePool(lambda task, actions: task.task_id == "game/1" and not actions)
    found = run(METHODS[name][0], pool=pool)
    assert found["game/1"].error == "the game broke"
    assert [node.status for node in found["game/1"].search] == ["failed"]
    assert all(rollout.error is None for task, rollout in found.items() if task != "game/1")


@pytest.mark.parametrize("name", ONE_OF_EACH)
@pytest.mark.parametrize("call", [1, 2, 3])
def test_environments_are_released_after_an_error(name, call):
    """Of the scorer or, in the middle of a look-ahead, of the policy."""

    class Fails(GamePolicy):
        calls = 0

        def submit(self, questions):
            self.calls += 1
            if self.calls == call:
                raise ValueError("no memory")
            return super().submit(questions)

    pool = GamePool()
    with pytest.raises(ValueError, match="no memory"):
        list(METHODS[name][0].run(Fails(), GameScorer(), pool, TASKS, SEED))
    assert pool.episodes == {}


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_the_outcome_is_no_input_of_the_search(name):
    """With the rewards of another game the same nodes, in the same order, are visited."""

    class OtherRewards(GamePool):
        def branch(self, requests):
            return [self.paid(each) for each in super().branch(requests)]

        def step(self, requests):
            return [self.paid((0, each))[1] for each in super().step(requests)]

        def paid(self, answer):
            handle, transition = answer
            return handle, dataclasses.replace(transition, reward=0.0, success=False)

    found, unpaid = run(METHODS[name][0]), run(METHODS[name][0], pool=OtherRewards())
    assert any(rollout.trajectory.outcome for rollout in found.values())
    for task_id, rollout in found.items():
        nodes = [dataclasses.replace(n, outcome=0.0, success=False) for n in rollout.search]
        assert tuple(nodes) == unpaid[task_id].search


def test_a_look_ahead_of_no_steps_is_beam_search():
    method, _ = METHODS["look ahead 0"]
    assert run(method) == run(Beam(beam_width=3, expansion_width=2))


def test_samples_that_agree_are_not_scored():
    """With one possible move there is nothing to search; with agreement below any share, too."""
    scorer = GameScorer()
    found = run(METHODS["adaptive 1"][0], policy=GamePolicy("N"), scorer=scorer)
    found |= run(AdaptiveExpansion(agreement=0.1), scorer=scorer)
    assert scorer.scored == 0
    assert all(r.env_steps == len(r.trajectory.steps) for r in found.values())
    assert all(r.reward_tokens == 0 for r in found.values())


def test_the_seed_decides_the_draws():
    """The policy has its own; tasks are drawn for independently."""
    method = METHODS["smc, every step"][0]
    searches = [
        [r.search for r in sorted(
            method.run(GamePolicy(), GameScorer(), GamePool(), TASKS, seed),
            key=lambda rollout: rollout.trajectory.task.task_id,
        )]
        for seed in (0, 0, 1)
    ]  # fmt: skip
    assert searches[0] == searches[1]
    assert searches[0] != searches[2]


def test_systematic_resampling_draws_within_one_of_the_expectation():
    """Every count is the expected one, rounded up or down, and its mean is the expected one."""
    weights = [0.1, 2.0, 0.0, 0.7, 1.2]
    expected = np.array(weights) / sum(weights) * 8
    counts = np.array(
        [systematic_counts(weights, 8, offset) for offset in (np.arange(400) + 0.5) / 400]
    )
    assert (counts.sum(axis=1) == 8).all()
    assert (np.abs(counts - expected) < 1).all()
    np.testing.assert_allclose(counts.mean(axis=0), expected, atol=0.01)
    assert systematic_counts([1.0, 0.0], 4, np.nextafter(1.0, 0.0)) == [4, 0]  # rounded up to 1


def test_the_effective_sample_size_counts_particles():
    assert effective_sample_size([0.0, 0.0], [3, 5]) == pytest.approx(8)
    assert effective_sample_size([0.0, -1000.0], [1, 7]) == pytest.approx(1)
    weights = [1.0, 1.0, math.e]
    expected = sum(weights) ** 2 / sum(w * w for w in weights)
    assert effective_sample_size([0.0, 1.0], [2, 1]) == pytest.approx(expected)


def test_a_sharp_weight_is_greedy_and_a_flat_one_never_draws():
    sharp = dataclasses.replace(METHODS["smc"][0], weight_temperature=1e-6)
    flat = dataclasses.replace(sharp, weight_temperature=1e6)
    for rollout in run(flat).values():
        assert all(node.status != "removed" for node in rollout.search)
    drawn = [rollout for rollout in run(sharp).values() if len(rollout.search) > 7]
    alone = [any(node.visits == 6 for node in rollout.search[1:]) for rollout in drawn]
    assert sum(alone) > len(drawn) / 2  # the others have equal scores


@pytest.mark.parametrize(
    ("method", "field"), [(AdaptiveExpansion(), "agreement"), (SMC(weight_temperature=None),
    "weight_temperature")],
)  # fmt: skip
def test_a_threshold_without_a_value_names_the_command(method, field):
    with pytest.raises(UserError, match=rf"{field} has no value; run `agentrm calibrate`"):
        method.run(GamePolicy(), GameScorer(), GamePool(), TASKS, SEED)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DVTS(num_subtrees=0), "num_subtrees must be at least 1"),
        (lambda: LookAhead(depth=-1), "depth must be at least 0"),
        (lambda: SMC(resample_below=1.5), "resample_below must be at most 1"),
        (lambda: SMC(weight_temperature=0.0), "weight_temperature must be at least 1e-06"),
        (lambda: AdaptiveExpansion(agreement=0.0), "agreement must be above 0"),
        (lambda: AdaptiveExpansion(expansion_width=2), "expansion_width must be at least num_sam"),
    ],
)
def test_bad_fields_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
