"""Retries with reflection against playing one task after the other in plain Python."""

from __future__ import annotations

import dataclasses
import math

import pytest
from random_game import FAILURE, GamePolicy, GamePool, answer, draw, game

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import Proposal, propose
from agentrm_jax.core.records import Trajectory
from agentrm_jax.data.attempts import attempt_text, shortened_attempt
from agentrm_jax.search.methods import UNDECIDED, method_traits
from agentrm_jax.search.retry import Retry
from agentrm_jax.search.rollouts import rollouts
from agentrm_jax.search.search_nodes import SearchNode

TASKS = [game(i) for i in range(14)]


class Reflecting(GamePolicy):
    """Plays in a way that depends on its notes; a third of the notes are empty."""

    def __init__(self) -> None:
        super().__init__("NESW-", remembers=3)
        self.states: list[tuple[str, Trajectory]] = []

    def submit(self, questions):
        self.states += [(question.purpose, question.state) for question in questions]
        return super().submit(questions)

    def _one(self, trajectory, purpose, branch):
        seen = draw(trajectory.first_observation)
        if not purpose.startswith("reflect/"):
            return super()._one(trajectory, f"{purpose} {seen}", branch)
        seen = draw(seen, purpose)
        reply = " \n" if seen < 1 / 3 else f"I went  wrong.\nNext time {seen}."
        return Proposal(
            reply=reply, action="", token_ids=(1, 2, 3), log_probs=(-1.0, -2.0, -0.5),
            truncated_steps=int(seen > 0.8),
        )  # fmt: skip


def value(trajectory: Trajectory) -> float:
    """A score that cannot be told from the outcome, coarse, now and then undecided."""
    names = (trajectory.task.task_id, *(step.reply for step in trajectory.steps))
    return math.nan if draw("undecided", *names) < 0.2 else round(draw("score", *names), 1)


class Scores:
    def __init__(self, score=value) -> None:
        self._score = score
        self.scored: list[Trajectory] = []

    def score(self, groups):
        self.scored += [state for group in groups for state in group]
        return [[self._score(state) for state in group] for group in groups]

    def cost(self, group):
        return sum(1 + len(state.steps) for state in group)


def breaks(task, actions) -> bool:
    """Two games cannot be reset; in the others some moves break the game."""
    if not actions:
        return task.task_id in ("game/3", "game/8")
    return draw("break", task.task_id, *map(str.lower, actions)) < 0.2


def plain_attempt(task, policy, number, notes, fails):
    """(trajectory, costs, error) of one attempt; costs: tokens, truncated steps, failures."""
    tokens = truncated = failed = 0
    if fails(task, ()):
        return Trajectory(task=task, first_observation=""), (0, 0, 0), FAILURE.reason
    trajectory = Trajectory(task=task, first_observation=f"game {task.task_id}")
    again = 0
    while not trajectory.done:
        shown = trajectory
        if notes:
            text = (
                "You have attempted this task before. Your notes on these attempts:\n"
                + "".join(f"- {note}\n" for note in notes)
                + f"\ngame {task.task_id}"
            )
            shown = dataclasses.replace(trajectory, first_observation=text)
        purpose = f"sample/{number}/{len(trajectory.steps)}" + (f"/again/{again}" if again else "")
        [[proposal]] = propose(policy, [(shown, purpose)], 1)
        tokens += len(proposal.log_probs)
        truncated += proposal.truncated_steps
        actions = [step.action for step in trajectory.steps] + [proposal.action]
        if not fails(task, actions):
            trajectory, again = trajectory.extended(proposal.as_step(answer(task, actions))), 0
            continue
        failed, again = failed + 1, again + 1
        if again == 3:
            return trajectory, (tokens, truncated, failed), FAILURE.reason
    return trajectory, (tokens, truncated, failed), None


def plain_retry(task, config, fails):
    """The fields of the answer, as `Retry` describes it."""
    policy, attempts, notes, costs = Reflecting(), [], [], [0, 0, 0]
    nodes = []
    while True:
        remembered = notes[-config.memory :]
        trajectory, own, error = plain_attempt(task, policy, len(attempts), remembered, fails)
        costs = [a + b for a, b in zip(costs, own, strict=True)]
        score = value(trajectory) if config.uses_score and error is None else None
        attempts.append((trajectory, score, error))
        good = score is not None and score >= config.retry_below
        if len(attempts) == config.num_attempts or good:
            break
        nodes.append("")
        if error is None:
            shown = f"game {task.task_id}"
            if notes:
                shown = (
                    "You have attempted this task before. Your notes on these attempts:\n"
                    + "".join(f"- {note}\n" for note in remembered)
                    + f"\ngame {task.task_id}"
                )
            question = (
                "Below are a task and your attempt at it, which probably failed. Do not continue "
                f"the attempt.\n\nTask:\n{shown}\n\nAttempt:\n{attempt_text(trajectory)}\n\n"
                "What went wrong in this attempt, and what will you do differently next time? "
                "Answer in two or three sentences."
            )
            state = Trajectory(task=task, first_observation=question)
            [[reply]] = propose(policy, [(state, f"reflect/{len(attempts) - 1}")], 1)
            costs[0] += 3
            costs[1] += reply.truncated_steps
            nodes[-1] = " ".join(reply.reply.split())
            notes += [nodes[-1]] if nodes[-1] else []
    whole = [a for a in attempts if a[2] is None]
    decided = [a for a in whole if a[1] is not None and not math.isnan(a[1])]
    if not config.uses_score or not whole:
        best = (whole or attempts)[-1]
    else:
        best = max(decided, key=lambda a: a[1]) if decided else whole[0]
    undecided = config.uses_score and whole and not decided
    return {
        "trajectory": best[0],
        "error": UNDECIDED if undecided else best[2],
        "policy_tokens": costs[0],
        "truncated_steps": costs[1],
        "failed_candidates": costs[2],
        "env_steps": sum(len(a[0].steps) for a in attempts),
        "reward_tokens": sum(1 + len(a[0].steps) for a in attempts if a[1] is not None),
        "search": plain_nodes(
            attempts, ["", *nodes], next(i for i, a in enumerate(attempts) if a is best)
        ),
    }


def plain_nodes(attempts, notes, chosen):
    known = [a[0].first_observation for a in attempts if a[0].first_observation]
    found = [
        SearchNode(parent=-1, observation=(known or [""])[0], visits=len(attempts), chosen=True)
    ]
    for number, (trajectory, score, error) in enumerate(attempts):
        last = 0
        if notes[number]:
            found.append(SearchNode(parent=0, reply=notes[number], chosen=number == chosen))
            last = len(found) - 1
        for i, step in enumerate(trajectory.steps):
            ends = i + 1 == len(trajectory.steps) and error is None
            found.append(
                SearchNode(
                    parent=last, reply=step.reply, action=step.action,
                    observation=step.transition.observation,
                    outcome=sum(s.transition.reward for s in trajectory.steps[: i + 1]),
                    done=step.transition.done, success=step.transition.success,
                    score=score if ends and score is not None and score == score else None,
                    status="finished" if ends else "kept", chosen=number == chosen,
                )
            )  # fmt: skip
            last = len(found) - 1
        if error is not None:
            found.append(
                SearchNode(
                    parent=last, observation=error, outcome=trajectory.outcome, status="failed",
                    chosen=number == chosen,
                )
            )  # fmt: skip
    return tuple(found)


def run(tasks, config, pool=None, scorer=None, policy=None):
    pool = pool or GamePool()
    found = list(config.run(policy or Reflecting(), scorer or Scores(), pool, tasks, seed=0))
    assert pool.episodes == {}  # every environment was given back
    return {r.trajectory.task.task_id: dataclasses.replace(r, wall_seconds=0.0) for r in found}


CONFIGS = {
    "score": Retry(retry_below=0.6),
    "a high threshold": Retry(retry_below=0.9, num_attempts=5, memory=2),
    "no score": Retry(uses_score=False),
    "one attempt": Retry(retry_below=0.5, num_attempts=1),
    "one note": Retry(uses_score=False, num_attempts=4, memory=1),
}


@pytest.mark.parametrize("fails", [lambda *_: False, breaks], ids=["sound", "failures"])
@pytest.mark.parametrize("name", CONFIGS)
def test_answers_equal_one_task_after_the_other(name, fails):
    """The answers, their costs and their nodes, with undecided scores among them."""
    config = CONFIGS[name]
    expected = {task.task_id: plain_retry(task, config, fails) for task in TASKS}
    for concurrency, elsewhere, tasks in (
        (1, True, TASKS),
        (5, False, TASKS),
        (64, True, TASKS[::-1]),
    ):
        now = dataclasses.replace(config, concurrency=concurrency)
        found = run(tasks, now, GamePool(fails, elsewhere))
        assert {
            task_id: {key: getattr(found[task_id], key) for key in fields}
            for task_id, fields in expected.items()
        } == expected


def test_the_random_games_hold_every_case():
    """What the comparison above is about does happen in it."""
    sound = [plain_retry(task, CONFIGS["score"], lambda *_: False) for task in TASKS]
    broken = [plain_retry(task, CONFIGS["score"], breaks) for task in TASKS]
    counts = [fields["search"][0].visits for fields in sound]
    assert {1, 2, 3} <= set(counts)
    assert any(fields["error"] is None and fields["failed_candidates"] for fields in broken)
    assert any(fields["error"] == FAILURE.reason for fields in broken)
    assert any(fields["error"] == UNDECIDED for fields in [*sound, *broken])
    notes = [n.reply for f in sound for n in f["search"] if n.reply.startswith("I went")]
    again = sum(count - 1 for count in counts)
    assert 0 < len(notes) < again  # some notes are empty


def test_the_first_attempt_is_the_first_trajectory_of_best_of_n():
    [first] = rollouts(Reflecting(), GamePool(), [(TASKS[0], 0)])
    found = run(TASKS[:1], Retry(num_attempts=1, retry_below=0.5))
    assert found["game/0"].trajectory == first.trajectory


def test_the_outcome_never_triggers_an_attempt():
    high, low = Scores(lambda state: 0.5), Scores(lambda state: 0.49)
    once = run(TASKS, Retry(retry_below=0.5), scorer=high)
    thrice = run(TASKS, Retry(retry_below=0.5), scorer=low)
    outcomes = [rollout.trajectory.outcome for rollout in once.values()]
    assert min(outcomes) < 0.3
    assert max(outcomes) > 0.9
    assert {rollout.search[0].visits for rollout in once.values()} == {1}
    assert {rollout.search[0].visits for rollout in thrice.values()} == {3}


def test_the_reward_model_does_not_read_the_notes():
    scorer, policy = Scores(), Reflecting()
    run(TASKS, CONFIGS["a high threshold"], scorer=scorer, policy=policy)
    asked = {state.first_observation for purpose, state in policy.states if "sample/" in purpose}
    assert any("Your notes on these attempts:\n- I went wrong." in text for text in asked)
    assert all(s.first_observation == f"game {s.task.task_id}" for s in scorer.scored)


def test_without_scores_no_reward_model_is_asked():
    assert not method_traits(Retry(uses_score=False)).uses_reward_model
    assert method_traits(Retry(retry_below=0.5)).uses_reward_model
    found = list(Retry(uses_score=False).run(Reflecting(), None, GamePool(), TASKS[:3], 0))
    assert [rollout.reward_tokens for rollout in found] == [0, 0, 0]


def test_a_threshold_without_a_value_names_the_command():
    with pytest.raises(UserError, match=r"retry_below has no value; run `agentrm calibrate`"):
        Retry().run(Reflecting(), Scores(), GamePool(), TASKS, 0)
    with pytest.raises(UserError, match="num_attempts must be at least 1"):
        Retry(num_attempts=0)
    with pytest.raises(UserError, match="retry_below must be left out because uses_score is false"):
        Retry(uses_score=False, retry_below=0.5)


class Once(GamePool):
    """Breaks at the first reset of each task."""

    def __init__(self):
        self.seen = set()
        super().__init__(self._breaks_once)

    def _breaks_once(self, task, actions):
        fresh = not actions and task.task_id not in self.seen
        self.seen.add(task.task_id)
        return fresh


def test_a_failed_attempt_is_followed_by_another_without_a_note():
    policy = Reflecting()
    found = run(TASKS[:3], Retry(num_attempts=2, uses_score=False), Once(), policy=policy)
    for task in TASKS[:3]:
        rollout = found[task.task_id]
        assert rollout.error is None
        assert rollout.trajectory.done
        assert [node.status for node in rollout.search if node.status == "failed"] == ["failed"]
        assert rollout.search[0].observation == f"game {task.task_id}"
    assert not any(purpose.startswith("reflect/") for purpose, _ in policy.states)


class Forgetful(Reflecting):
    """Reads at most `limit` characters, and says so."""

    limit = 420

    def fits(self, state):
        return len(state.first_observation) <= self.limit


def test_a_long_attempt_loses_its_oldest_steps():
    policy = Forgetful()
    run(TASKS, CONFIGS["no score"], policy=policy)
    questions = [s.first_observation for purpose, s in policy.states if purpose == "reflect/0"]
    shortened = [text for text in questions if "steps are left out.)" in text]
    assert 0 < len(shortened) < len(questions)
    assert all(len(text) <= policy.limit for text in questions)
    policy.limit = 10  # nothing fits: the policy's own context shortens the rest
    policy.states.clear()
    run(TASKS, CONFIGS["no score"], policy=policy)
    questions = [s.first_observation for purpose, s in policy.states if purpose == "reflect/0"]
    assert all("\nAction: go" not in text for text in questions)


@pytest.mark.parametrize("length", range(8))
def test_as_few_steps_are_left_out_as_possible(length):
    trajectory = Trajectory(task=TASKS[0], first_observation="")
    for i in range(length):
        proposal = Proposal(reply="x" * (7 * i % 5), action="", token_ids=(), log_probs=())
        trajectory = trajectory.extended(proposal.as_step(answer(TASKS[0], ["go n"] * i)))
    texts = [attempt_text(trajectory, dropped) for dropped in range(length + 1)]
    for room in range(len(texts[0]) + 60):
        fitting = [text for text in texts if len(text) <= room]
        expected = fitting[0] if fitting else None
        assert shortened_attempt(trajectory, lambda text, room=room: len(text) <= room) == expected


def test_environments_are_released_if_the_caller_or_the_scorer_stops():
    pool = GamePool()
    running = CONFIGS["score"].run(Reflecting(), Scores(), pool, TASKS, 0)
    next(running)
    assert pool.episodes
    running.close()
    assert pool.episodes == {}

    def broken(state):
        raise ValueError("no memory")

    with pytest.raises(ValueError, match="no memory"):
        list(CONFIGS["score"].run(Reflecting(), Scores(broken), pool, TASKS, 0))
    assert pool.episodes == {}
