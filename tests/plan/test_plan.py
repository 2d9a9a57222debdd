"""`agentrm plan`: tiny models for small topologies, and what it prints if they do not fit."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import pathlib

import jax
import numpy as np
import pytest
from gpu_cases import needs_gpu_compiler
from tpu_cases import needs_compiler

from agentrm_jax.cli.main import main
from agentrm_jax.engine.engine import Engine
from agentrm_jax.model import llama, parameters
from agentrm_jax.model.heads import Quantile
from agentrm_jax.pipeline.load_config import load_config
from agentrm_jax.pipeline.reward_ensembles import Ensemble
from agentrm_jax.pipeline.reward_kinds import Explicit
from agentrm_jax.plan import capacity, report
from agentrm_jax.plan.abstract_engine import AbstractEngine
from agentrm_jax.plan.compiling import Target, needed_bytes
from agentrm_jax.plan.hlo import parse
from agentrm_jax.plan.needs import Program, StagePlan, inference_advice, training_advice
from agentrm_jax.plan.programs import Memory
from agentrm_jax.plan.topologies import parse_topology
from agentrm_jax.plan.traffic import traffic_of
from agentrm_jax.plan.work import Work
from agentrm_jax.runtime.sharding import MeshConfig, make_mesh
from agentrm_jax.testing.models import CONFIG as SHAPE
from agentrm_jax.testing.models import SIZES, drawn
from agentrm_jax.train.optimizer import OptimizerConfig, make_optimizer
from agentrm_jax.train.step import abstract_state, make_state

ROOT = pathlib.Path(__file__).parents[2]
TINY = ROOT / "configs" / "tiny.yaml"
PAPER = ROOT / "configs" / "paper"
RNG = np.random.default_rng(0)


def load(path, *overrides):
    return load_config(path, overrides)


def assert_alike(planned, real):
    """Same shapes, types and places."""

    def check(x, y):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
        assert x.sharding.is_equivalent_to(y.sharding, x.ndim)

    jax.tree.map(check, planned, real)


def test_what_is_compiled_is_what_training_holds():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    optimizer = make_optimizer(OptimizerConfig(), 10)
    params = jax.device_put(drawn(RNG), parameters.shardings(SHAPE, mesh))
    abstract = parameters.abstract_of(parameters.describe(SHAPE), "float32", mesh)
    assert_alike(abstract_state(abstract, optimizer, mesh), make_state(params, optimizer, mesh))


def test_what_is_compiled_is_what_an_engine_holds():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    sizes = SIZES
    params = jax.device_put(drawn(RNG), parameters.shardings(SHAPE, mesh))
    engine = Engine(llama.unstacked(params, consume=True), SHAPE, sizes, mesh=mesh)
    planned = AbstractEngine(
        parameters.abstract_of(parameters.describe(SHAPE), "float32", mesh), SHAPE, sizes, mesh=mesh
    )
    assert_alike(planned.programs.model.params, engine.programs.model.params)
    assert_alike(planned.programs.model.pool, engine.programs.model.pool)
    rows = engine.prefill.rows([])
    assert_alike(planned.programs.put(rows), engine.programs.put(rows))
    assert params["layers"]["q"].is_deleted()
    assert not params["embed"].is_deleted()


def test_unstacked_layers_are_the_layers():
    params = drawn(RNG)
    stacked = jax.device_get(params)
    layers = llama.unstacked(params, consume=True)
    assert llama.unstacked(layers) is layers
    for l, layer in enumerate(layers["layers"]):
        for name, value in layer.items():
            np.testing.assert_array_equal(value, stacked["layers"][name][l])


@pytest.mark.parametrize("path", sorted(PAPER.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_papers_files_name_shapes_that_are_there(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = load(path)
    assert config.dtype == "bfloat16"
    shape = capacity.policy_shape(config)
    count = sum(
        np.prod(spec.shape)
        for spec in jax.tree.leaves(
            parameters.describe(shape), is_leaf=lambda x: isinstance(x, parameters.ParamSpec)
        )
    )
    assert count == (70_553_706_496 if "70b" in path.stem else 8_030_261_248)


def test_bad_input_is_one_line(capsys):
    for arguments, message in (
        ([str(TINY), "--topology", "v5p:4"], "--topology: unknown topology 'v5p:4'"),
        ([str(TINY)], "--topology is missing"),
        (["--topology", "v5p:2x2x2"], "CONFIG is missing"),
        (["none.yaml", "--topology", "v5p:2x2x2"], "none.yaml: no such file"),
    ):
        assert main(["plan", *arguments]) == 2
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1


def test_help_says_how(capsys):
    assert main(["plan", "--help"]) == 0
    assert "--topology KIND:CHIPS" in capsys.readouterr().out


def test_without_a_compiler_it_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["plan", str(TINY), "--topology", "v5e:2x2"]) == 2
    assert capsys.readouterr().err == (
        "agentrm: error: the TPU compiler is missing: pip install 'agentrm-jax[tpu]'\n"
    )


def test_the_profile_of_a_stage_is_printed_and_in_the_json():
    """Ratio to the least of all tokens of a call; kinds; the largest instructions."""
    text = LARGE_COPY
    traffic = traffic_of(parse(text))
    plan = _plan("explore", None)
    program = dataclasses.replace(
        plan.programs[0], memory=Memory(arguments=1, outputs=1, temporaries=1, code=0, peak=3),
        traffic=traffic, units=4, work=Work(1e12, 1e8),
    )  # fmt: skip
    assert program.ratio_moved == 2 * 4 * 10**8 / (4 * 1e8)
    stage = dataclasses.replace(plan, programs=[program])
    topology = parse_topology("h200:1")
    lines = report.stage_text(stage, topology, profile=True)
    assert "moved        0.8 GB by a call of 4 tokens, 2.00 times the least" in lines
    assert "by kind      copies 0.8 GB" in lines
    assert "100.0%    0.8 GB       1 x copies       ? (c)" in lines
    assert "copies" not in report.stage_text(stage, topology)
    [found] = report.as_json([stage], topology)["stages"][0]["programs"]
    assert found["ratio_moved"] == 2.0
    assert found["traffic"]["largest"][0]["bytes"] == 8e8
    assert json.dumps(found)


LARGE_COPY = """HloModule m

ENTRY %main (x: f32[100000000]) -> f32[100000000] {
  %x = f32[100000000]{0} parameter(0)
  ROOT %c = f32[100000000]{0} copy(%x)
}
"""


def _plan(name, needed, **resident):
    program = Program(
        name="update", unit="an update", work=Work(1e12, 1e9), model_flops=1e13,
        compile_seconds=1.0, handed=sum(resident.values()), needed=needed,
    )  # fmt: skip
    return StagePlan(name=name, resident=resident, programs=[program], hbm=16e9, advice=[])


def test_what_lies_there_and_what_programs_need_add_up():
    memory = Memory(arguments=5, outputs=1, temporaries=3, code=1, peak=8)
    one = dataclasses.replace(_plan("evaluate", None).programs[0], memory=memory, handed=4.0)
    both = dataclasses.replace(
        _plan("evaluate", None, policy=4.0, pages=3.0), programs=[one], hbm=12.0
    )
    assert both.peak == 7 + (9 - 4)
    assert both.fits
    assert not dataclasses.replace(both, hbm=11.0).fits


def test_advice_names_keys_that_help():
    config = load(TINY, "--sft.fit.batch_size=16", "--mesh.data=8", "--policy=p")
    mesh = make_mesh(config.mesh)
    advice = training_advice(config, mesh, _plan("sft", 20e9, state=6e9))
    keys = [line.partition(":")[0] for line in advice]
    assert keys[:8] == [
        "sft.fit.attention", "sft.vocab_chunks", "dtype", "sft.fit.remat", "sft.fit.accumulation",
        "mesh", "sft.optimizer.moments", "sft.lora.rank",
    ]  # fmt: skip
    assert "accumulation: 2 " in advice[4]
    fitting = dataclasses.replace(_plan("sft", 20e9), hbm=30e9)
    assert not fitting.fits  # the compiler says no, whatever we add up
    small = capacity.policy_shape(load(TINY))
    advice = inference_advice(config, mesh, small, _plan("explore", 20e9, pages=10e9))
    assert any(line.startswith("engine.cache_tokens: about") for line in advice)


@pytest.mark.parametrize(
    ("message", "gib"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (31.16G) exceeds available HBM (15.75G).",
            31.16,
        ),
        ("Ran out of memory in memory space hbm. Used 20.5G of 15.75G hbm.", 20.5),
        ("Ran out of memory in memory space vmem. Used 20.5M of 16.0M vmem.", None),
        ("INTERNAL: Mosaic failed to compile", None),
    ],
)
def test_the_compilers_word_on_memory(message, gib):
    found = needed_bytes(message)
    assert found is None if gib is None else found == pytest.approx(gib * 2**30)


def counted(monkeypatch, config, stage):
    """The resident bytes and programs of a stage's reward models, without a compiler."""
    monkeypatch.setattr(capacity, "_prefill", lambda name, engine, target: name)
    target = Target(
        stage=stage, config=config, topology=parse_topology("v5e:2x2"),
        mesh=make_mesh(MeshConfig(data=1, fsdp=1, tensor=1), jax.devices()[:1]),
        on_compile=lambda *_: None,
    )  # fmt: skip
    resident = {}
    programs = capacity._reward_models(target, capacity.policy_shape(config), resident)
    return resident, programs


def test_every_reward_model_of_a_stage_is_counted(monkeypatch):
    """An ensemble, its members, an implicit model: two policies of the run's shape."""
    options = {"low": Explicit(quantile=0.25), "both": Ensemble(of=("explicit", "low", "implicit"))}
    head = {"train_rm": dataclasses.replace(load(TINY).train_rm, head=Quantile())}
    config = dataclasses.replace(load(TINY), rewards=("both",), reward_options=options, **head)
    resident, programs = counted(monkeypatch, config, "evaluate")
    names = [name.partition(" (")[0] for name in resident]
    assert names == [
        "reward model's parameters", "reward model's pages",
        "reward model low's parameters", "reward model low's pages",
        "reward model implicit: policy's parameters",
        "reward model implicit: reference's parameters",
    ]  # fmt: skip
    assert programs == ["reward model reads"]  # low has the same shape
    shape = parameters.describe(capacity.policy_shape(config))
    assert resident[names[4]] == resident[names[5]] == bytes_of(shape)


def test_calibration_counts_the_first_reward_model_of_open_thresholds(monkeypatch):
    config = load(TINY, "--evaluate.methods=[greedy]", "--rewards=[explicit, implicit]")
    assert counted(monkeypatch, config, "calibrate") == ({}, [])
    evaluate = dataclasses.replace(config.evaluate, methods=("best_of_n", "retry"))
    config = dataclasses.replace(config, evaluate=evaluate)
    resident, programs = counted(monkeypatch, config, "calibrate")
    assert programs == ["reward model reads"]
    assert len(resident) == 2
    both, _ = counted(monkeypatch, config, "evaluate")
    assert set(resident) < set(both)


def bytes_of(shapes):
    def is_spec(leaf):
        return isinstance(leaf, parameters.ParamSpec)

    return 4 * sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes, is_leaf=is_spec))


@pytest.mark.tpu_compile
def test_a_whole_tiny_run_fits_four_chips(capsys):
    needs_compiler()
    status = main(
        ["plan", str(TINY), "--topology", "v5e:2x2", "--mesh.fsdp=4", "--dtype=bfloat16", "--json",
         "--sft.vocab_chunks=3", "--sft.fit.remat=dots", "--sft.fit.accumulation=1",
         "--train_rm.lora.rank=2", "--train_rm.head.kind=quantile"]
    )  # fmt: skip
    found = json.loads(capsys.readouterr().out)
    assert status == 0
    assert found["fits"] is True
    assert [stage["stage"] for stage in found["stages"]] == [
        "sft", "explore", "train-rm", "sample", "train-implicit", "evaluate",
    ]  # fmt: skip
    update = found["stages"][0]["programs"][0]
    assert (
        update["memory"]["arguments"]
        > found["stages"][0]["resident_bytes"]["parameters and optimizer"]
    )
    assert update["exchanges"]["all-gather"]["count"] > 2 * 7  # each matrix of each layer
    trained, adapted = (found["stages"][i]["resident_bytes"] for i in (0, 2))
    state = adapted["parameters and optimizer"]
    assert state < 0.5 * trained["parameters and optimizer"]
    assert adapted["frozen parameters"] < 0.2 * trained["parameters and optimizer"]
    names = [program["name"] for program in found["stages"][3]["programs"]]
    assert names == [
        "policy reads", "policy decodes 1 of each conversation",
        "policy decodes 2 of each conversation", "reward model reads",
    ]  # fmt: skip


@pytest.mark.gpu_compile
def test_a_tiny_run_on_gpus_of_two_hosts(capsys):
    """Decoding reads pages in place; the profile names lines of ours."""
    needs_gpu_compiler()
    arguments = ["plan", str(TINY), "--topology", "h100:2x1", "--mesh.data=2", "--stage=sample"]
    arguments += ["--engine.attention=triton", "--dtype=bfloat16"]
    assert main([*arguments, "--profile"]) == 0
    out = capsys.readouterr().out
    assert "network 50 GB/s" in out
    assert "times the least" in out
    assert "engine/attention/triton.py:" in out
    assert "gathers" in out


@pytest.mark.gpu_compile
def test_engines_with_divided_heads_gather_no_activations(capsys):
    """Layers are summed over the GPUs; only candidates for the next token are gathered."""
    needs_gpu_compiler()
    arguments = ["plan", str(TINY), "--topology", "h100:2", "--mesh.tensor=2", "--stage=sample"]
    arguments += ["--model.num_kv_heads=2", "--engine.attention=triton", "--dtype=bfloat16"]
    assert main([*arguments, "--sample.num_samples=1", "--json"]) == 0
    reading, decoding = json.loads(capsys.readouterr().out)["stages"][0]["programs"]
    assert set(reading["exchanges"]) == {"all-reduce"}
    gathered = decoding["exchanges"]["all-gather"]
    rows, candidate = 16, 4 + 4  # a token and its logit
    assert gathered["bytes"] == gathered["count"] * rows * candidate


@pytest.mark.tpu_compile
def test_what_does_not_fit_exits_with_1(capsys):
    needs_compiler()
    big = ["--model.d_model=8192", "--model.d_ff=32768", "--model.num_layers=16"]
    status = main(["plan", str(TINY), "--topology", "v5e:2x2", "--stage", "explore", *big])
    out = capsys.readouterr().out
    assert status == 1
    assert "explore: DOES NOT FIT" in out
    assert "to change: dtype: bfloat16" in out
