"""`agentrm chat`: a person and a policy play, with the scores of the reward model."""

from __future__ import annotations

import re

import pytest
from serve_cases import policy_server

from agentrm_jax.cli.main import main
from agentrm_jax.core.errors import UserError
from agentrm_jax.envs.contract import listed_tasks
from agentrm_jax.envs.registry import load_family
from agentrm_jax.serve.chat import ChatConfig, chat
from agentrm_jax.testing import write_tiny_policy, write_tiny_reward_model


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory):
    return write_tiny_reward_model(tmp_path_factory.mktemp("chat") / "reward")


def played(config: ChatConfig, *lines: str) -> list[str]:
    """What a game of maze shows to a person who types these lines."""
    family, said, typed = load_family("maze"), [], iter(lines)
    [task] = listed_tasks(family, "test", n=1)
    chat(config, family, task, said.append, lambda question: next(typed))
    assert list(typed) == []
    return said


def values(said: list[str]) -> list[list[float]]:
    """The scores before, after the action and after the answer of each turn."""
    lines = [line for line in said if line.startswith("[reward model: ")]
    return [[float(v) for v in re.findall(r"-?\d+\.\d+", line)] for line in lines]


def test_a_person_sees_the_scores_of_each_turn(reward_model):
    said = played(ChatConfig(reward_model=str(reward_model)), "move up", "Action: move left", "")
    turns = values(said)
    assert len(turns) == 2
    assert turns[1][0] == turns[0][2]
    assert len({v for turn in turns for v in turn}) > 2


def test_candidates_are_shown_best_first_and_chosen_by_number(reward_model):
    with policy_server() as server:
        config = ChatConfig(reward_model=str(reward_model), policy=server.url, n=3)
        said = played(config, "", "2", "move up", "7", "q")
        replies = [m["content"] for m in server.bodies[-1]["messages"] if m["role"] == "assistant"]
    shown = [line for line in said if re.match(r" +\d\. ", line)]
    scores = [float(line.split()[1]) for line in shown]
    assert len(shown) == 15
    for i in range(0, 15, 3):
        assert scores[i : i + 3] == sorted(scores[i : i + 3], reverse=True)
    assert [reply.replace("\n", " / ") for reply in replies[-4:]] == [
        shown[0].split(maxsplit=2)[2],
        shown[4].split(maxsplit=2)[2],
        "Action: move up",
        "Action: 7",
    ]
    for line, turn in ((shown[0], 0), (shown[4], 1)):
        assert float(line.split()[1]) == pytest.approx(values(said)[turn][1], abs=2e-3)


def test_a_policy_plays_alone(reward_model, tmp_path, capsys):
    policy = write_tiny_policy(tmp_path / "policy", {"maze": None})
    arguments = ("chat", "maze", "--reward-model", reward_model, "--policy", policy)
    assert main([*map(str, arguments), "-n", "2", "--auto"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("[reward model: ") for line in lines) > 2
    assert lines[-1].startswith("success rate") or ": 0.00" in lines[-1]


def test_mistakes(reward_model):
    with pytest.raises(UserError, match="--auto needs candidates"):
        ChatConfig(reward_model="x", auto=True)
    with policy_server("503") as server, pytest.raises(UserError, match=r"answered 503.*mode 503"):
        played(ChatConfig(reward_model=str(reward_model), policy=server.url, n=1))
