"""Tables and figures of experiments, and manipulated trajectories."""

from __future__ import annotations

import dataclasses
import xml.etree.ElementTree as ET

import pytest

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.records import Step, Task, Trajectory, Transition
from agentrm_jax.data.manipulations import FORGED, INVALID, KINDS, lengthened, manipulated
from agentrm_jax.evaluation.experiment_plot import Point, lines_svg
from agentrm_jax.evaluation.experiment_table import line_plot, markdown, shown_table

TABLE = {"title": "T", "rows": ["run"], "columns": "n", "values": ["score_mean"], "x": "n"}
ROWS = [
    {"run": run, "n": n, "score_mean": n / 10, "score_ci95": [0.0, 1.0]}
    for run in ("a", "b|c")
    for n in (1, 2)
]


def test_rows_and_columns_with_the_papers_number():
    table = shown_table(TABLE, ROWS, [{"row": "a", "value": 61.5}])
    assert table["head"] == ["score, %", "1", "2"]
    assert [name for name, _ in table["rows"]] == ["a", "b|c"]
    assert [cell and cell[:2] for cell in table["rows"][0][1]] == [
        ("10.0", "[0.0, 100.0]"), ("20.0", "[0.0, 100.0]"),
    ]  # fmt: skip
    assert table["paper"] == ["61.5", ""]
    lines = markdown(table).splitlines()
    assert lines[2] == "| score, % | 1 | 2 | paper |"
    assert lines[5] == "| b/c | 10.0 [0.0, 100.0] | 20.0 [0.0, 100.0] | - |"


def test_gains_are_columns_with_a_sign():
    table = {**TABLE, "rows": ["run", "n"], "columns": "", "baselines": ["random_of_n"]}
    gain = {"gain_over_random_of_n": 0.05, "gain_over_random_of_n_ci95": [-0.01, 0.11]}
    shown = shown_table(table, [{**ROWS[0], **gain}, ROWS[1]], [])
    assert shown["head"] == ["", "score, %", "over random of n"]
    assert [cell and cell[:2] for _, cells in shown["rows"] for cell in cells[1:]] == [
        ("+5.0", "[-1.0, +11.0]"), None,
    ]  # fmt: skip


def test_gains_that_are_no_chance_have_a_star_and_its_meaning():
    table = {**TABLE, "rows": ["run", "n"], "columns": "", "baselines": ["greedy"]}
    gain = {"gain_over_greedy": 0.05, "gain_over_greedy_ci95": [0.01, 0.09]}
    p_values = (0.01, 0.2, 1.0, 1.0)
    rows = [
        {**row, **gain, "gain_over_greedy_p_holm": p} for row, p in zip(ROWS, p_values, strict=True)
    ]
    text = markdown(shown_table(table, rows, []))
    assert text.count("[+1.0, +9.0]\\*") == 1
    assert text.endswith("if these are more than five.")
    assert "Holm" not in markdown(shown_table(table, rows[1:], []))


def test_two_results_in_one_cell_are_refused():
    with pytest.raises(UserError, match="two results in row 'a', column '1'"):
        shown_table(TABLE, [*ROWS, ROWS[0]], [])


def test_a_result_without_a_number_is_an_empty_cell():
    table = shown_table(TABLE, [*ROWS[:3], {**ROWS[3], "score_mean": None}], [])
    assert table["rows"][1][1][1] is None


def test_the_figure_has_every_point_and_escapes_names():
    lines = line_plot(TABLE, [*ROWS, {"run": "<x>", "n": "none", "score_mean": 0.5}])
    points = [Point(1.0, 0.1, (0.0, 1.0)), Point(2.0, 0.2, (0.0, 1.0))]
    assert lines == [("a", points), ("b|c", points)]
    hostile = ("<script>", [Point(0.0, 1.0), Point(4.0, 3.0)])
    svg = lines_svg([hostile, *lines], "n", "score & more")
    root = ET.fromstring(svg)
    assert len(root.findall("circle")) == 6
    bars = [line for line in root.findall("line") if line.get("opacity")]
    assert len(bars) == 4  # those of the points with an interval
    assert all(float(bar.get("y2", 0)) < float(bar.get("y1", 0)) for bar in bars)
    assert "<script>" not in svg
    assert lines_svg([], "n", "score") == ""


def played(number: int, outcome: float, texts: tuple[str, ...]) -> Trajectory:
    task = Task(environment="e", task_id=f"e/{number}", max_steps=9)
    steps = [
        Step(
            reply=f"Thought: {text} please.\nAction: {text}",
            action=text,
            transition=Transition(
                observation=f"You did {text} in {number}.",
                reward=outcome if i + 1 == len(texts) else 0.0,
                done=i + 1 == len(texts),
                success=outcome == 1.0 and i + 1 == len(texts),
            ),
            token_ids=(1, 2),
            log_probs=(-1.0, -1.0, -1.0),
        )
        for i, text in enumerate(texts)
    ]
    return Trajectory(task=task, first_observation="Go.", steps=tuple(steps))


def test_each_manipulation_changes_what_it_says_and_nothing_else():
    good, bad = played(0, 1.0, ("go", "take")), played(1, 0.0, ("sit", "sit", "run"))
    pairs = manipulated([good, bad, dataclasses.replace(bad, steps=())])
    assert set(pairs) == set(KINDS)
    assert [first for first, _ in pairs["invalid_actions"]] == [good, bad]
    for first, second in pairs["invalid_actions"]:
        for before, after in zip(first.steps, second.steps, strict=True):
            assert after.action == INVALID
            assert after.reply == f"Thought: {before.action} please.\nAction: {INVALID}"
            assert (after.transition, after.token_ids) == (before.transition, ())
    for first, second in pairs["other_observations"]:
        donor = bad if first is good else good
        texts = [step.transition.observation for step in donor.steps]
        for i, (before, after) in enumerate(zip(first.steps, second.steps, strict=True)):
            assert after.transition.observation == texts[i % len(texts)]
            assert (after.reply, after.token_ids) == (before.reply, before.token_ids)
    for first, second in pairs["shuffled_steps"]:
        assert second.steps != first.steps
        assert sorted(map(repr, second.steps)) == sorted(map(repr, first.steps))
    [(first, second)] = pairs["forged_success"]
    assert first is bad
    assert second.steps[:-1] == bad.steps[:-1]
    assert second.steps[-1].transition.observation == "You did take in 0."
    assert second.outcome == 0.0


def test_a_forged_success_without_a_success_to_copy():
    [(_, forged)] = manipulated([played(1, 0.0, ("sit",))])["forged_success"]
    assert forged.steps[-1].transition.observation == FORGED
    assert manipulated([played(1, 0.0, ("sit",))])["shuffled_steps"] == []


def test_trajectories_of_any_length():
    trajectory = played(0, 1.0, ("go", "take"))
    assert [step.action for step in lengthened(trajectory, 5).steps] == [
        "go", "take", "go", "take", "go",
    ]  # fmt: skip
    assert lengthened(trajectory, 1).steps == trajectory.steps[:1]
