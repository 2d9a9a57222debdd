"""`agentrm report RUN RUN`: seeds are averaged, other runs are set apart, gaps are said."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import yaml

from agentrm_jax.cli.main import main
from agentrm_jax.core.errors import UserError
from agentrm_jax.core.records import Step, Task, Trajectory, Transition
from agentrm_jax.data.trees import IterationRecord, NodeRecord, TreeStore
from agentrm_jax.evaluation.episodes import Episode, write_episodes
from agentrm_jax.evaluation.results import result_rows
from agentrm_jax.evaluation.rollout_files import stored_rollouts
from agentrm_jax.pipeline.compare_runs import compare_runs
from agentrm_jax.pipeline.report_searches import RunRecord, Shown, chosen_tasks
from agentrm_jax.runtime.json_files import write_json_atomic
from agentrm_jax.runtime.run_paths import RunPaths
from agentrm_jax.search.rollouts import Rollout

TASKS = 12
Make = Callable[..., pathlib.Path]


def task(number: int) -> Task:
    return Task(environment="maze", task_id=f"maze/{number}", kind="t", max_steps=9, split="test")


def outcome(method: str, seed: int, number: int, better: float = 0.0) -> float:
    draw = np.random.default_rng([seed, number, len(method)]).random()
    return float(draw < 0.4 + 0.3 * (method == "beam") + better)


def step(done: bool, reward: float) -> Step:
    answer = Transition(observation="seen", reward=reward, done=done, success=reward > 0.99)
    return Step(reply="Action: go", action="go", transition=answer)


def episode(method: str, seed: int, number: int, better: float) -> Episode:
    reached = outcome(method, seed, number, better)
    model = "explicit" if method == "beam" else None
    width = 5 if method == "beam" else None
    return Episode(
        task=task(number), method=method, reward_model=model, seed=seed, outcome=reached,
        beam_width=width, expansion_width=width, success=reached, policy_tokens=10, env_steps=1,
        wall_seconds=1.0, steps=1,
    )  # fmt: skip


@pytest.fixture
def make(tmp_path: pathlib.Path) -> Make:
    def made(
        name: str, seed: int, methods: Sequence[str] = ("greedy", "beam"), **settings: object
    ) -> pathlib.Path:
        better = 0.2 if settings.get("size") == "large" else 0.0
        paths = RunPaths(tmp_path / name)
        for method in methods:
            own = [episode(method, seed, number, better) for number in range(TASKS)]
            files = paths.method(method)
            files.folder.mkdir(parents=True)
            write_episodes(files.episodes, own)
            write_json_atomic(files.results, result_rows(own))
            pairs = [(e.task, 0) for e in own]
            found = {e.task.task_id: e.outcome for e in own}
            stored_rollouts(files.rollouts, pairs, lambda asked, found=found: (
                Rollout(trajectory=Trajectory(task=t, first_observation="begin",
                                              steps=(step(True, found[t.task_id]),)))
                for t, _ in asked))  # fmt: skip
        paths.config.write_text(yaml.safe_dump({"seed": seed, **settings}))
        return paths.run

    return made


def mean(method: str, *seeds: int, better: float = 0.0) -> float:
    """The mean over tasks of the mean over seeds, in plain Python."""
    by_task = [sum(outcome(method, s, n, better) for s in seeds) / len(seeds) for n in range(TASKS)]
    return sum(by_task) / TASKS


def rows_of(output: pathlib.Path) -> dict[tuple[str, str], dict]:
    report = json.loads((output / "report.json").read_text())
    return {
        (row.get("run", ""), row["method"]): row
        for row in report["results"]
        if (row["task"], row["split"]) == ("all", "all")
    }


def test_seeds_are_averaged_within_a_task(make: Make, tmp_path: pathlib.Path) -> None:
    runs = [make("a", 0), make("b", 1)]
    for _ in range(2):  # the folder of a comparison can be written again
        compare_runs(runs, tmp_path / "out", Shown())
    rows = rows_of(tmp_path / "out")
    assert set(rows) == {("", "greedy"), ("", "beam")}
    for method in ("greedy", "beam"):
        assert rows["", method]["score_mean"] == pytest.approx(mean(method, 0, 1))
        assert rows["", method]["n_seeds"] == 2
        assert rows["", method]["n_tasks"] == TASKS
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<title>out · AgentRM</title>" in page
    assert "a, b differ in the seed alone" in page
    assert "a: beam 5x5, explicit" in page  # the searches of both


def test_runs_with_other_settings_have_rows_of_their_own(
    make: Make, tmp_path: pathlib.Path
) -> None:
    runs = [make("small", 0, size="small"), make("large", 0, size="large")]
    compare_runs(runs, tmp_path / "out", Shown())
    rows = rows_of(tmp_path / "out")
    assert rows["small", "beam"]["score_mean"] == pytest.approx(mean("beam", 0))
    assert rows["large", "beam"]["score_mean"] == pytest.approx(mean("beam", 0, better=0.2))
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    [across] = [
        row
        for row in report["comparisons"]
        if (row["a_label"], row["b_label"], row["split"])
        == ("beam 5x5 (large), explicit", "beam 5x5 (small), explicit", "all")
    ]
    expected = mean("beam", 0, better=0.2) - mean("beam", 0)
    assert across["difference"] == pytest.approx(expected)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Settings that differ between the runs" in page


def test_groups_with_other_seeds_are_paired_over_tasks(make: Make, tmp_path: pathlib.Path) -> None:
    runs = [make("s0", 0, size="small"), make("s1", 1, size="small"), make("l", 2, size="large")]
    compare_runs(runs, tmp_path / "out", Shown())
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    [across] = [
        row
        for row in report["comparisons"]
        if (row["a_label"], row["b_label"], row["split"])
        == ("greedy (l)", "greedy (s0 + s1)", "all")
    ]
    expected = mean("greedy", 2, better=0.2) - mean("greedy", 0, 1)
    assert across["difference"] == pytest.approx(expected)


def test_a_run_that_lacks_a_method_is_compared_without_it(
    make: Make, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, part = make("whole", 0, size="x"), make("part", 0, methods=["greedy"], size="y")
    assert main(["report", str(whole), str(part), "--output", str(tmp_path / "out")]) == 0
    assert "part has no files of beam: compared without." in capsys.readouterr().out
    assert ("part", "beam") not in rows_of(tmp_path / "out")


def test_what_cannot_be_compared_is_one_line(
    make: Make, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, empty = make("run", 0), tmp_path / "empty"
    empty.mkdir()
    for words, said in (
        ([run, empty, "--output", tmp_path / "out"], "nothing was evaluated yet"),
        ([run, run, "--output", tmp_path / "out"], "is given twice"),
        ([run, empty], "--output is missing"),
        ([run, empty, "--output", tmp_path / "out", "--seed=1"], "leave it out"),
        ([run / "no.yaml", run, "--output", tmp_path / "out"], "no folder"),
        ([run, "--output", tmp_path / "out", "--scores", empty], "`agentrm eval-rm` writes it"),
    ):
        assert main(["report", *map(str, words)]) != 0
        assert said in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_the_most_telling_tasks_come_first(tmp_path: pathlib.Path) -> None:
    """Methods differ on task 3; the trees of tasks 7 and 8 have even and uneven outcomes."""
    made = [
        dataclasses.replace(episode(method, 0, number, 0.0), outcome=float(number == 3 and i))
        for i, method in enumerate(("greedy", "beam"))
        for number in range(5)
    ]
    folder = tmp_path / "trees"
    folder.mkdir()
    store = TreeStore(folder)
    for number, outcomes in ((7, (0.0, 1.0)), (8, (1.0, 1.0))):
        store.begin(task(number), "begin")
        for i, reward in enumerate(outcomes):
            node = NodeRecord(node=i + 1, parent=0, step=step(True, reward), multiplicity=1)
            store.append(IterationRecord(task_id=task(number).task_id, iteration=i, nodes=(node,),
                                         path=(0, i + 1), outcome=reward))  # fmt: skip
        store.finish(task(number).task_id)
    store.close()
    trees = list(TreeStore.read(folder).values())
    run = RunRecord(paths=RunPaths(tmp_path), episodes=made, trees=trees)
    assert chosen_tasks([run], 3) == ["maze/3", "maze/7", "maze/0"]
    assert len(chosen_tasks([run], 100)) == 7


def test_the_number_of_tasks_is_checked() -> None:
    with pytest.raises(UserError, match="tasks must be at least 0"):
        Shown(tasks=-1)
