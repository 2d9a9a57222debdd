"""AgentGym's environment servers: episodes, forks by replay, faults, lists of items."""

from __future__ import annotations

import json
import math
import random

import pytest
from agentgym_server import running

import agentrm_jax as arm
from agentrm_jax.cli.main import main
from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import EnvironmentFailure
from agentrm_jax.core.reply import parse_action
from agentrm_jax.envs.conformance import findings
from agentrm_jax.envs.outside.agentgym import agentgym_tasks
from agentrm_jax.envs.outside.agentgym_servers import SERVER_KINDS
from agentrm_jax.envs.pool import EnvPool
from agentrm_jax.envs.registry import load_family
from agentrm_jax.pipeline.load_config import load_config
from agentrm_jax.pipeline.prompts import RunPrompts
from agentrm_jax.pipeline.tasks import Tasks

STYLES = {"id": "textcraft", "env_idx": "webshop", "score": "sciworld"}


def play(pool, task, actions):
    [(handle, first)] = pool.reset([task])
    return handle, first, [pool.step([(handle, action)])[0] for action in actions]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("workers", [0, 1])
def test_an_episode_is_as_the_server_says(style, workers):
    with running(style) as server, EnvPool(workers=workers) as pool:
        [task] = agentgym_tasks(STYLES[style], server.url, [7])
        _, first, answers = play(pool, task, ["add 2", "fly", "add 1", "add 2"])
    assert first.splitlines()[-1] == "The number is 0, the target is 5."
    assert (first.splitlines()[0] == "Reach the target.") == (style == "score")
    assert [a.observation for a in answers] == [
        "The number is 2, the target is 5.",
        "Could not execute fly",
        "The number is 3, the target is 5.",
        "The number is 5, the target is 5.",
    ]
    expected = [0.4, 0, 0.2, 0.4] if style == "score" else [0, 0, 0, 1]
    assert [a.reward for a in answers] == pytest.approx(expected)
    assert [a.done for a in answers] == [False, False, False, True]
    assert [a.success for a in answers] == [False, False, False, True]
    assert [a.valid for a in answers] == [True, style != "id", True, True]


def test_a_fatal_score_counts_as_zero():
    with running("score") as server, EnvPool() as pool:
        [task] = agentgym_tasks("sciworld", server.url, [5])  # the target is 3
        _, _, answers = play(pool, task, ["add 2", "add 2"])
    assert [a.reward for a in answers] == pytest.approx([2 / 3, -2 / 3])
    assert (answers[1].done, answers[1].success) == (True, False)


def test_the_maze_pays_at_the_goal():
    rule = SERVER_KINDS["maze"].reward
    assert (rule.mapped(-1.0), rule.mapped(0.0)) == (0.0, 1.0)


@pytest.mark.parametrize("workers", [0, 1])
def test_forks_are_played_again_and_verified(workers):
    """More branches than a process keeps episodes on the server, in a mixed order."""
    with running() as server, EnvPool(workers=workers) as pool:
        [task] = agentgym_tasks("textcraft", server.url, [9])  # the target is 7
        [(root, _)] = pool.reset([task])
        grown = pool.branch([(root, f"add {1 + i % 2}") for i in range(12)])
        assert [answer.observation for _, answer in grown] == [
            f"The number is {1 + i % 2}, the target is 7." for i in range(12)
        ]
        answers = pool.step([(handle, "add 2") for handle, _ in reversed(grown)])
        assert [a.observation[14] for a in answers] == [str(3 + i % 2) for i in range(12)][::-1]
        [(_, late)] = pool.branch([(root, "add 2")])
        assert late.observation == "The number is 2, the target is 7."
        assert server.created <= 8


FAULTS = {
    "500": "status 500: Internal Server Error",
    "half": "the answer ends after",
    "other_id": "asked for episode 0, and the answer is about episode 77",
    "slow": "no answer within 0.5 s",
    "error": "the server says: The task with environment 0 has finished.",
    "not_json": "the answer is not JSON",
    "huge": "the answer is larger than 8,000,000 bytes",
    "redirect": "status 307",
    "no_reward": "no number `reward`",
    "no_text": "no text `observation`",
    "no_done": "no `done`",
    "list": "no text `observation` in []",
    "large_reward": "outside of reward.low = 0 and reward.high = 1",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_ends_one_branch_with_a_reason(fault):
    with running() as server, EnvPool() as pool:
        [task] = agentgym_tasks("textcraft", server.url, [9], seconds=0.5)
        [(root, _)] = pool.reset([task])
        server.fault = fault
        [failed] = pool.branch([(root, "add 1")])
        assert isinstance(failed, EnvironmentFailure)
        assert "agentgym@textcraft/9" in failed.reason
        if fault != "other_id":  # the second attempt is another episode
            assert FAULTS[fault] in failed.reason
        else:
            assert "the answer is about episode 77" in failed.reason
        server.fault = ""
        [(_, answer)] = pool.branch([(root, "add 2")])
        assert answer.observation == "The number is 2, the target is 7."


@pytest.mark.parametrize("fault", ["500", "half", "slow", "error"])
def test_a_fault_that_passes_costs_nothing(fault):
    with running() as server, EnvPool(workers=1) as pool:
        [task] = agentgym_tasks("textcraft", server.url, [9], seconds=0.5)
        [(root, _)] = pool.reset([task])
        server.fault, server.faulty_from, server.faulty_steps = fault, 1, 1
        _, second = [pool.step([(root, "add 2")])[0] for _ in range(2)]
        assert second.observation == "The number is 4, the target is 7."


def test_an_answer_that_differs_in_a_replay_is_an_error_of_that_branch():
    with running() as server, EnvPool() as pool:
        [task, other] = agentgym_tasks("textcraft", server.url, [9, 8])
        server.fault, server.faulty_from = "drift", 0
        [(root, _), (untouched, _)] = pool.reset([task, other])
        [first] = pool.step([(root, "add 1")])
        [(kept, _)] = pool.branch([(root, "add 1")])
        [failed] = pool.branch([(root, "add 2")])
        assert first.observation.endswith("This was request 1.")
        assert isinstance(failed, EnvironmentFailure)
        assert "the replay differs from what happened" in failed.reason
        assert "This was request 1" in failed.reason
        [going_on] = pool.step([(kept, "add 1")])
        assert going_on.observation.startswith("The number is 3, the target is 7.")
        [unhurt] = pool.step([(untouched, "add 1")])
        assert unhurt.observation.startswith("The number is 1, the target is 6.")


def test_a_server_that_is_away_is_one_clear_failure():
    with running() as server:
        url = server.url
    with EnvPool() as pool:
        [failed] = pool.reset(agentgym_tasks("textcraft", url, [1]))
    assert isinstance(failed, EnvironmentFailure)
    assert f"POST {url}/create: the connection failed" in failed.reason


def test_a_server_that_has_moved_is_named_by_a_variable(monkeypatch):
    with running() as server, EnvPool() as pool:
        monkeypatch.setenv("AGENTRM_AGENTGYM_TEXTCRAFT", server.url + "/")
        [task] = agentgym_tasks("textcraft", "http://127.0.0.1:1", [7])
        [(_, first)] = pool.reset([task])
    assert first == "The number is 0, the target is 5."


def test_requests_are_those_of_agentgyms_client():
    with running() as server, EnvPool() as pool:
        [task] = agentgym_tasks("textcraft", server.url, [7])
        play(pool, task, [" get 2 oak_log!, \u00e9 "])
        assert ("/create", {}) in server.requests
        (number,) = {body["id"] for path, body in server.requests if path == "/step"}
        assert ("/reset", {"id": number, "data_idx": 7}) in server.requests
        assert server.requests[-1] == ("/step", {"id": number, "action": "get 2 oaklog,"})


def test_every_kind_has_a_prompt_and_a_sound_rule():
    for name in SERVER_KINDS:
        family = load_family(f"agentgym@{name}")
        assert family.name == f"agentgym@{name}"
        assert "Action: " in family.prompt().instruction
        assert "options" in (family.missing() or "")
        assert family.kinds() == (name,)
    with pytest.raises(UserError, match="no server 'tetris'; known: textcraft"):
        load_family("agentgym@tetris")
    assert "agentgym@textcraft" in (load_family("agentgym").missing() or "")


def test_the_contract_holds():
    with running() as server:
        options = {"url": server.url, "tasks": {"train": "0-9", "test": "10-19"}}
        family = load_family("agentgym@textcraft").configured(options)
        for finding in findings(family, parse_action, n=2):
            assert not finding.broken, finding


CONFIG = """\
environments:
- name: agentgym@textcraft
  max_steps: 6
  instruction: [Reach the target., 'Reply with Action: add N.']
  options:
    url: {url}
    tasks: {{train: 0-19, test: [20-24, 30]}}
    seconds: 3.5
experts: {{num_tasks: 3}}
explore: {{num_tasks: 4}}
evaluate: {{num_tasks: 5}}
"""


def test_a_run_lists_its_tasks_and_searches_them(tmp_path):
    def policy(state, n, seed):
        draw = random.Random(seed)
        return [f"Thought: on.\nAction: add {draw.choice((1, 2))}" for _ in range(n)]

    with running() as server:
        path = tmp_path / "run.yaml"
        path.write_text(CONFIG.format(url=server.url))
        config = load_config(path)
        listed = Tasks(config)
        assert len(listed.explored) == 4
        assert {task.max_steps for task in listed.test} == {6}
        assert {task.spec["item"] for task in listed.test} < {*range(20, 25), 30}
        assert not {task.problem for task in listed.experts} & {t.problem for t in listed.explored}
        prompt = RunPrompts(config.environments)(listed.test[0])
        assert prompt == arm.Prompt(instruction="Reach the target.\nReply with Action: add N.")
        with arm.EnvPool(workers=1) as envs:
            trees = arm.explore(policy, envs, listed.explored, num_iterations=6)
    assert [tree.error for tree in trees] == [None] * 4
    assert {backup.outcome for tree in trees for backup in tree.backups} == {0.0, 1.0}


def test_the_commands_take_options_from_a_configuration(tmp_path, capsys, monkeypatch):
    with running() as server:
        path = tmp_path / "run.yaml"
        path.write_text(CONFIG.format(url=server.url))
        said = iter(["add 2", "add 2", "add 2", "add 2"])
        monkeypatch.setattr("builtins.input", lambda _: next(said))
        arguments = ["envs", "play", "agentgym@textcraft", "--split", "train"]
        assert main([*arguments, "--config", str(path)]) == 0
        assert "The number is 2, the target is" in capsys.readouterr().out
        assert main(["envs", "play", "maze", "--config", str(path)]) == 2
        assert "`environments` does not name maze" in capsys.readouterr().err


def test_experts_must_leave_tasks_to_explore(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG.format(url="http://127.0.0.1:1"))
    config = load_config(path, ["--experts.num_tasks=20"])
    with pytest.raises(UserError, match=r"experts\.num_tasks must be below 20: it takes all"):
        _ = Tasks(config).explored
    path.write_text(path.read_text().replace("train: 0-19, ", ""))
    with pytest.raises(UserError, match="environments list no task of split train"):
        _ = Tasks(load_config(path)).explored


def test_a_configuration_that_is_wrong_names_the_environment(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG.format(url="ftp://host"))
    with pytest.raises(UserError, match=r"agentgym@textcraft: options\.url must be the address"):
        _ = Tasks(load_config(path)).test
    path.write_text("environments: [{name: maze, options: {url: x}}]")
    with pytest.raises(UserError, match="of maze: options must be left out"):
        _ = Tasks(load_config(path)).test
    path.write_text("environments: [{name: maze, options: 3}]")
    with pytest.raises(UserError, match=r"options must be keys and values \(got '3'\)"):
        load_config(path)


def test_items_are_ranges_lists_and_files(tmp_path):
    file = tmp_path / "eval.json"
    file.write_text(json.dumps([{"item_id": "textcraft_40"}, {"item_id": "textcraft_3"}]))
    tasks = {"train": ["0-2", 7], "test": str(file)}
    with pytest.raises(UserError, match=r"options\.tasks item 3 is in train and test"):
        configured({"train": "3-9", "test": str(file)}).counts()
    family = configured(tasks)
    assert family.counts() == {"train": 4, "test": 2, "paper": 0}
    listed = family.tasks("train", kinds=family.kinds(), n=10)
    assert sorted(task.spec["item"] for task in listed) == [0, 1, 2, 7]
    assert listed[:2] == family.tasks("train", kinds=family.kinds(), n=2)
    assert listed != family.tasks("train", kinds=family.kinds(), n=10, seed=1)
    assert [task.split for task in family.tasks("test", kinds=family.kinds(), n=1)] == ["test"]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"url": "127.0.0.1:8000"}, "options.url must be the address of a server"),
        ({"url": "http://me:secret@host"}, "options.url must hold no user name"),
        ({"url": 3}, "options.url must be text"),
        ({"seconds": 0}, "options.seconds must be above 0"),
        ({"second": 3}, r"options.second is unknown; did you mean seconds\?"),
        ({"tasks": {"dev": "0-3"}}, "options.tasks has no split 'dev'"),
        ({"tasks": {"train": "3-0"}}, "options.tasks.train must be a range"),
        ({"tasks": {"train": "all"}}, "options.tasks.train must be numbers such as 0-99"),
        ({"tasks": {"train": "none.json"}}, "none.json, which cannot be read"),
        ({"reward": {"low": 1}}, "options.reward.low must be below high"),
        ({"reward": {"of": "max"}}, "options.reward.of must be one of sum, last"),
    ],
)
def test_options_that_are_refused_name_their_key(changed, reason):
    options = {"url": "http://127.0.0.1:1", "tasks": {"train": "0-9"}} | changed
    with pytest.raises(UserError, match=reason):
        load_family("agentgym@textcraft").configured(options).counts()


def test_the_address_is_needed():
    with pytest.raises(UserError, match=r"options\.url is missing"):
        load_family("agentgym@maze").configured({"tasks": {"train": "0-25"}})
    assert not math.isnan(SERVER_KINDS["maze"].reward.low)


def configured(tasks):
    options = {"url": "http://127.0.0.1:1", "tasks": tasks}
    return load_family("agentgym@textcraft").configured(options)
