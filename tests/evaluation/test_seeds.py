"""Seeds within a task, places of scores, and the oracle gap: rows against plain loops."""

from __future__ import annotations

import dataclasses
import pathlib
import random
import statistics

import pytest
from report_cases import episodes

from agentrm_jax.core.errors import UserError
from agentrm_jax.evaluation.episodes import (
    Episode,
    episode_from_json,
    episode_to_json,
    read_episodes,
    row_variant,
    write_episodes,
)
from agentrm_jax.evaluation.results import comparisons, merge_runs, oracle_gaps, result_rows
from agentrm_jax.evaluation.summary import report_parts
from agentrm_jax.evaluation.tables import console_table, method_table

SEEDS = ((0, 0), (0, 1), (5, 0))
"""(training seed, sampling seed)"""


def run_of(seed: int, sampling_seed: int) -> list[Episode]:
    generator = random.Random(f"{seed} {sampling_seed}")
    return [
        dataclasses.replace(
            each,
            seed=seed,
            sampling_seed=sampling_seed,
            outcome=float(solved := generator.random() < 0.6),
            success=float(solved),
            policy_tokens=generator.randrange(100),
        )
        for each in episodes(4)
        if each.method != "greedy" or sampling_seed == 0
    ]


RUNS = [run_of(*each) for each in SEEDS]


def of(row, each: Episode) -> bool:
    return (
        (row["method"], row["reward_model"]) == (each.method, each.reward_model)
        and row["split"] in ("all", each.split)
        and row["task"] in ("all", each.task.environment, each.task_name)
    )


def mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)


def test_seeds_are_averaged_within_a_task() -> None:
    made = [each for run in RUNS for each in run]
    rows = result_rows(made)
    assert len(rows) == len(result_rows(RUNS[0]))  # no row for each seed
    for row in rows:
        own = [each for each in made if of(row, each)]
        tasks = {each.task.task_id for each in own}
        outcomes = [mean(e.outcome for e in own if e.task.task_id == t) for t in tasks]
        tokens = [mean(e.policy_tokens for e in own if e.task.task_id == t) for t in tasks]
        assert row["n_tasks"] == len(tasks)
        assert row["score_mean"] == pytest.approx(mean(outcomes))
        assert row["policy_tokens"] == round(sum(tokens))
        assert row["n_seeds"] == (2 if row["method"] == "greedy" else 3)
        assert (row["seed"], row["seeds"]) == (0, [0, 5])
        assert row["sampling_seeds"] == ([0] if row["method"] == "greedy" else [0, 1])
        of_seeds = [
            mean(e.outcome for e in own if (e.seed, e.sampling_seed) == each)
            for each in SEEDS
            if row["method"] != "greedy" or each[1] == 0
        ]
        assert row["seed_deviation"] == pytest.approx(statistics.stdev(of_seeds))


def test_comparisons_pair_tasks_and_training_seeds() -> None:
    runs = [run_of(*each) for each in SEEDS]
    runs[2] = [e for e in runs[2] if e.method != "greedy" or e.task.task_id[-1] != "0"]
    made = [each for run in runs for each in run]
    checked = 0
    for row in comparisons(made):
        if row["split"] != "all" or row["b"] != "greedy":
            continue
        differences = []
        for task in {each.task.task_id for each in made}:
            by_seed = []
            for seed in (0, 5):
                own = [e for e in made if (e.task.task_id, e.seed) == (task, seed)]
                labels = (row["a"], row["a_reward_model"])
                a = [e.outcome for e in own if (e.method, e.reward_model) == labels]
                b = [e.outcome for e in own if e.method == "greedy"]
                if a and b:
                    by_seed.append(mean(a) - mean(b))
            differences.append(mean(by_seed))
        assert row["difference"] == pytest.approx(mean(differences))
        assert row["n_tasks"] == len(differences)
        assert row["test"] == "sign_flip"  # means over seeds are not 0 or 1
        checked += 1
    assert checked == 2


def test_one_seed_is_what_it_was() -> None:
    """Means over one seed change nothing, and its outcomes of 0 and 1 get the exact test."""
    [row] = [
        r for r in result_rows(RUNS[0])
        if (r["method"], r["task"], r["split"]) == ("best_of_n", "all", "all")
    ]  # fmt: skip
    own = [each for each in RUNS[0] if each.method == "best_of_n"]
    assert row["score_mean"] == mean(each.outcome for each in own)
    assert row["policy_tokens"] == sum(each.policy_tokens for each in own)
    assert row["n_seeds"] == 1
    assert "seed_deviation" not in row
    assert {c["test"] for c in comparisons(RUNS[0])} == {"mcnemar"}
    for c in comparisons(RUNS[0]):
        assert c["success_p_value"] == c["p_value"]
        assert c["success_difference"] == pytest.approx(c["difference"])


def test_more_than_five_comparisons_are_corrected() -> None:
    found = [c for c in comparisons(RUNS[0]) if c["split"] == "all"]
    assert len(found) == 6
    assert all(c["p_holm"] >= c["p_value"] for c in found)
    assert min(c["p_holm"] for c in found) == pytest.approx(
        min(1.0, 6 * min(c["p_value"] for c in found))
    )
    few = [e for e in RUNS[0] if e.method != "beam"]
    assert all("p_holm" not in c for c in comparisons(few))
    assert "More than 5 comparisons" in report_parts(RUNS[0])["notes"][-1]


def test_runs_with_equal_seeds_are_not_merged() -> None:
    assert merge_runs({"a": RUNS[0], "b": RUNS[2]}) == [*RUNS[0], *RUNS[2]]
    with pytest.raises(UserError, match=r"b and a must differ in `seed` to be averaged .*seed 0"):
        merge_runs({"a": RUNS[0], "b": RUNS[0]})


def test_the_share_of_the_gap_that_is_closed() -> None:
    made = episodes(10)
    [gap] = [g for g in oracle_gaps(made) if (g["task"], g["split"]) == ("all", "held_in")]
    outcome = {
        method: mean(e.outcome for e in made if e.method == method and not e.task.held_out)
        for method in ("random_of_n", "oracle_of_n", "best_of_n")
    }
    assert (gap["random"], gap["oracle"]) == (
        pytest.approx(outcome["random_of_n"]),
        pytest.approx(outcome["oracle_of_n"]),
    )
    assert gap["gap"] == pytest.approx(gap["oracle"] - gap["random"])
    assert gap["ci95"][0] <= gap["gap"] <= gap["ci95"][1]
    assert (gap["n"], gap["n_tasks"]) == (5, 20)
    [row] = [
        r for r in result_rows(made)
        if (r["method"], r["task"], r["split"]) == ("best_of_n", "all", "held_in")
    ]  # fmt: skip
    assert row["gap_closed"] == pytest.approx((outcome["best_of_n"] - gap["random"]) / gap["gap"])


def test_the_interval_of_the_closed_gap_resamples_tasks_with_averaged_seeds() -> None:
    """More sampling seeds of a task are no more tasks: equal ones leave the interval as it is."""
    made = [
        dataclasses.replace(e, outcome=1.0 if e.method == "oracle_of_n" else e.outcome / 2)
        for e in episodes(10)
    ]
    rows, seeds = (
        {row_variant(r): r for r in result_rows(each) if (r["task"], r["split"]) == ("all", "all")}
        for each in (made, made + [dataclasses.replace(e, sampling_seed=1) for e in made])
    )
    for variant, row in rows.items():
        low, high = row["gap_closed_ci95"]
        exact = variant.method in ("oracle_of_n", "random_of_n")
        assert (low == high) if exact else (low < row["gap_closed"] < high)
        assert seeds[variant]["n_seeds"] == 2
        assert seeds[variant]["gap_closed_ci95"] == pytest.approx([low, high])
    entries = method_table(list(rows.values()))
    assert all(entry["gap_closed_ci95"] for entry in entries)
    text = "".join(
        cell
        for column in console_table(list(rows.values())).columns
        for cell in map(str, column.cells)
    )
    low, high = next(e["gap_closed_ci95"] for e in entries if e["label"] == "best-of-5, explicit")
    assert f"% [{100 * low:.0f}, {100 * high:.0f}]" in text


def test_the_gap_is_that_of_the_rows_own_tasks() -> None:
    """A search on some of the tasks is not measured by the gap of all."""
    made = [
        dataclasses.replace(e, outcome=value, success=value)
        for e in episodes(2)
        for value in [_gap_value(e)]
        if e.method != "beam" or e.task.task_id[-1] == "0"
    ]
    rows = {
        (r["method"], r["reward_model"]): r
        for r in result_rows(made)
        if (r["task"], r["split"]) == ("all", "all")
    }
    assert rows["beam", "explicit"]["gap_closed"] == pytest.approx(0.5)
    assert rows["oracle_of_n", None]["gap_closed"] == 1.0
    assert rows["oracle_of_n", None]["gap_closed_ci95"] == [1.0, 1.0]
    same = [dataclasses.replace(e, outcome=1.0) for e in made]
    assert {r["gap_closed"] for r in result_rows(same)} == {None}
    alone = [e for e in made if e.method == "greedy"]
    assert all("gap_closed" not in r for r in result_rows(alone))


def _gap_value(episode: Episode) -> float:
    if episode.method == "beam":
        return 0.5
    if episode.task.task_id[-1] == "0":
        return {"random_of_n": 0.25, "oracle_of_n": 0.75}.get(episode.method, 0.0)
    return {"random_of_n": 0.0, "oracle_of_n": 1.0}.get(episode.method, 0.0)


def test_places_and_seeds_are_stored_only_if_they_differ(tmp_path: pathlib.Path) -> None:
    plain = episodes(1)[0]
    assert {"score_at", "sampling_seed", "options"} & set(episode_to_json(plain)) == set()
    blind = dataclasses.replace(plain, reward_model="explicit", score_at="action", sampling_seed=2)
    record = episode_to_json(blind)
    assert (record["score_at"], record["sampling_seed"]) == ("action", 2)
    assert episode_from_json(record) == blind
    path = tmp_path / "episodes.jsonl"
    over = dataclasses.replace(blind, score_at="mean")
    write_episodes(path, [blind, over])
    assert [e.variant.label for e in read_episodes(path)] == [
        "greedy, explicit, blind",
        "greedy, explicit, mean over steps",
    ]
    [first, *_] = result_rows([blind])
    assert first["score_at"] == "action"
    assert all("score_at" not in row for row in result_rows([plain]))


def blind_episodes() -> list[Episode]:
    made = episodes(6)
    scored = [e for e in made if e.reward_model == "explicit"]
    return [*made, *(dataclasses.replace(e, score_at="action", outcome=0.0) for e in scored)]


def test_a_search_is_compared_at_its_own_place() -> None:
    pairs = {
        (c["a_label"], c["b_label"])
        for c in comparisons(blind_episodes())
        if (c["a"], c["b"]) == ("beam", "best_of_n")
    }
    assert pairs == {
        ("beam 5x5, explicit", "best-of-5, explicit"),
        ("beam 5x5, explicit, blind", "best-of-5, explicit, blind"),
    }
    [row] = [
        c for c in comparisons(blind_episodes())
        if (c["a_label"], c["b"], c["split"]) == ("beam 5x5, explicit, blind", "greedy", "all")
    ]  # fmt: skip
    assert row["a_score_at"] == "action"
    assert "b_score_at" not in row


def test_blind_rows_come_first_if_the_end_is_given_away() -> None:
    made = blind_episodes()
    row = {
        "source": "trees", "n": 400, "n_tasks": 80, "success_rate": 0.4, "accuracy": 0.97,
        "majority": 0.6, "auc": 0.99, "gives_away": True,
    }  # fmt: skip
    told, untold = (
        report_parts(made, probe={"babyai": {**row, "gives_away": telling}})
        for telling in (True, False)
    )
    places = [r.get("score_at", "observation") for r in told["results"] if r["reward_model"]]
    assert places[0] == "action"
    assert places == sorted(places)  # action before observation
    assert untold["results"] == result_rows(made)
    assert told["notes"][0].startswith("Oracle gap: the best of 5 trajectories has a mean return")
    assert told["notes"][1] == (
        "In babyai the words of the last observation give the outcome away (they order a success "
        "above a failure in 99% of pairs, 400 training trajectories): rows with blind scores come "
        "first."
    )
    assert len(untold["notes"]) == len(told["notes"]) - 1
    [note] = [n for n in report_parts(episodes(2), probe={"babyai": row})["notes"] if "babyai" in n]
    assert "only blind scores (evaluate.score_at: [observation, action])" in note


@pytest.mark.parametrize(
    ("declared", "measured", "auc", "telling", "warns"),
    [
        (None, True, 0.99, True, False),
        (None, False, 0.5, False, False),
        (True, True, 0.99, True, False),
        (True, False, None, True, False),  # too few trajectories for a probe
        (True, False, 0.6, True, True),
        (False, True, 0.95, True, True),
        (False, False, None, False, False),
    ],
)
def test_declared_ends_stand_next_to_the_probe(declared, measured, auc, telling, warns) -> None:
    row = {
        "source": "trees", "n": 400, "n_tasks": 80, "success_rate": 0.4, "accuracy": None,
        "majority": 0.6, "auc": auc, "gives_away": measured, "declared": declared,
    }  # fmt: skip
    parts = report_parts(blind_episodes(), probe={"babyai": row})
    places = [r.get("score_at", "observation") for r in parts["results"] if r["reward_model"]]
    assert (places[0] == "action") == telling
    notes = [note for note in parts["notes"] if "babyai" in note]
    assert any("Warning: babyai declares" in note for note in notes) == warns
    assert any("give the outcome away (" in note for note in notes) == telling
