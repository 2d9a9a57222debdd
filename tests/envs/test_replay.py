"""Forks of simulators that only know reset and step."""

from __future__ import annotations

import random

import pytest

from agentrm_jax.core.records import Task, Transition
from agentrm_jax.envs.replay import ReplayDiffersError, ReplayedEpisode, Simulators


class Counter:
    """Tells what was said to it since the reset; `drift` makes it forgetful."""

    made = 0
    drift = False

    def __init__(self) -> None:
        Counter.made += 1

    def reset(self, task: Task) -> str:
        self.said = [str(task.spec["start"])]
        return self.said[0]

    def step(self, action: str) -> Transition:
        if action == "break":
            raise OSError("broken")
        self.said.append(action)
        text = "?" if Counter.drift else " ".join(self.said)
        return Transition(observation=text, reward=0.0, done=False, success=False)


@pytest.fixture(autouse=True)
def fresh():
    Counter.made, Counter.drift = 0, False


def task(start: int) -> Task:
    return Task(
        environment="counter",
        task_id=f"counter/{start}",
        kind="only",
        split="train",
        problem=str(start),
        max_steps=100,
        spec={"start": start},
    )


@pytest.mark.parametrize("most", [1, 2, 5])
def test_forks_answer_as_if_each_had_its_own_simulator(most):
    simulators = Simulators(Counter, most)
    rng = random.Random(most)
    episodes: list[tuple[ReplayedEpisode, list[str]]] = []
    for start in range(3):
        episode = ReplayedEpisode(simulators)
        episodes.append((episode, [episode.reset(task(start))]))
    for number in range(200):
        episode, said = rng.choice(episodes)
        if rng.random() < 0.3:
            episode, said = episode.fork(), list(said)
            episodes.append((episode, said))
        said.append(str(number))
        assert episode.step(str(number)).observation == " ".join(said)
    assert Counter.made == most
    assert simulators.replayed > 0


def test_who_goes_on_where_a_simulator_stands_replays_nothing():
    simulators = Simulators(Counter, 1)
    episode = ReplayedEpisode(simulators)
    episode.reset(task(0))
    for number in range(5):
        episode = episode.fork()
        episode.step(str(number))
    assert simulators.replayed == 0


def test_a_replay_that_differs_is_an_error():
    simulators = Simulators(Counter, 1)
    episode = ReplayedEpisode(simulators)
    episode.reset(task(0))
    episode.step("a")
    other = episode.fork()
    other.step("b")
    Counter.drift = True
    with pytest.raises(ReplayDiffersError, match=r"step 1, 'a', was answered by .*0 a.*, now by"):
        episode.step("c")


def test_a_simulator_that_raised_is_not_used_again():
    simulators = Simulators(Counter, 1)
    episode = ReplayedEpisode(simulators)
    episode.reset(task(0))
    with pytest.raises(OSError, match="broken"):
        episode.step("break")
    assert episode.step("a").observation == "0 a"
    assert Counter.made == 2
