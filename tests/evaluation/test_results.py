"""Episodes on disk, the rows of results.json and paired comparisons."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
import pytest
from report_cases import KINDS, METHODS, episodes

from agentrm_jax.core.errors import UserError
from agentrm_jax.evaluation.episodes import read_episodes, row_variant, write_episodes
from agentrm_jax.evaluation.results import comparisons, default_pairs, level, result_rows
from agentrm_jax.runtime.json_files import write_json_atomic
from agentrm_jax.runtime.json_lines import JsonLines

ROW_KEYS = {
    *("task", "split", "method", "reward_model", "n", "beam_width", "expansion_width", "seed"),
    *("n_tasks", "score_mean", "score_ci95", "success_rate", "progress_rate", "policy_tokens"),
    *("reward_tokens", "env_steps", "wall_seconds", "errors"),
    *("replies_without_action", "failed_candidates"),
    *("success_ci95", "n_seeds", "seeds", "sampling_seeds"),
    *("gap_closed", "gap_closed_ci95"),
}


def test_episodes_round_trip(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "episodes.jsonl"
    made = episodes(2)
    made[0] = dataclasses.replace(made[0], error="timeout")
    write_episodes(path, made)
    assert read_episodes(path) == made
    write_episodes(path, made[:1])
    assert read_episodes(path) == made[:1]


def test_a_damaged_line_is_named(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "episodes.jsonl"
    write_episodes(path, episodes(1))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1].replace(b"greedy", b"groovy") + lines[2])
    with pytest.raises(UserError, match=r"episodes\.jsonl, line 2"):
        read_episodes(path)
    with pytest.raises(UserError, match="agentrm evaluate"):
        read_episodes(tmp_path / "absent.jsonl")


def damaged(path, change) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(change(lines)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [], "episodes.jsonl: holds no episode"),
        (lambda lines: lines[: len(lines) // 2], "tasks, for example not|episodes of"),
        (lambda lines: [*lines[:-1], lines[-1][:-9]], "line 36: corrupt record"),
        (lambda lines: [*lines, *lines], "line 37: a second episode of greedy on task babyai/"),
        (lambda lines: [*lines, lines[3]], "line 37: a second episode of greedy"),
        (lambda lines: lines[1:], "greedy has 5 of 6 tasks, for example not babyai/OpenDoor/0"),
        (lambda lines: lines[6:], "holds 0 episodes of greedy, and results.json next to it says 6"),
        (lambda lines: lines[:-6], "holds 0 episodes of beam 5x5, random scores"),
    ],
)
def test_an_incomplete_file_of_episodes_is_refused(tmp_path, change, message) -> None:
    path = tmp_path / "episodes.jsonl"
    made = sorted(
        episodes(2),
        key=lambda e: METHODS.index(
            next(
                m for m in METHODS if (m[0], m[1], m[3]) == (e.method, e.reward_model, e.beam_width)
            )
        ),
    )
    write_episodes(path, made)
    write_json_atomic(tmp_path / "results.json", result_rows(made))
    assert read_episodes(path) == made
    damaged(path, change)
    with pytest.raises(UserError, match=message) as caught:
        read_episodes(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"outcome": 1.5}, "outcome: must be within 0 and 1"),
        ({"outcome": "1"}, "outcome: must be a number"),
        ({"task": []}, "task: must be an object"),
        ({"n": 0}, "n must be at least 1"),
        ({"n": True}, "n: must be a whole number"),
        ({"error": 3}, "error: must be a text"),
        ({"more": 1}, "more: unknown key"),
    ],
)
def test_episodes_of_wrong_types_name_their_line(tmp_path, wrong, message) -> None:
    path = tmp_path / "episodes.jsonl"
    record = dataclasses.asdict(episodes(1)[0]) | wrong
    with JsonLines(path) as lines:
        lines.append(record)
    with pytest.raises(UserError, match=rf"episodes\.jsonl, line 1: .*{message}"):
        read_episodes(path)


def test_rows_have_the_documented_keys_and_add_up() -> None:
    made = episodes(20)
    rows = result_rows(made)
    assert all(set(row) == ROW_KEYS for row in rows)
    assert len(rows) == len(METHODS) * (len(KINDS) + 3 + 3)
    for row in rows:
        own = [
            episode
            for episode in made
            if episode.variant == row_variant(row)
            and row["split"] in ("all", episode.split)
            and row["task"] in ("all", "babyai", f"babyai/{episode.task.kind}")
        ]
        assert row["n_tasks"] == len(own)
        assert row["score_mean"] == pytest.approx(np.mean([e.outcome for e in own]))
        assert row["policy_tokens"] == sum(e.policy_tokens for e in own)
        assert row["score_ci95"][0] <= row["score_mean"] <= row["score_ci95"][1]
    splits = {row["task"]: row["split"] for row in rows if level(row) == "kind"}
    assert splits == {
        f"babyai/{kind}": "held_out" if held_out else "held_in" for kind, held_out in KINDS.items()
    }


def test_errors_are_counted_in_the_mean() -> None:
    greedy = [e for e in episodes(10) if e.method == "greedy"]
    solved = [dataclasses.replace(e, outcome=1.0, success=1.0) for e in greedy]
    failed = dataclasses.replace(solved[0], outcome=0.0, success=0.0, error="hung")
    row = result_rows([failed, *solved[1:]])[-1]
    assert (row["task"], row["split"]) == ("all", "all")
    assert row["errors"] == 1
    assert row["score_mean"] == row["success_rate"] == pytest.approx(29 / 30)


def test_comparisons_are_paired_by_task() -> None:
    made = episodes(10)
    greedy = [e for e in made if e.method == "greedy"]
    best = [
        dataclasses.replace(
            e, method="best_of_n", n=5, reward_model="explicit", outcome=e.outcome + 0.25
        )
        for e in greedy[: 2 * len(greedy) // 3]  # held in only
    ]
    shuffled = [greedy[i] for i in np.random.default_rng(0).permutation(len(greedy))]
    found = comparisons([*best, *shuffled])
    assert [c["split"] for c in found] == ["held_in", "all"]
    for c in found:
        assert (c["a"], c["b"], c["n_tasks"]) == ("best_of_n", "greedy", 20)
        # The same difference on every task: pairs that were mixed up would leave an interval.
        assert c["difference"] == pytest.approx(0.25)
        assert c["ci95"] == pytest.approx([0.25, 0.25])


def test_default_pairs() -> None:
    pairs = {(a.label, b.label) for a, b in default_pairs(episodes(1))}
    assert pairs == {
        ("best-of-5, explicit", "greedy"),
        ("best-of-5, explicit", "random-of-5"),
        ("beam 5x5, explicit", "greedy"),
        ("beam 5x5, explicit", "random-of-5"),
        ("beam 5x5, explicit", "best-of-5, explicit"),
        ("beam 5x5, explicit", "beam 5x5, random scores"),
    }
