"""The simulation of leases: nothing is lost or counted twice, and deaths do happen in it."""

from __future__ import annotations

import dataclasses

import pytest

from benchmarks import leases

SMALL = leases.Setting(hosts=12, tasks=60, fails_after=900.0, freezes=0.5)


@pytest.mark.parametrize("seed", [0, 1])
def test_no_task_is_lost_or_recorded_twice(seed: int) -> None:
    found = leases.measured(dataclasses.replace(SMALL, seed=seed))
    assert (found["lost"], found["recorded_twice"]) == (0, 0)
    assert found["deaths"] > 0
    assert found["freezes"] > 0
    assert found["late_records_that_did_not_count"] > 0
    assert found["ideal_seconds"] <= found["seconds"]


def test_without_failures_the_overhead_is_that_of_the_last_tasks() -> None:
    setting = leases.Setting(hosts=10, tasks=200, slow_share=0.0, fails_after=1e9)
    found = leases.measured(setting)
    assert found["deaths"] == found["freezes"] == 0
    assert found["overhead"] < 0.25
    assert found["seconds"] <= found["fixed_stride_seconds"]
