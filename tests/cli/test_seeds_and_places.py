"""An evaluation at two places with two sampling seeds, interrupted and resumed."""

from __future__ import annotations

import pathlib
import shutil

import pytest
from cli_cases import CONFIG, agentrm

from agentrm_jax.evaluation.episodes import read_episodes
from agentrm_jax.runtime.json_files import read_json

SETTINGS = (
    "--evaluate.score_at=[observation, action]",
    "--evaluate.sampling_seeds=[0, 1]",
    "--evaluate.random_beam=false",
    "--evaluate.num_tasks=6",
    "--evaluate.beam_tasks=3",
)
FOLDERS = {
    *("greedy", "best_of_n", "best_of_n+seed1"),
    *("beam", "beam@action", "beam+seed1", "beam@action+seed1"),
}


def without_seconds(records) -> list[dict]:
    return [{k: v for k, v in record.items() if k != "wall_seconds"} for record in records]


@pytest.fixture(scope="module")
def evaluated(finished: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("places") / "run"
    ignored = shutil.ignore_patterns("metrics.jsonl", ".lock", "eval")
    shutil.copytree(finished, folder, ignore=ignored)
    agentrm("evaluate", str(CONFIG), "--output", str(folder), *SETTINGS, ends=0)
    return folder


def test_each_place_and_seed_has_its_files(evaluated: pathlib.Path) -> None:
    root = evaluated / "eval"
    assert {path.name for path in root.iterdir() if path.is_dir()} == FOLDERS
    probe = read_json(root / "probe.json")["maze"]
    assert probe["source"] == "trees"
    assert probe["n_tasks"] == 16
    blind = read_episodes(root / "beam@action" / "episodes.jsonl")
    assert {(e.score_at, e.sampling_seed) for e in blind} == {("action", 0)}
    sampled = read_episodes(root / "best_of_n+seed1" / "episodes.jsonl")
    assert {e.sampling_seed for e in sampled} == {1}
    assert {(e.reward_model, e.score_at) for e in sampled if e.reward_model} == {
        (model, place) for model in ("explicit", "implicit") for place in ("observation", "action")
    }  # fmt: skip
    rows = read_json(root / "best_of_n" / "best_of_k.json")
    assert {(r["reward_model"], r["score_at"]) for r in rows} == {
        ("oracle", "observation"),
        *((e.reward_model, e.score_at) for e in sampled if e.reward_model),
    }
    outcomes = {(e.reward_model, e.score_at, e.task.task_id): e.outcome for e in read_episodes(
        root / "best_of_n" / "episodes.jsonl") if e.method == "best_of_n"}  # fmt: skip
    for row in rows:
        if row["reward_model"] != "oracle":
            key = (row["reward_model"], row["score_at"], row["task_id"])
            assert row["scores"][-1] == pytest.approx(outcomes[key])


def test_the_first_seed_is_the_evaluation_without_seeds(
    evaluated: pathlib.Path, finished: pathlib.Path
) -> None:
    def replies(folder: pathlib.Path, method: str) -> dict:
        from agentrm_jax.evaluation.rollout_files import read_rollouts

        return {
            (r.trajectory.task.task_id, r.sample): [s.token_ids for s in r.trajectory.steps]
            for r in read_rollouts(folder / "eval" / method / "rollouts.jsonl")
        }

    for method in ("greedy", "best_of_n"):
        now, before = replies(evaluated, method), replies(finished, method)
        assert {key: before[key] for key in now} == now
    other = replies(evaluated, "best_of_n+seed1")
    assert other.keys() == replies(evaluated, "best_of_n").keys()
    assert other != replies(evaluated, "best_of_n")


def test_an_interrupted_seed_is_resumed(evaluated: pathlib.Path, tmp_path: pathlib.Path) -> None:
    again = tmp_path / "again"
    shutil.copytree(evaluated, again, ignore=shutil.ignore_patterns(".lock", "stage.json.tmp"))
    root = again / "eval"
    (root / "stage.json").rename(root / "seconds.json")
    stored = root / "best_of_n+seed1" / "rollouts.jsonl"
    lines = stored.read_bytes().splitlines(keepends=True)
    stored.write_bytes(b"".join(lines[:5]) + lines[5][:40])
    for name in ("beam+seed1", "beam@action+seed1"):
        shutil.rmtree(root / name)
    agentrm("evaluate", str(CONFIG), "--output", str(again), *SETTINGS, ends=0)
    for name in FOLDERS:
        before, now = (
            without_seconds(read_json(folder / "eval" / name / "results.json"))
            for folder in (evaluated, again)
        )
        assert now == before, name
    assert stored.read_bytes().splitlines()[:5] == [line.rstrip(b"\n") for line in lines[:5]]


def test_the_report_averages_seeds(evaluated: pathlib.Path) -> None:
    printed, _ = agentrm("report", str(CONFIG), "--output", str(evaluated), *SETTINGS, ends=0)
    assert "Oracle gap: the best of 3 trajectories" in printed
    report = read_json(evaluated / "report.json")
    rows = {
        (r["method"], r["reward_model"], r.get("score_at", "observation")): r
        for r in report["results"]
        if (r["task"], r["split"]) == ("all", "all")
    }
    assert rows["greedy", None, "observation"]["n_seeds"] == 1
    for place in ("observation", "action"):
        row = rows["best_of_n", "explicit", place]
        assert (row["n_seeds"], row["sampling_seeds"], row["n_tasks"]) == (2, [0, 1], 6)
        folders = [evaluated / "eval" / name for name in ("best_of_n", "best_of_n+seed1")]
        means = [
            r["score_mean"]
            for folder in folders
            for r in read_json(folder / "results.json")
            if (r["method"], r["reward_model"]) == ("best_of_n", "explicit")
            and (r["task"], r["split"], r.get("score_at", "observation")) == ("all", "all", place)
        ]
        assert row["score_mean"] == pytest.approx(sum(means) / 2)
        assert rows["beam", "explicit", place]["n_tasks"] == 3
    assert {row["a_score_at"] for row in report["equal_tokens"]} == {"observation", "action"}
    assert {row["score_at"] for row in report["curves"]} == {"observation", "action"}
    assert report["oracle_gap"][-1]["n_tasks"] == 6
