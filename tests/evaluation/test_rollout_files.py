"""Rollouts come back from disk as they were."""

import dataclasses

from agentrm_jax.core.records import Task, Trajectory
from agentrm_jax.evaluation.rollout_files import read_rollouts, stored_rollouts
from agentrm_jax.search.rollouts import Rollout
from agentrm_jax.search.search_nodes import SearchNode


def test_the_nodes_of_a_search_come_back(tmp_path):
    tasks = [Task(environment="maze", task_id=f"maze/{i}", max_steps=3) for i in range(2)]
    plain, searched = (
        Rollout(trajectory=Trajectory(task=task, first_observation="go")) for task in tasks
    )
    nodes = (
        SearchNode(parent=-1, observation="go", chosen=True),
        SearchNode(parent=0, reply="Action: up", action="up", score=0.5, status="removed"),
    )
    searched = dataclasses.replace(searched, search=nodes)
    file = tmp_path / "rollouts.jsonl"
    stored_rollouts(file, [(task, 0) for task in tasks], lambda _: iter([plain, searched]))
    assert list(read_rollouts(file)) == [plain, searched]
    first, second = file.read_text().splitlines()
    assert "search" not in first
    assert "search" in second
