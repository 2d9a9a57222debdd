"""`agentrm score` and its Python API: both ends of each step against a plain forward pass."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
import shutil
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import pytest
from cli_cases import CONFIG

from agentrm_jax.cli.main import main
from agentrm_jax.core.records import Trajectory, to_json
from agentrm_jax.data.chat import render
from agentrm_jax.data.tokenizer import train_tokenizer
from agentrm_jax.model import llama
from agentrm_jax.model.value import readout
from agentrm_jax.pipeline.models import load_reward, save
from agentrm_jax.pipeline.reward_model import open_conversation_model, open_reward_model
from agentrm_jax.pipeline.trajectory_files import read_trajectories
from agentrm_jax.runtime.json_files import read_json
from agentrm_jax.runtime.json_lines import JsonLines
from agentrm_jax.runtime.sharding import MeshConfig, make_mesh
from agentrm_jax.serve.conversations import conversation_of_messages
from agentrm_jax.serve.scoring import ConversationScorer, ScoreRequest

GUIDE = pathlib.Path(__file__).parents[2] / "docs" / "guides" / "reward_models.md"
MODEL = pathlib.Path("reward", "explicit", "model")


def rows(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    written = capsys.readouterr().err.strip().splitlines()
    assert written[-1].startswith("agentrm: error: ")
    return written[-1]


@pytest.fixture(scope="module")
def values_of(finished):
    """Of a trajectory: the model's value at each of its tokens, by one plain forward pass."""
    model = load_reward(finished / MODEL, "float32", make_mesh(MeshConfig()))

    def values(trajectory: Trajectory, limit: int):
        rendered, _ = render(model.tokenizer, None, trajectory, limit)
        tokens = np.zeros(1024, np.int32)  # one shape, one program
        tokens[: len(rendered.tokens)] = rendered.tokens
        ones = jnp.ones((1, 1024), jnp.int32)
        hidden = llama.forward(
            model.params["trunk"], model.config, tokens[None], jnp.arange(1024)[None], ones
        )
        return rendered, np.asarray(readout(model.params["value_head"], hidden))[0]

    return values


@pytest.fixture(scope="module")
def conversations(finished, tmp_path_factory) -> pathlib.Path:
    """Two of the experts' mazes as ETO writes conversations; the last answer is not in them."""
    items = []
    for number, trajectory in enumerate(read_trajectories(finished / "experts")[:2]):
        turns = [("human", trajectory.first_observation)]
        for step in trajectory.steps:
            turns += [("gpt", step.reply), ("human", step.transition.observation)]
        pairs = [{"from": speaker, "value": value} for speaker, value in turns[:-1]]
        items.append({"id": f"maze_{number}", "reward": 1.0 - number, "conversations": pairs})
    path = tmp_path_factory.mktemp("conversations") / "some.json"
    path.write_text(json.dumps(items))
    return path


def test_scores_equal_a_forward_pass(finished, tmp_path, values_of) -> None:
    output = tmp_path / "scores.jsonl"
    assert main(["score", str(finished / "eval" / "greedy"), "--model", str(finished),
                 "--output", str(output)]) == 0  # fmt: skip
    trajectories, found = read_trajectories(finished / "eval" / "greedy"), rows(output)
    assert [row["task_id"] for row in found] == [t.task.task_id for t in trajectories]
    assert len(found) == 8
    for trajectory, row in zip(trajectories, found, strict=True):
        rendered, values = values_of(trajectory, 1024)
        states = values[list(rendered.state_ends)]
        np.testing.assert_allclose([row["start"], *row["after_observation"]], states, atol=1e-5)
        actions = values[list(rendered.action_ends)]
        np.testing.assert_allclose(row["after_action"], actions, atol=1e-5)
        assert row["score"] == row["after_observation"][-1]
        assert (row["outcome"], row["truncated_steps"]) == (trajectory.outcome, 0)


def test_a_server_of_the_run_gives_the_same_scores(finished) -> None:
    stored = read_trajectories(finished / "eval" / "greedy")
    # Messages hold no sampled tokens, which may be others than those of the text.
    texts = [
        dataclasses.replace(
            t, steps=tuple(dataclasses.replace(step, token_ids=()) for step in t.steps)
        )
        for t in stored
    ]
    scorer = ConversationScorer(*open_conversation_model(finished))
    for end in ("action", "observation"):
        requests = [
            ScoreRequest(conversation=conversation_of_messages(t.messages()), steps=end)
            for t in texts
        ]
        for found, row in zip(
            scorer(requests), open_reward_model(finished).score_steps(texts), strict=True
        ):
            expected = row.after_action if end == "action" else row.after_observation
            np.testing.assert_allclose(found.values, expected, atol=1e-5)


def test_what_does_not_fit_is_left_out_and_said(finished, values_of, tmp_path, capsys) -> None:
    limit, output = 192, tmp_path / "scores.jsonl"
    arguments = [str(finished / "eval" / "greedy"), "--model", str(finished / MODEL)]
    assert main(["score", *arguments, "--output", str(output), f"--engine.context={limit}"]) == 0
    cut = 0
    for trajectory, row in zip(
        read_trajectories(finished / "eval" / "greedy"), rows(output), strict=True
    ):
        states = (
            dataclasses.replace(trajectory, steps=trajectory.steps[:n])
            for n in range(len(trajectory.steps) + 1)
        )
        ends = [(r.state_ends[-1], v) for r, v in (values_of(state, limit) for state in states)]
        expected = [values[end] for end, values in ends]
        np.testing.assert_allclose([row["start"], *row["after_observation"]], expected, atol=1e-5)
        cut += row["truncated_steps"] > 0
    assert cut > 0
    assert f"{cut} of them have truncated steps" in capsys.readouterr().err


def test_conversations_have_no_score_behind_their_last_reply(
    finished, conversations, capsys
) -> None:
    assert main(["score", str(conversations), "--model", str(finished)]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    model = open_reward_model(finished)
    stored = list(model.score_steps(read_trajectories(finished / "experts")[:2]))
    assert [row["outcome"] for row in found] == [1.0, 0.0]
    for row, whole in zip(found, stored, strict=True):
        assert row["after_action"] == list(whole.after_action)
        assert row["after_observation"] == [*whole.after_observation[:-1], None]
        assert row["score"] == whole.after_action[-1]
        assert whole.score == whole.after_observation[-1]


def test_every_folder_of_a_run_is_read(finished) -> None:
    assert len(read_trajectories(finished / "experts")) > 50
    paths = read_trajectories(finished / "trees")
    assert list(paths) == list(read_trajectories(finished / "trees" / "trees.jsonl"))
    assert 16 < len(paths) <= 16 * 4
    assert all(path.done for path in paths)
    labelled = {t.steps for t in read_trajectories(finished / "states")}
    assert {path.steps for path in paths} <= labelled
    assert len(read_trajectories(finished / "eval")) == 8 + 3 * 8 + 2 * 4


def test_the_guide_scores_in_four_lines(finished, monkeypatch, tmp_path, capsys) -> None:
    [program] = re.findall(r"```python\n(.*?score_steps.*?)```", GUIDE.read_text(), re.S)
    assert len([line for line in program.splitlines() if line.strip()]) == 4
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "quickstart").symlink_to(finished)
    monkeypatch.chdir(tmp_path)
    exec(compile(program, str(GUIDE), "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == len(read_trajectories(finished / "experts"))


def test_a_file_of_no_known_format(finished, tmp_path, capsys) -> None:
    def scored(path: pathlib.Path, content: str) -> str:
        path.write_text(content)
        return fails(capsys, "score", path, "--model", finished)

    path = tmp_path / "file"
    assert f"{path}, line 1: neither a record of ours nor a list" in scored(path, "task,score\n")
    assert f"{path}: is empty" in scored(path, "")
    maze = tmp_path / "maze.json"
    assert f"{maze}: line 2: not JSON" in scored(maze, "[\n{]")
    assert "give --environment NAME" in scored(tmp_path / "x.json", '[{"id": "a"}]')
    assert "nowhere: not found" in fails(capsys, "score", "nowhere", "--model", finished)
    assert f"{finished}: no trajectories here" in fails(
        capsys, "score", finished, "--model", finished
    )


def test_records_that_are_no_trajectories(finished, tmp_path, capsys) -> None:
    path = tmp_path / "rollouts.jsonl"
    with JsonLines(path) as lines:
        lines.append({"trajectory": to_json(read_trajectories(finished / "experts")[0])})
        lines.append({"other": 1})
    message = fails(capsys, "score", path, "--model", finished)
    assert f"{path}, line 2: not a rollout ('trajectory')" in message
    episodes = finished / "eval" / "greedy" / "episodes.jsonl"
    message = fails(capsys, "score", episodes, "--model", finished)
    assert "line 1: an episode, which does not hold its trajectory" in message


def test_no_model(finished, tmp_path, capsys) -> None:
    file = finished / "eval" / "greedy"
    assert f"{tmp_path}: no reward model here" in fails(capsys, "score", file, "--model", tmp_path)
    alone = tmp_path / "alone"
    shutil.copytree(finished / MODEL, alone)
    message = fails(capsys, "score", file, "--model", alone)
    assert "lies in no run, so nothing says how it reads states" in message
    policy = finished / "sft" / "model"
    message = fails(capsys, "score", file, "--model", policy)
    assert "holds a policy model, a reward model is wanted" in message


def test_a_model_alone_with_a_configuration(finished, tmp_path) -> None:
    shutil.copytree(finished / MODEL, tmp_path / "alone")
    model = open_reward_model(tmp_path / "alone", config=finished / "config.resolved.yaml")
    some = read_trajectories(finished / "trees")[:3]
    assert list(model.score_steps(some)) == list(open_reward_model(finished).score_steps(some))


def test_an_environment_that_the_run_does_not_name(finished, conversations, capsys) -> None:
    arguments = ("score", conversations, "--model", finished, "--environment", "babyai")
    assert "`environments` of the configuration does not name babyai" in fails(capsys, *arguments)


def test_replies_that_were_sampled_as_other_tokens_are_read_as_texts(finished) -> None:
    trajectory = read_trajectories(finished / "eval" / "greedy")[0]

    def sampled(change: Callable[[tuple[int, ...]], tuple[int, ...]]) -> Trajectory:
        steps = [dataclasses.replace(s, token_ids=change(s.token_ids)) for s in trajectory.steps]
        return dataclasses.replace(trajectory, steps=tuple(steps))

    as_other_tokens = sampled(lambda ids: tuple(id + 1_000_000 for id in reversed(ids)))
    as_text = sampled(lambda ids: ())
    model = open_reward_model(finished)
    assert list(model.score_steps([as_other_tokens])) == list(model.score_steps([as_text]))


def test_a_reward_model_of_another_tokenizer(finished, tmp_path, capsys) -> None:
    """It reads what the policy said as texts, and steers it all the same."""
    own = load_reward(finished / MODEL, "float32", make_mesh(MeshConfig()))
    texts = ["Thought: zz. Action: move up", "Your position is 3, 4."]
    other = dataclasses.replace(own, tokenizer=train_tokenizer(texts, 300))
    save(tmp_path / "other", "reward", other)
    assert other.tokenizer.encode(texts[0]) != own.tokenizer.encode(texts[0])
    arguments = [
        "evaluate", str(CONFIG), "--output", str(tmp_path / "run"), "--train_policy=false",
        f"--policy={finished / 'sft' / 'model'}", f"--reward_model={tmp_path / 'other'}",
        "--rewards=[explicit]", "--evaluate.num_tasks=2", "--evaluate.beam_tasks=2",
        "--evaluate.random_beam=false",
    ]  # fmt: skip
    assert "must be observation" in fails(capsys, *arguments, "--evaluate.beam.score_at=action")
    assert main([*arguments, "--evaluate.beam.score_at=observation"]) == 0
    found = tmp_path / "run" / "eval"
    trajectories = read_trajectories(found / "best_of_n")
    scores = [row["score"] for row in read_json(found / "best_of_n" / "scores.json")]
    model = open_reward_model(tmp_path / "other", config=tmp_path / "run" / "config.resolved.yaml")
    as_texts = [
        dataclasses.replace(t, steps=tuple(dataclasses.replace(s, token_ids=()) for s in t.steps))
        for t in trajectories
    ]
    again = sorted(s.score for s in model.score_steps(as_texts))
    np.testing.assert_allclose(again, sorted(scores), atol=1e-5)
    assert np.std(scores) > 0
    assert (found / "beam" / "results.json").exists()


def test_a_score_that_is_not_finite_is_an_error(finished, tmp_path, capsys) -> None:
    model = load_reward(finished / MODEL, "float32", make_mesh(MeshConfig()))
    head = {**model.params["value_head"], "bias": jnp.float32(jnp.nan)}
    broken = dataclasses.replace(model, params={**model.params, "value_head": head})
    save(tmp_path / "broken", "reward", broken)
    output = tmp_path / "scores.jsonl"
    said = fails(
        capsys, "score", finished / "eval" / "greedy", "--model", tmp_path / "broken",
        "--config", finished / "config.resolved.yaml", "--output", output,
    )  # fmt: skip
    first = read_trajectories(finished / "eval" / "greedy")[0].task.task_id
    assert f"trajectory 1 (task {first}): the reward model's score is nan" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken"]


@pytest.mark.parametrize(
    "record", [[], 7, "x", None, {"trajectory": 1}, {"trajectory": {"steps": 1}}]
)
def test_records_of_wrong_types_are_one_line(record, tmp_path, capsys) -> None:
    with JsonLines(tmp_path / "rollouts.jsonl") as lines:
        lines.append(record)
    said = fails(capsys, "score", tmp_path / "rollouts.jsonl", "--model", tmp_path)
    assert "rollouts.jsonl, line 1: not a rollout (" in said
