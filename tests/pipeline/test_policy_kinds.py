"""The section `agent`: a kind of policies from a plugin, and keys that need the run's own model."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import textwrap

import jax
import pytest
import yaml

from agentrm_jax.core.errors import UserError
from agentrm_jax.data.tokenizer import train_tokenizer
from agentrm_jax.data.trees import TreeStore
from agentrm_jax.evaluation.rollout_files import read_rollouts
from agentrm_jax.pipeline import models, runner
from agentrm_jax.pipeline.acting import open_policy
from agentrm_jax.pipeline.config import REWARD_KINDS, EnvironmentConfig, RunConfig
from agentrm_jax.pipeline.config_values import defaults, upgraded
from agentrm_jax.pipeline.load_config import load_config
from agentrm_jax.pipeline.policy_kinds import POLICIES, RunPolicy
from agentrm_jax.pipeline.stages import STAGES, depends_on, stages_of
from agentrm_jax.pipeline.workspace import Workspace
from agentrm_jax.runtime.json_files import read_json
from agentrm_jax.runtime.run_directory import STAGE_FILE, completed
from agentrm_jax.runtime.run_paths import RunPaths
from agentrm_jax.runtime.sharding import MeshConfig, make_mesh

PLUGIN = '''
    import dataclasses
    import random

    import agentrm_jax as arm
    from agentrm_jax.pipeline.reward_kinds import RewardKind


    @arm.register_policy("wanderer")
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Wanderer(arm.PolicyKind):
        """Moves in a direction that is drawn for each turn; the greedy one has a favourite."""

        favourite: str
        concurrency: int = 1

        def open(self, options):
            assert options.seed == 3
            assert options.concurrency in (5, 6)

            def reply(state, n, seed):
                assert options.prompt_of(state.task) is None
                draw, ways = random.Random(seed), ["up", "down", "left", "right"]
                if options.sampling.temperature == 0:
                    ways = [self.favourite]
                return [f"Thought: on.\\nAction: move {draw.choice(ways)}" for _ in range(n)]

            return arm.FunctionPolicy(reply, concurrency=self.concurrency)


    @arm.register_reward_kind("shortness")
    class Shortness(RewardKind):
        """Prefers short trajectories."""

        def open(self, policy):
            return arm.FunctionScorer(lambda states: [-len(state.steps) for state in states])
'''

RUN = """
    environments: [{name: maze, prompt: false, max_steps: 6}]
    seed: 3
    train_policy: false
    rewards: [shortness, explicit]
    engine: {context: 512, decode_rows: 8, extend_rows: 4, extend_tokens: 32, cache_tokens: 4096}
    explore: {num_tasks: 3, search: {num_iterations: 3, expansion_width: 2, concurrency: 5}}
    train_rm: {fit: {num_updates: 1, batch_size: 2, length: 512}}
    evaluate:
      num_tasks: 4
      n: 2
      concurrency: 6
      beam: {beam_width: 1, expansion_width: 2, concurrency: 5}
"""


@pytest.fixture
def configured(tmp_path: pathlib.Path, monkeypatch) -> pathlib.Path:
    """A configuration in which another agent than the run's own model acts."""
    monkeypatch.setattr(POLICIES, "_registered", {})
    plugin = tmp_path / "wanderer.py"
    plugin.write_text(textwrap.dedent(PLUGIN))
    values = yaml.safe_load(RUN) | {
        "plugins": [str(plugin)],
        "agent": {"kind": "wanderer", "favourite": "left"},
        "policy": str(tmp_path / "policy"),
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture
def trunk(tmp_path: pathlib.Path) -> None:
    """The model from which the reward model of `configured` starts."""
    shape = dataclasses.replace(
        RunConfig(environments=(EnvironmentConfig(name="maze"),)).model,
        vocab_size=300, d_model=16, num_layers=1, head_dim=8, d_ff=16,
    )  # fmt: skip
    tokenizer = train_tokenizer(["Thought: on.\nAction: move up"], shape.vocab_size)
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    model = models.fresh_policy(shape, tokenizer, 512, "float32", mesh, 0)
    models.save(tmp_path / "policy", "policy", model)


def test_a_kind_from_a_plugin_explores_and_is_evaluated(configured, trunk, tmp_path, capsys):
    output = tmp_path / "run"
    paths = RunPaths(output)
    runner.run_stage(load_config(configured), output, "explore")
    trees = TreeStore.read(paths.trees, finished=True).values()
    steps = [n.step for tree in trees for i in tree.iterations for n in i.nodes]
    assert len(trees) == 3
    assert {step.reply.partition("\n")[0] for step in steps} == {"Thought: on."}
    assert len({step.action for step in steps}) == 4

    # Without a reward model that starts from it, the run needs no model at all.
    alone = ["--rewards=[shortness]", "--policy=null", "--train_policy=true"]
    config = load_config(configured, alone)
    assert [stage.name for stage in stages_of(config)] == ["evaluate"]
    runner.run_all(config, output)
    greedy = list(read_rollouts(paths.method("greedy").rollouts))
    assert {s.action for r in greedy for s in r.trajectory.steps} == {"move left"}
    report = read_json(paths.report)
    agents = {stage["stage"]: stage["summary"].get("agent") for stage in report["stages"]}
    assert agents == {"explore": "wanderer", "evaluate": "wanderer"}
    assert {"greedy", "best_of_n", "beam"} <= {row["method"] for row in report["results"]}

    capsys.readouterr()
    runner.run_all(load_config(configured, [*alone, "--agent.concurrency=2"]), output)
    assert "evaluate: done before" in capsys.readouterr().out
    with pytest.raises(UserError, match=r'agent.favourite = "left", but it is now "up"'):
        runner.run_all(load_config(configured, [*alone, "--agent.favourite=up"]), output)


@pytest.mark.parametrize(
    ("key", "given", "expected"),
    [
        ("policy", ["--policy=null"], "name the model directory from which the reward model"),
        ("policy", ["--policy=null", "--rewards=[implicit]"], "or name an existing reward model"),
        ("judge.policy", ["--rewards=[shortness, judge]"], "name the model directory of the judge"),
        (
            "evaluate.beam.score_at",
            ["--rewards=[explicit]", "--evaluate.beam.score_at=action"],
            "must be observation because agent.kind is wanderer",
        ),
    ],
)
def test_keys_that_need_the_model_of_the_run(configured, key, given, expected):
    with pytest.raises(UserError, match=expected) as caught:
        load_config(configured, given)
    assert caught.value.field == key


def test_a_reward_kind_that_asks_for_the_engine_is_refused(configured, tmp_path):
    config = load_config(configured)
    policy = open_policy(Workspace(config=config, directory=tmp_path))
    with pytest.raises(UserError, match=r"agent.kind must be model .*\(got wanderer\)"):
        _ = policy.engine


@pytest.mark.parametrize("form", ["choice", "log_probs"])
def test_a_judge_of_its_own_needs_no_model_that_acts(configured, trunk, tmp_path, form):
    own = ["--rewards=[judge]", f"--judge.policy={tmp_path / 'policy'}", f"--judge.form={form}"]
    config = load_config(configured, [*own, "--policy=null", "--evaluate.methods=[best_of_n]"])
    policy = open_policy(Workspace(config=config, directory=tmp_path))
    assert REWARD_KINDS.load("judge")().open(policy).cost([]) == 0


def test_an_unknown_kind(configured):
    configured.write_text(configured.read_text().replace("kind: wanderer", "kind: wandere"))
    with pytest.raises(UserError, match=r"run.yaml, line \d+: .*'wandere'; did you mean wanderer"):
        load_config(configured)


def test_a_run_of_an_earlier_version_acted_with_its_own_model(tmp_path):
    config = RunConfig(environments=(EnvironmentConfig(name="maze"),))
    assert config.agent == RunPolicy()
    [explore] = [stage for stage in STAGES if stage.name == "explore"]
    now = depends_on(config, explore)
    assert now["agent"] == {"kind": "model"}
    earlier = {key: value for key, value in now.items() if key != "agent"}
    record = {"depends_on": earlier, "seconds": 1.0, "summary": {"trees": 2}}
    (tmp_path / STAGE_FILE).write_text(json.dumps(record))
    upgrade = functools.partial(upgraded, config=RunConfig)
    assert completed(tmp_path, now, defaults(config), upgrade) == {"trees": 2}
