"""Stored rollouts against interruptions; episodes against sums by hand."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.records import Step, Task, Trajectory, Transition
from agentrm_jax.evaluation import harness
from agentrm_jax.evaluation.config import EvaluateConfig, MethodRun, method_runs
from agentrm_jax.evaluation.episodes import (
    episode_from_json,
    episode_to_json,
    read_episodes,
    write_episodes,
)
from agentrm_jax.evaluation.harness import answers, by_task, score_rows, scores_by_n
from agentrm_jax.evaluation.results import result_rows
from agentrm_jax.evaluation.rollout_files import stored_rollouts
from agentrm_jax.runtime.json_files import write_json_atomic
from agentrm_jax.search.choose import BASELINES
from agentrm_jax.search.methods import METHODS, Beam, BestOfN, register_method
from agentrm_jax.search.rollouts import Rollout


def task(number: int) -> Task:
    return Task(
        environment="toy", task_id=f"toy/{number}", kind="easy", split="test",
        problem=f"{number:016x}", max_steps=9, spec={"number": number},
    )  # fmt: skip


def rollout(
    number: int, sample: int = 0, *, actions: str = "ab", outcome: float = 0.0,
    log_prob: float = -1.0, error: str | None = None,
) -> Rollout:  # fmt: skip
    """One step for each letter; a capital is an action that was not understood."""
    steps = tuple(
        Step(
            reply=f"Action: {a}", action=a, token_ids=(7, 8), log_probs=(log_prob, -0.25),
            transition=Transition(
                observation=f"{number} {sample}", reward=outcome if i == len(actions) - 1 else 0.0,
                done=i == len(actions) - 1 and error is None, success=outcome == 1.0,
                valid=a.islower(),
            ),
        )
        for i, a in enumerate(actions)
    )  # fmt: skip
    return Rollout(
        trajectory=Trajectory(task=task(number), first_observation=f"go {number}", steps=steps),
        sample=sample, policy_tokens=2 * len(steps) + sample, truncated_steps=sample,
        env_steps=len(steps), wall_seconds=0.5, error=error,
    )  # fmt: skip


def chosen_episodes(rollouts, scorers, *, seed):
    """Episodes and scores of best-of-n and its baselines."""
    run = MethodRun(
        name="best_of_n", method_name="best_of_n", method=BestOfN(), reward_models=tuple(scorers)
    )
    found = answers(run, rollouts, scorers, seed=seed)
    return found.episodes, found.scores.get("observation", {})


class Undecided:
    """Scores the first task only."""

    def score(self, groups):
        return [[float(i == 1) if g == 0 else float("nan") for i in range(2)]
                for g in range(len(groups))]  # fmt: skip

    def cost(self, group):
        return 5


def test_a_group_without_a_decision_is_an_error():
    ran = [rollout(n, s, outcome=1.0) for n in range(2) for s in range(2)]
    episodes, scores = chosen_episodes(ran, {"judge": Undecided()}, seed=0)
    decided, undecided = (e for e in episodes if e.reward_model == "judge")
    assert (decided.outcome, decided.error) == (1.0, None)
    assert (undecided.outcome, undecided.success) == (0.0, 0.0)
    assert undecided.error == "the reward model did not decide"
    assert undecided.reward_tokens == 5
    assert scores["judge"]["toy/0"] == [0.0, 1.0]


EPISODES = [(task(n), sample) for n in range(3) for sample in range(2)]


class Interrupted(Exception):
    pass


class Runner:
    """Runs episodes in an order of its own; may stop after some."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after, self.ran = stop_after, []

    def __call__(self, episodes):
        for i, (task, sample) in enumerate(reversed(episodes)):
            if i == self.stop_after:
                raise Interrupted
            self.ran.append((task.task_id, sample))
            yield rollout(task.spec["number"], sample, error="broke" if sample else None)


@pytest.mark.parametrize("stop_after", range(7))
@pytest.mark.parametrize("torn", [False, True])
def test_stored_rollouts_go_on_where_they_were(tmp_path, stop_after, torn):
    whole = stored_rollouts(tmp_path / "whole.jsonl", EPISODES, Runner())
    assert [(r.trajectory.task, r.sample) for r in whole] == EPISODES  # in the order asked for
    path, first, second = tmp_path / "parts.jsonl", Runner(stop_after), Runner()
    if stop_after < len(EPISODES):
        with pytest.raises(Interrupted):
            stored_rollouts(path, EPISODES, first)
    else:
        stored_rollouts(path, EPISODES, first)
    lost = []
    if torn and stop_after:
        path.write_bytes(path.read_bytes()[:-9])  # the last record was being written
        lost = [first.ran.pop()]
    seen = []
    assert stored_rollouts(path, EPISODES, second, lambda: seen.append(1)) == whole
    assert set(second.ran) & set(first.ran) == set()  # nothing is run twice
    assert set(lost) <= set(second.ran)
    assert len(second.ran) + len(first.ran) == len(seen) == len(EPISODES)
    assert len(path.read_text().splitlines()) == len(EPISODES)


def test_a_damaged_record_names_file_and_line(tmp_path):
    path = tmp_path / "rollouts.jsonl"
    stored_rollouts(path, EPISODES, Runner())
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], lines[1].replace("go", "no"), *lines[2:]]))
    with pytest.raises(UserError, match=r"rollouts\.jsonl, line 2"):
        stored_rollouts(path, EPISODES, Runner())


def test_single_episodes_carry_costs_and_labels():
    found = [
        rollout(0, actions="abC", outcome=1.0),
        rollout(1, actions="A", outcome=0.25),
        rollout(2, actions="ab", outcome=0.75, error="broke"),
    ]
    run = MethodRun(
        name="beam", method_name="beam", method=Beam(beam_width=3), reward_models=("explicit",)
    )
    episodes = answers(run, found, {}, seed=5).episodes
    assert [(e.outcome, e.success, e.error) for e in episodes] == [
        (1.0, 1.0, None),
        (0.25, 0.0, None),
        (0.0, 0.0, "broke"),  # an error is a failure, whatever was earned before
    ]
    assert [(e.steps, e.env_steps, e.policy_tokens) for e in episodes] == [
        (3, 3, 6),
        (1, 1, 2),
        (2, 2, 4),
    ]
    assert [e.invalid_actions for e in episodes] == [1, 1, 0]
    assert {(e.method, e.reward_model, e.n, e.beam_width, e.seed) for e in episodes} == {
        ("beam", "explicit", 1, 3, 5)
    }
    assert [e.task for e in episodes] == [task(0), task(1), task(2)]


class LastLetter:
    """Scores by the last action: a judge of no use, but a definite one."""

    def score(self, groups):
        return [[ord(t.steps[-1].action) for t in group] for group in groups]

    def cost(self, group):
        return 10 * len(group)


GROUP = [
    rollout(0, 0, actions="ab", outcome=0.0, log_prob=-2.0),
    rollout(0, 1, actions="abc", outcome=1.0, log_prob=-3.0),
    rollout(0, 2, actions="X", outcome=0.5, log_prob=-2.5),
    rollout(0, 3, actions="az", outcome=1.0, log_prob=-0.1, error="broke"),
]
OTHER = [rollout(1, sample, actions="a" * (sample + 1), outcome=0.25) for sample in range(4)]


def test_every_rule_chooses_among_the_same_trajectories():
    rollouts = [r for pair in zip(OTHER, GROUP, strict=True) for r in pair]  # in any order
    episodes, scores = chosen_episodes(rollouts, {"letters": LastLetter()}, seed=2)
    found = {(e.method, e.task.task_id): e for e in episodes}
    assert len(found) == len(episodes) == 2 * (len(BASELINES) + 1)
    outcomes = {method: e.outcome for (method, task_id), e in found.items() if task_id == "toy/0"}
    assert outcomes == {
        "random_of_n": pytest.approx((0.0 + 1.0 + 0.5 + 0.0) / 4),
        "majority_of_n": 0.0,  # "ab" is most like the others
        "shortest_of_n": 0.5,
        "likeliest_of_n": 0.5,  # of those that did not break
        "fewest_invalid_of_n": 0.0,  # "X" was not understood
        "oracle_of_n": 1.0,
        "best_of_n": 1.0,  # "z" is the highest, but it broke; "c" is next
    }
    assert scores == {
        "letters": {"toy/1": [ord("a")] * 4, "toy/0": [ord(c) for c in "bcXz"]},
    }
    for (method, task_id), episode in found.items():
        group = GROUP if task_id == "toy/0" else OTHER
        # Whatever is chosen, all four had to be played.
        assert episode.n == 4
        assert episode.policy_tokens == sum(r.policy_tokens for r in group)
        assert episode.env_steps == sum(r.env_steps for r in group)
        assert episode.truncated_steps == sum(r.truncated_steps for r in group)
        assert episode.wall_seconds == pytest.approx(2.0)
        assert episode.reward_model == ("letters" if method == "best_of_n" else None)
        assert episode.reward_tokens == (40 if method == "best_of_n" else 0)
        assert episode.seed == 2


def test_scores_by_n_begin_at_random_and_end_at_best_of_n():
    episodes, scores = chosen_episodes([*GROUP, *OTHER], {"letters": LastLetter()}, seed=0)
    rows = scores_by_n([*GROUP, *OTHER], scores)
    assert {(r["task"], r["reward_model"]) for r in rows} == {
        (task, model) for task in ("all", "toy") for model in ("letters", "oracle")
    }
    means = {(r["reward_model"], r["n"]): r["score_mean"] for r in rows if r["task"] == "all"}
    outcome = {
        method: np.mean([e.outcome for e in episodes if e.method == method])
        for method in ("random_of_n", "best_of_n", "oracle_of_n")
    }
    assert means["letters", 1] == means["oracle", 1] == pytest.approx(outcome["random_of_n"])
    assert means["letters", 4] == pytest.approx(outcome["best_of_n"])
    assert means["oracle", 4] == pytest.approx(outcome["oracle_of_n"])
    assert [means["oracle", n] for n in range(1, 5)] == sorted(
        means["oracle", n] for n in range(1, 5)
    )
    [row] = [r for r in rows if (r["task"], r["reward_model"], r["n"]) == ("toy", "letters", 2)]
    assert row["n_tasks"] == 2
    assert row["score_ci95"][0] <= row["score_mean"] <= row["score_ci95"][1]


def test_an_undecided_task_is_worth_nothing_at_any_n():
    ran = [rollout(n, s, outcome=1.0) for n in range(2) for s in range(2)]
    _, scores = chosen_episodes(ran, {"odd": Undecided()}, seed=0)
    rows = scores_by_n(ran, scores)
    assert [r["score_mean"] for r in rows if r["reward_model"] == "odd"] == [0.5] * 4


def test_an_error_counts_where_it_is_chosen():
    episodes, _ = chosen_episodes(GROUP, {"letters": LastLetter()}, seed=0)
    errors = {e.method: e.error for e in episodes}
    assert errors == {
        "random_of_n": "broke",  # it may be drawn
        "majority_of_n": None,
        "shortest_of_n": None,
        "likeliest_of_n": None,
        "fewest_invalid_of_n": None,
        "oracle_of_n": None,
        "best_of_n": None,
    }
    success = {e.method: e.success for e in episodes}
    assert success["random_of_n"] == pytest.approx(1 / 4)
    assert success["oracle_of_n"] == 1.0


def test_several_scorers_see_the_same_groups():
    class Backwards:
        def score(self, groups):
            return [[-float(i) for i in range(len(group))] for group in groups]

        def cost(self, group):
            return 0

    episodes, scores = chosen_episodes(
        [*GROUP, *OTHER], {"letters": LastLetter(), "first": Backwards()}, seed=0
    )
    best = {(e.reward_model, e.task.task_id): e.steps for e in episodes if e.method == "best_of_n"}
    assert best == {
        ("letters", "toy/0"): 3, ("letters", "toy/1"): 1,
        ("first", "toy/0"): 2, ("first", "toy/1"): 1,
    }  # fmt: skip
    assert scores["first"]["toy/0"] == [0.0, -1.0, -2.0, -3.0]


def test_rollouts_survive_the_file(tmp_path):
    """Token ids, log-probabilities and all else come back as they were."""
    path = tmp_path / "rollouts.jsonl"
    stored_rollouts(path, [(task(0), 1)], lambda missing: iter([GROUP[1]]))
    [back] = stored_rollouts(path, [(task(0), 1)], lambda missing: pytest.fail("ran again"))
    assert back == GROUP[1]
    assert json.loads(path.read_text())["record"]["policy_tokens"] == GROUP[1].policy_tokens


def test_by_task_keeps_the_order():
    groups = by_task([GROUP[0], OTHER[0], GROUP[1]])
    assert list(groups) == ["toy/0", "toy/1"]
    assert groups["toy/0"] == GROUP[:2]


def test_an_answer_too_many_or_too_few_is_refused(tmp_path):
    path = tmp_path / "greedy" / "rollouts.jsonl"
    path.parent.mkdir()
    with pytest.raises(UserError, match=r"greedy: task toy/2, sample 1: the method gave no answer"):
        stored_rollouts(path, EPISODES, lambda missing: list(Runner()(missing))[1:])
    with pytest.raises(UserError, match="toy/7, sample 0: the method answered it without being"):
        stored_rollouts(path, EPISODES, lambda missing: iter([rollout(7)]))
    whole = stored_rollouts(path, EPISODES, Runner())
    twice = [*EPISODES, (task(3), 0)]
    with pytest.raises(UserError, match="toy/3, sample 0: the method answered it a second time"):
        stored_rollouts(path, twice, lambda missing: iter([rollout(3), rollout(3)]))
    assert stored_rollouts(path, EPISODES, lambda missing: pytest.fail("ran again")) == whole


class ReadsTheEnd:
    """Scores the reward where it is shown; otherwise all alike."""

    def score(self, groups):
        return [
            [t.outcome if not t.steps or t.steps[-1].answered else 0.0 for t in group]
            for group in groups
        ]

    def cost(self, group):
        return sum(1 + (bool(t.steps) and t.steps[-1].answered) for t in group)


def test_the_same_trajectories_are_scored_at_every_place():
    run = MethodRun(
        name="best_of_n", method_name="best_of_n", method=BestOfN(), reward_models=("end",),
        score_at=("observation", "action", "mean"), sampling_seed=3,
    )  # fmt: skip
    found = answers(run, [*GROUP[:3], *OTHER[:3]], {"end": ReadsTheEnd()}, seed=2)
    assert len(found.episodes) == 2 * (len(BASELINES) + 3)
    assert {e.sampling_seed for e in found.episodes} == {3}
    chosen = {(e.score_at, e.task.task_id): e for e in found.episodes if e.reward_model}
    assert chosen["observation", "toy/0"].outcome == 1.0
    assert chosen["action", "toy/0"].outcome == 0.0  # all alike: the first one
    assert chosen["mean", "toy/0"].outcome == 0.5  # 1 / 3 for three steps, 0.5 for one
    assert chosen["observation", "toy/0"].reward_tokens == 6
    assert chosen["action", "toy/0"].reward_tokens == 3
    assert {e.score_at for e in found.episodes if not e.reward_model} == {"observation"}
    assert list(found.scores) == ["observation", "action", "mean"]
    assert found.scores["action"]["end"]["toy/0"] == [0.0] * 3
    assert found.scores["mean"]["end"]["toy/0"] == pytest.approx([0.0, 1 / 3, 0.5])
    blind = scores_by_n([*GROUP[:3], *OTHER[:3]], found.scores["action"], score_at="action")
    assert {(r["reward_model"], r["score_at"]) for r in blind} == {("end", "action")}
    [first, *_] = score_rows(GROUP[:3], {"end": {"toy/0": [0.5]}}, score_at="mean", sampling_seed=3)
    assert (first["score_at"], first["sampling_seed"]) == ("mean", 3)


def test_searches_run_once_for_each_place_and_seed(lookahead):
    config = EvaluateConfig(
        methods=("greedy", "best_of_n", "lookahead", "beam"), random_beam=True,
        likelihood_beam=True, fewest_invalid_beam=True, score_at=("observation", "action"),
        sampling_seeds=(0, 2),
    )  # fmt: skip
    runs = {run.name: run for run in method_runs(config, ("explicit", "judge"))}
    assert list(runs) == [
        "greedy", "best_of_n", "lookahead", "lookahead@action", "beam", "beam@action",
        "beam_random", "beam_likelihood", "beam_fewest_invalid", "best_of_n+seed2",
        "lookahead+seed2", "lookahead@action+seed2", "beam+seed2", "beam@action+seed2",
        "beam_random+seed2", "beam_likelihood+seed2", "beam_fewest_invalid+seed2",
    ]  # fmt: skip
    assert runs["best_of_n"].score_at == ("observation", "action")
    assert runs["beam@action+seed2"].score_at == ("action",)
    assert runs["beam_random"].score_at == runs["greedy"].score_at == ("observation",)
    assert {run.family for run in runs.values()} == {
        "greedy", "best_of_n", "lookahead", "beam", "beam_random", "beam_likelihood",
        "beam_fewest_invalid",
    }  # fmt: skip
    assert runs["beam_likelihood"].reward_models == ("likelihood",)
    assert runs["beam"].control is None
    assert runs["beam"].seed(7) == 7
    seeds = {run.seed(7) for run in runs.values() if run.sampling_seed == 2}
    assert len(seeds) == 1
    assert 7 not in seeds
    scorer = ReadsTheEnd()
    assert runs["beam"].placed(scorer) is scorer
    [[score]] = runs["beam@action"].placed(scorer).score([[GROUP[1].trajectory]])
    assert score == 0.0


def test_a_beam_that_scores_at_the_action_runs_once_and_says_so():
    config = EvaluateConfig(
        methods=("beam",), beam=Beam(score_at="action"), score_at=("observation", "mean")
    )
    [run] = method_runs(config, ("explicit",))
    assert (run.name, run.score_at) == ("beam", ("action",))
    scorer = ReadsTheEnd()
    assert run.placed(scorer) is scorer  # it scores inside of the decoding step
    [episode] = answers(run, [rollout(0)], {}, seed=0).episodes
    assert episode.variant.label == "beam 5x5, explicit, blind"


def test_scores_stand_next_to_outcomes():
    _, scores = chosen_episodes([*GROUP, *OTHER], {"letters": LastLetter()}, seed=0)
    scores["letters"]["toy/1"][2] = float("nan")  # not decided: no row
    rows = score_rows([*GROUP, *OTHER], scores)
    assert [(r["task_id"], r["score"], r["outcome"]) for r in rows] == [
        ("toy/0", ord("b"), 0.0), ("toy/0", ord("c"), 1.0), ("toy/0", ord("X"), 0.5),
        ("toy/0", ord("z"), 0.0),  # its environment failed
        ("toy/1", ord("a"), 0.25), ("toy/1", ord("a"), 0.25), ("toy/1", ord("a"), 0.25),
    ]  # fmt: skip


@pytest.fixture
def lookahead(monkeypatch):
    """A method that is registered from outside, with keys of its own."""
    monkeypatch.setattr(METHODS, "_registered", {})

    @register_method("lookahead")
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Lookahead:
        depth: int = 2

        def run(self, policy, scorer, envs, tasks, seed):
            for each in tasks:
                yield rollout(each.spec["number"], actions="a" * self.depth, outcome=1.0)

    return Lookahead


def test_a_registered_method_has_its_own_rows(tmp_path, lookahead):
    methods = ("greedy", "lookahead", "beam")
    config = EvaluateConfig(
        methods=methods, options={"lookahead": lookahead(depth=3)}, random_beam=True
    )
    runs = {run.name: run for run in method_runs(config, ("explicit", "judge"))}
    assert list(runs) == ["greedy", "lookahead", "beam", "beam_random"]
    assert {name: run.reward_models for name, run in runs.items()} == {
        "greedy": (), "lookahead": ("explicit",), "beam": ("explicit",), "beam_random": ("random",)
    }  # fmt: skip
    assert {name: run.temperature for name, run in runs.items() if name != "greedy"} == {
        "lookahead": None, "beam": None, "beam_random": None
    }  # fmt: skip
    assert runs["greedy"].temperature == 0.0
    run = runs["lookahead"]
    wanted = run.episodes([task(0), task(1)])
    path = tmp_path / "lookahead" / "rollouts.jsonl"
    path.parent.mkdir()
    found = stored_rollouts(
        path, wanted, lambda missing: run.rollouts(None, None, None, missing, 0)
    )
    episodes = answers(run, found, {}, seed=4).episodes
    assert {e.variant.label for e in episodes} == {"lookahead (depth=3), explicit"}
    assert [e.steps for e in episodes] == [3, 3]
    assert [episode_from_json(episode_to_json(e)) for e in episodes] == episodes
    rows = result_rows(episodes)
    assert {(row["method"], row["options"]) for row in rows} == {("lookahead", "depth=3")}
    write_json_atomic(path.with_name("results.json"), rows)
    write_episodes(path.with_name("episodes.jsonl"), episodes)
    assert read_episodes(path.with_name("episodes.jsonl")) == episodes


def test_rows_of_built_in_methods_have_no_options():
    runs = method_runs(EvaluateConfig(beam=Beam(score_at="action")), ("explicit",))
    [run] = [run for run in runs if run.name == "beam"]
    [episode] = answers(run, [rollout(0)], {}, seed=0).episodes
    assert "options" not in episode_to_json(episode)
    assert all("options" not in row for row in result_rows([episode]))


def test_best_of_n_runs_by_itself():
    """Without an evaluation around it: the same choice as among stored rollouts."""

    class Sampled(BestOfN):
        def sample(self, policy, envs, episodes):
            assert len(episodes) == 8
            return iter([*GROUP, *OTHER])

    found = Sampled(n=4).run(None, LastLetter(), None, [task(0), task(1)], 0)
    assert [(r.trajectory.task.task_id, r.sample) for r in found] == [("toy/0", 1), ("toy/1", 0)]


def test_a_name_of_a_baseline_is_no_name_of_a_method():
    with pytest.raises(UserError, match="'oracle_of_n' is the name of a baseline"):
        register_method("oracle_of_n")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"options": {"beam": Beam()}}, r"options.beam must be left out"),
        ({"methods": ("greedy", "magic")}, "methods must be one of .*'magic'"),
        ({"split": "train"}, "split must be one of test, paper"),
        ({"num_tasks": 0}, "num_tasks must be at least 1"),
        ({"n": 0}, r"n must be at least 1"),
        ({"score_at": ("end",)}, "score_at must be one of observation, action, mean.*'end'"),
        ({"score_at": ()}, "score_at must name at least one place"),
        ({"score_at": ("mean", "mean")}, "score_at must name at least one place, each once"),
        ({"sampling_seeds": ()}, "sampling_seeds must be at least one number from 0"),
        ({"sampling_seeds": (0, 1, 0)}, "sampling_seeds must be .*each once"),
        ({"sampling_seeds": (-1,)}, "sampling_seeds must be .*from 0"),
    ],
)
def test_config_names_what_is_wrong(wrong, message):
    with pytest.raises(UserError, match=message):
        EvaluateConfig(**wrong)


def test_weights_of_the_rules_are_distributions():
    for rule in BASELINES.values():
        weights = rule([r.trajectory for r in GROUP])
        assert weights.shape == (4,)
        assert np.all(weights >= 0)
        assert weights.sum() == pytest.approx(1.0)


@pytest.mark.parametrize("together", [1, 5, 100])
def test_scoring_is_counted_and_calls_of_any_size_give_the_same_answers(monkeypatch, together):
    """Each reward model scores every trajectory once; the groups of a task stay whole."""
    found = [rollout(number, sample) for number in range(4) for sample in range(3)]
    calls, counted = [], []

    class Counts:
        def score(self, groups):
            calls.append([len(group) for group in groups])
            return [[len(t.first_observation) + t.outcome for t in group] for group in groups]

        def cost(self, group):
            return 0

    run = MethodRun(
        name="best_of_n", method_name="best_of_n", method=BestOfN(n=3), reward_models=("a", "b")
    )
    scorers = {"a": Counts(), "b": Counts()}
    expected = answers(run, found, scorers, seed=0)
    calls.clear()
    monkeypatch.setattr(harness, "_SCORED_TOGETHER", together)
    assert answers(run, found, scorers, seed=0, on_scored=counted.append) == expected
    sizes = {1: [[3]] * 4, 5: [[3, 3]] * 2, 100: [[3] * 4]}[together]
    assert calls == sizes * 2
    assert counted == [sum(size) for size in sizes] * 2


def test_baselines_that_are_not_available_are_left_out():
    run = MethodRun(
        name="best_of_n", method_name="best_of_n", method=BestOfN(n=4), reward_models=()
    )
    silent = [
        dataclasses.replace(
            each,
            trajectory=dataclasses.replace(
                each.trajectory,
                steps=tuple(
                    dataclasses.replace(step, log_probs=()) for step in each.trajectory.steps
                ),
            ),
        )
        for each in OTHER
    ]
    found = answers(run, [*GROUP, *silent], {}, seed=0)
    reason = "not available: the policy gives no log-probabilities of its replies"
    assert found.not_available == {"likeliest_of_n": reason, "fewest_invalid_of_n": reason}
    assert {e.method for e in found.episodes} == set(BASELINES) - set(found.not_available)
