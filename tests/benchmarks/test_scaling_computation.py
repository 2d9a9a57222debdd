"""The computation of costs: work is conserved, bounds bind, and it agrees with the plans."""

from __future__ import annotations

import dataclasses
import json

import pytest

from benchmarks import scaling

WORK = scaling.Work()


@pytest.mark.parametrize("engine", scaling.ENGINES, ids=lambda each: each.name)
def test_a_full_engine_takes_the_time_of_its_plan(engine) -> None:
    assert engine.token(scaling.ROWS) == pytest.approx(engine.token_seconds)
    alone = engine.token(1)
    assert 0 < alone < engine.token(16) < engine.token_seconds


def test_chips_that_have_work_cost_the_same_and_others_more() -> None:
    engine = scaling.ENGINES[0]
    found = [scaling.exploration(engine, chips, WORK, 1.0, 0.0) for chips in (1, 8, 64, 512)]
    one, eight, many, most = (each for each in found if each is not None)
    assert one["chip_hours"] == pytest.approx(eight["chip_hours"], rel=0.02)
    assert eight["minutes"] == pytest.approx(one["minutes"] / 8, rel=0.02)
    assert one["chip_hours"] < many["chip_hours"] < most["chip_hours"]
    assert most["minutes"] >= most["one_tree_minutes"] * 0.95
    assert scaling.exploration(scaling.ENGINES[1], 4, WORK, 1.0, 0.0) is None


def test_a_search_without_reading_and_environments_is_its_tokens() -> None:
    """As if all trees were decoded one batch after the other."""
    work = dataclasses.replace(WORK, tasks=4000, observation=0.0, prompt=0.0)
    engine = scaling.ENGINES[0]
    found = scaling.exploration(engine, 1, work, 0.5, 0.0)
    tokens = work.tasks * 40 * (5 + 10) * 60
    assert found is not None
    hours = tokens / (scaling.ROWS * 0.5 / engine.token_seconds) / 3600
    assert found["chip_hours"] == pytest.approx(hours, rel=0.02)


def test_training_stops_at_a_row_for_each_chip() -> None:
    update = scaling.UPDATES[1]
    eight, rows, more = (scaling.training(update, n, WORK, 1.0) for n in (8, 64, 512))
    assert eight["arithmetic_seconds"] == update.seconds
    assert rows["minutes"] == pytest.approx(eight["minutes"] / 8, rel=0.02)
    assert more["minutes"] == rows["minutes"]
    assert scaling.training(scaling.UPDATES[0], 64, WORK, 1.0)["bound_by"] == "links"


def test_it_prints_its_assumptions_and_json(capsys) -> None:
    assert scaling.main(["--chips", "1", "8", "--tasks", "60", "--turn", "50"]) == 0
    *_, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    assert found["assumed"]["turn"] == 50
    assert [each["hosts"] for each in found["leases_simulated"]] == [8]
    assert found["leases_simulated"][0]["lost"] == 0
