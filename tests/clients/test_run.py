"""Runs whose models are behind servers: a policy, a judge, reward models."""

from __future__ import annotations

import json
import os
import pathlib
import re
import signal
import threading
import time

import pytest
import yaml
from model_server import ModelServer

import agentrm_jax as arm
from agentrm_jax.cli.main import main
from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import propose
from agentrm_jax.data.trees import TreeStore
from agentrm_jax.evaluation.rollout_files import read_rollouts
from agentrm_jax.pipeline import runner
from agentrm_jax.pipeline.config import REWARD_KINDS, EnvironmentConfig, RunConfig
from agentrm_jax.pipeline.load_config import load_config
from agentrm_jax.pipeline.policy_kinds import POLICIES
from agentrm_jax.pipeline.server_kinds import ServedReward, ServerAgent
from agentrm_jax.pipeline.stages import STAGES, depends_on
from agentrm_jax.runtime.json_files import read_json
from agentrm_jax.runtime.run_paths import RunPaths
from agentrm_jax.testing import guess_tasks

KEY = "sk-do-not-write-me-5b1f"
RUN = """
    environments: [{name: maze, prompt: false, max_steps: 6}]
    seed: 3
    rewards: [explicit]
    agent: {key_env: TOY_KEY, request_seconds: 5, wait_seconds: 20}
    explore: {num_tasks: 4, search: {num_iterations: 3, expansion_width: 2, concurrency: 4}}
    evaluate:
      num_tasks: 4
      n: 3
      concurrency: 8
      beam: {beam_width: 1, expansion_width: 2, concurrency: 4}
      options: {greedy: {concurrency: 4}}
"""


@pytest.fixture(autouse=True)
def _kinds():
    """The kinds as an installed package has them."""
    for registry, kind in ((POLICIES, ServerAgent), (REWARD_KINDS, ServedReward)):
        if "server" not in registry.names():
            registry.register("server")(kind)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("TOY_KEY", KEY)
    with ModelServer(key=KEY) as running:
        yield running


@pytest.fixture
def configured(tmp_path: pathlib.Path) -> pathlib.Path:
    values = yaml.safe_load(RUN)
    del values["evaluate"]["options"]
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def with_policy(configured: pathlib.Path, server: ModelServer, *more: str) -> RunConfig:
    return load_config(configured, [f"--policy={server.url}", "--train_policy=false", *more])


def test_explore_and_evaluate(configured, server, tmp_path, capsys):
    output = tmp_path / "run"
    paths = RunPaths(output)
    runner.run_stage(with_policy(configured, server), output, "explore")
    trees = TreeStore.read(paths.trees, finished=True).values()
    assert [len(tree.iterations) for tree in trees] == [3] * 4
    steps = [n.step for tree in trees for i in tree.iterations for n in i.nodes]
    assert all(step.log_probs and not step.token_ids for step in steps)
    summary = read_json(paths.trees / "stage.json")["summary"]
    assert summary["agent"] == "server"
    assert summary["tokens_decoded"] > 0
    assert summary["tokens_read"] > 0
    [record] = read_json(paths.servers)["agent"]
    assert (record["model"], record["api"], record["n"]) == ("toy", "chat", True)

    reward = f"{{url: {server.url}, key_env: TOY_KEY, kind: server}}"
    config = with_policy(
        configured, server, "--rewards=[outside, likelihood]", f"--reward_options.outside={reward}"
    )
    runner.run_all(config, output)
    report = read_json(paths.report)
    methods = {(row["method"], row["reward_model"]) for row in report["results"]}
    assert {("best_of_n", "outside"), ("beam", "outside"), ("likeliest_of_n", None)} <= methods
    assert read_json(paths.servers)["outside"][0]["api"] == "classify"
    server.stop()
    capsys.readouterr()
    runner.run_all(config, output)  # nothing is asked again, at whatever address
    runner.run_all(
        with_policy(
            configured,
            server,
            "--rewards=[outside, likelihood]",
            f"--reward_options.outside={reward.replace(server.url, 'http://127.0.0.1:9')}",
        ),
        output,
    )
    assert capsys.readouterr().out.count("evaluate: done before") == 2

    written = [path for path in output.rglob("*") if path.is_file()]
    assert len(written) > 10
    assert not [path for path in written if KEY.encode() in path.read_bytes()]


def test_a_server_that_goes_away_ends_the_stage_and_the_next_one_resumes_it(
    configured, server, tmp_path
):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    runner.run_stage(with_policy(configured, server), whole, "explore")
    asked = len(server.behaviour.asked)

    def stop_in_the_middle() -> None:
        while len(server.behaviour.asked) < 1.6 * asked:
            time.sleep(0.001)
        server.stop()

    stopper = threading.Thread(target=stop_in_the_middle)
    stopper.start()
    impatient = with_policy(configured, server, "--agent.wait_seconds=0.2")
    with pytest.raises(UserError, match="give the same command again to resume"):
        runner.run_stage(impatient, broken, "explore")
    stopper.join()
    stored = TreeStore.read(RunPaths(broken).trees).values()
    assert 0 < sum(len(tree.iterations) for tree in stored) < 12
    with ModelServer(key=KEY) as other:
        other.behaviour.fail("other model", times=1000)
        with pytest.raises(UserError, match="answers with the model 'another', and agent of this"):
            runner.run_stage(with_policy(configured, other), broken, "explore")
        other.behaviour.fail("", times=0)
        runner.run_stage(with_policy(configured, other), broken, "explore")
    found, wanted = (
        {task_id: tree.iterations for task_id, tree in TreeStore.read(RunPaths(each).trees).items()}
        for each in (broken, whole)
    )
    assert found == wanted


def test_sigterm_while_a_run_waits_for_its_server(configured, server, tmp_path, capsys):
    output = tmp_path / "run"
    arguments = ["explore", str(configured), "--output", str(output), "--train_policy=false"]

    def leave() -> None:
        while len(server.behaviour.asked) < 40:
            time.sleep(0.001)
        server.stop()
        time.sleep(1.0)  # every request waits
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    stopper = threading.Thread(target=leave)
    stopper.start()
    assert main([*arguments, f"--policy={server.url}"]) == 0
    stopper.join()
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "agentrm: stopped by SIGTERM; run the same command again to resume"
    assert signal.getsignal(signal.SIGTERM) is before
    assert not (RunPaths(output).trees / "stage.json").exists()
    server.start()
    assert main([*arguments, f"--policy={server.url}"]) == 0
    trees = TreeStore.read(RunPaths(output).trees, finished=True).values()
    assert [len(tree.iterations) for tree in trees] == [3] * 4


def test_sample_with_a_policy_without_log_probabilities(configured, server, tmp_path, capsys):
    server.behaviour.features -= {"logprobs"}
    output = tmp_path / "run"
    more = ["--rewards=[implicit]", "--sample.num_samples=3"]
    runner.run_stage(with_policy(configured, server, *more), output, "sample")
    rollouts = list(read_rollouts(RunPaths(output).samples))
    assert len(rollouts) == 12
    assert all(rollout.policy_tokens > 0 for rollout in rollouts)
    summary = read_json(RunPaths(output).stage("sample") / "stage.json")["summary"]
    assert summary["tokens_decoded"] == sum(rollout.policy_tokens for rollout in rollouts)

    runner.run_all(with_policy(configured, server, "--rewards=[likelihood]"), tmp_path / "eval")
    said = capsys.readouterr().out
    assert "likeliest_of_n and fewest_invalid_of_n: not available" in " ".join(said.split())
    rows = read_json(RunPaths(tmp_path / "eval").results)
    assert {row["method"] for row in rows} >= {"greedy", "random_of_n", "oracle_of_n"}
    assert not {"likeliest_of_n", "fewest_invalid_of_n"} & {row["method"] for row in rows}


def test_a_judge_behind_a_server(configured, server, tmp_path):
    config = with_policy(
        configured, server, "--rewards=[judge]", f"--judge.policy={server.url}",
        "--judge.server.key_env=TOY_KEY", "--evaluate.methods=[best_of_n]",
    )  # fmt: skip
    runner.run_all(config, tmp_path / "run")
    questions = [
        body["messages"][0]["content"]
        for body in server.posts("/v1/chat/completions")
        if "Best: NUMBER" in body["messages"][0]["content"]
    ]
    assert len(questions) == 4
    assert read_json(RunPaths(tmp_path / "run").servers)["judge"][0]["model"] == "toy"


def test_the_address_in_policy_is_the_server_that_acts(configured, server):
    config = load_config(configured, [f"--policy={server.url}/v1"])
    assert isinstance(config.agent, ServerAgent)
    assert config.agent.key_env == "TOY_KEY"
    assert (config.policy, config.train_policy) == (None, False)
    explicit = [f"--agent.url={server.url}/v1", "--agent.kind=server", "--train_policy=false"]
    assert load_config(configured, explicit) == config
    explore = next(stage for stage in STAGES if stage.name == "explore")
    elsewhere = load_config(configured, ["--policy=https://host", "--agent.wait_seconds=1"])
    assert depends_on(config, explore) == depends_on(elsewhere, explore)
    named = load_config(configured, ["--policy=https://host", "--agent.model=a"])
    assert depends_on(config, explore) != depends_on(named, explore)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--train_policy=true"], "train_policy must be false because policy is a server"),
        (["--agent.url=http://h"], "policy is a server, and agent.url names one too"),
        (["--agent.kind=model"], "policy must be a model directory because agent.kind is 'model'"),
        (["--policy=http://u:p@h"], "agent.url must hold no user name"),
        (["--agent.api=tokens"], "agent.api must not be tokens unless tokenizer names a folder"),
        (["--agent.extra_body={"], "agent.extra_body must be JSON"),
        (['--agent.extra_body="{\\"n\\": 2}"'], "agent.extra_body must not hold n"),
        (["--judge.policy=http://h", "--judge.form=log_probs"], "judge.form must be choice"),
        (["--agent.key_env=sk-1"], "agent.key_env must be the name of an environment variable"),
    ],
)
def test_configurations_that_are_refused(configured, given, message):
    with pytest.raises(UserError, match=message):
        load_config(configured, ["--policy=http://127.0.0.1:9", *given])
    with pytest.raises(UserError, match="policy must be a model directory"):
        RunConfig(environments=(EnvironmentConfig(name="maze"),), policy="http://h")


def test_training_asks_for_the_model_from_which_it_starts(configured, server, tmp_path):
    with pytest.raises(UserError, match="policy must name the model directory from which"):
        runner.run_all(with_policy(configured, server), tmp_path / "run")
    assert server.behaviour.asked == []


def test_a_resolved_configuration_is_read_again(configured, server, tmp_path):
    config = with_policy(configured, server)
    runner.run_stage(config, tmp_path / "run", "explore")
    assert load_config(RunPaths(tmp_path / "run").config) == config
    record = json.loads((RunPaths(tmp_path / "run").trees / "stage.json").read_text())
    assert "url" not in record["depends_on"]["agent"]


def test_the_example_of_the_guide(server, monkeypatch, capsys):
    """The lines of Python in docs/guides/servers.md run as printed, with this server's address."""
    page = pathlib.Path(__file__).resolve().parents[2] / "docs" / "guides" / "servers.md"
    [program] = re.findall(r"```py\n(.*?)```", page.read_text(), re.DOTALL)
    assert "http://127.0.0.1:8000" in program
    monkeypatch.setenv("MY_KEY", KEY)
    names = {}
    exec(program.replace("http://127.0.0.1:8000", server.url), names)
    assert capsys.readouterr().out.splitlines()[1].startswith("best of 5")
    state = arm.Trajectory(task=guess_tasks(1)[0], first_observation="Guess a number from 1 to 30.")
    [[turn]] = propose(names["policy"], [(state, "first")], 1)
    assert turn.action.startswith("guess ")
