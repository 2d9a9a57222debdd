"""`agentrm launch --dry-run`: what is printed for each place, and what is refused."""

from __future__ import annotations

import copy
import os
import pathlib
import shlex
import signal
import subprocess

import pytest
import yaml
from jobset_schema import JOBSET, mistakes
from launch_cases import CONFIG, ROOT, executable, rendered

from agentrm_jax.cli.main import main
from agentrm_jax.launch.job import parse_tpu
from agentrm_jax.launch.kinds import KINDS

NEEDED = {
    "jobset": ("--image=host/agentrm:1", "--volume=shared:/shared"),
    "skypilot": ("--volume=shared:/shared",),
    "tpu-pod": ("--name=pod", "--zone=zone-a"),
}
SHARED = ("jobset", "--image=host/agentrm:1", "--volume=shared:/shared")


@pytest.mark.parametrize("kind", KINDS)
def test_each_place_gets_the_same_worker_command(kind, capsys) -> None:
    text = rendered(capsys, kind, *NEEDED.get(kind, ()), "--seed=7")
    config = "/etc/agentrm/tiny.yaml" if kind == "jobset" else str(CONFIG)
    assert f"agentrm run {config} --output /shared/run --seed=7" in text
    assert "--leases" not in text
    if KINDS[kind].suffix == "sh":
        subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    else:
        assert len(list(yaml.safe_load_all(text))) == (2 if kind == "jobset" else 1)


@pytest.mark.parametrize(
    ("stage", "shared"),
    [("explore", "--leases.enabled=true"), ("run", "--leases.enabled=true")]
    + [(stage, "") for stage in ("sft", "train-rm", "train-implicit")],
)
@pytest.mark.parametrize("kind", ["processes", "slurm", "jobset", "skypilot", "ray"])
def test_searches_have_leases_and_training_is_joined(kind, stage, shared, capsys) -> None:
    text = rendered(capsys, kind, *NEEDED.get(kind, ()), "--hosts=3", "--stage", stage)
    assert ("--leases.enabled=true" in text) == bool(shared)
    assert ("coordinator=" in text or "--joined" in text) == (not shared)


def test_words_reach_the_worker_as_they_are(capsys, tmp_path, monkeypatch) -> None:
    """Blanks, quotes and dollars, through bash and once more through the shell of each TPU host."""
    words = ["--seed=3", "--trackers=[]", "--plugins=[it's a $HOME.py]"]
    executable(tmp_path / "bin" / "agentrm", '#!/bin/sh\nprintf "%s\\n" "$@"\n')
    run = """case $word in --command=*) bash -c "${word#--command=}" ;; esac"""
    executable(tmp_path / "bin" / "gcloud", f"#!/bin/bash\nfor word; do {run}; done\n")
    (tmp_path / "agentrm_jax").mkdir()
    environment = os.environ | {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "HOME": str(tmp_path)
    }  # fmt: skip
    (tmp_path / "it's a $HOME.py").write_text("")
    monkeypatch.chdir(tmp_path)
    for kind, extra in (("local", []), ("tpu-pod", ["--distributed.coordinator=auto"])):
        text = rendered(capsys, kind, *NEEDED.get(kind, ()), *words, output="/a b/run")
        done = subprocess.run(
            ["bash"], input=text, capture_output=True, text=True, env=environment, check=True
        )
        expected = ["run", str(CONFIG), "--output", "/a b/run", *words, *extra]
        assert done.stdout.splitlines() == expected


def jobset(capsys, *options: str) -> tuple[dict, dict]:
    text = rendered(capsys, *SHARED, *options)
    config_map, found = yaml.safe_load_all(text)
    assert list(mistakes(found, JOBSET)) == []
    assert config_map["data"] == {CONFIG.name: CONFIG.read_text()}
    return found, found["spec"]["replicatedJobs"][0]["template"]["spec"]


def test_a_jobset_restarts_searches_one_by_one_and_training_as_a_whole(capsys) -> None:
    search, job = jobset(capsys, "--stage=explore", "--hosts=5", "--gpus=nvidia-l4:1")
    assert search["spec"]["replicatedJobs"][0]["replicas"] == 5
    assert (job["parallelism"], job["backoffLimit"]) == (1, 100)
    assert search["spec"]["failurePolicy"] == {"maxRestarts": 0}
    pod = job["template"]["spec"]
    assert pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-l4"}
    assert pod["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": 1}

    training, job = jobset(capsys, "--stage=sft", "--hosts=5", "--gpus=8", "--queue=local")
    assert training["spec"]["replicatedJobs"][0]["replicas"] == 1
    assert (job["parallelism"], job["completions"], job["backoffLimit"]) == (5, 5, 0)
    assert training["spec"]["failurePolicy"]["maxRestarts"] > 0
    assert training["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "local"}
    script = job["template"]["spec"]["containers"][0]["args"][0]
    assert "--distributed.coordinator=agentrm-workers-0-0.agentrm:8476" in script
    assert "--distributed.num_processes=5" in script


def test_a_jobset_for_tpus_has_the_hosts_of_the_slice(capsys) -> None:
    _, job = jobset(capsys, "--stage=train-rm", "--tpu=v5p:2x4x4")
    pod = job["template"]["spec"]
    assert job["parallelism"] == 8
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": 4}
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
        "cloud.google.com/gke-tpu-topology": "2x4x4",
    }
    assert "--distributed.coordinator=auto" in pod["containers"][0]["args"][0]
    _, job = jobset(capsys, "--stage=explore", "--tpu=v5e:2x4", "--hosts=3")
    assert job["template"]["spec"]["containers"][0]["resources"]["limits"] == {"google.com/tpu": 8}


def test_the_schema_of_jobsets_finds_mistakes(capsys) -> None:
    found, _ = jobset(capsys, "--stage=sft", "--hosts=2")
    wrong = copy.deepcopy(found)
    job = wrong["spec"]["replicatedJobs"][0]["template"]["spec"]
    job["backofLimit"] = job.pop("backoffLimit")
    job["parallelism"] = "2"
    wrong["spec"]["failurePolicy"]["rules"][0]["action"] = "Fail"
    text = "\n".join(mistakes(wrong, JOBSET))
    assert text.count("\n") == 2
    assert ".backofLimit: is unknown" in text
    assert "'2' is no int" in text
    assert "'Fail' is not one of" in text


@pytest.mark.parametrize(
    ("topology", "hosts", "name"),
    [
        ("v5e:2x4", 1, "v5litepod-8"),
        ("v5e:4x8", 8, "v5litepod-32"),
        ("v6e:1x1", 1, "v6e-1"),
        ("v5p:2x2x1", 1, "v5p-8"),
        ("v5p:4x4x4", 16, "v5p-128"),
    ],
)
def test_slices_of_tpus(topology, hosts, name) -> None:
    tpu = parse_tpu(topology)
    assert (tpu.hosts, tpu.slice) == (hosts, name)


@pytest.mark.parametrize("stops", [True, False])
def test_a_pod_that_was_stopped_does_not_count_as_finished(stops, capsys, tmp_path) -> None:
    """`agentrm` ends with status 0 after SIGTERM, although work is left."""
    _, job = jobset(capsys, "--stage=explore")
    script = job["template"]["spec"]["containers"][0]["args"][0]
    worker = (
        "trap 'echo stopped; exit 0' TERM\necho begun\nsleep 60 &\nwait\n" if stops else "exit 2"
    )
    executable(tmp_path / "agentrm", f"#!/bin/bash\n{worker}")
    path = f"{tmp_path}:{os.environ['PATH']}"
    process = subprocess.Popen(
        ["bash", "-c", script], stdout=subprocess.PIPE, text=True, env=os.environ | {"PATH": path}
    )
    assert process.stdout is not None
    if stops:
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "stopped\n"
    assert process.wait(timeout=30) == (143 if stops else 2)


def test_skypilot_s_own_parser_reads_its_file(capsys) -> None:
    sky = pytest.importorskip("sky", reason="needs SkyPilot: pip install skypilot")
    for options in (("--stage=sft", "--hosts=2", "--gpus=H100:8"), ("--tpu=v5e:2x4",)):
        text = rendered(capsys, "skypilot", *NEEDED["skypilot"], *options)
        task = sky.Task.from_yaml_config(yaml.safe_load(text))
        assert task.num_nodes == (2 if "--hosts=2" in options else 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cloud"], "must be one of local, processes, slurm"),
        (["local", "--hosts=2"], "--hosts: not an option of local, which takes no such option"),
        (["slurm", "--zone=z"], "--zone: not an option of slurm, which takes --hosts, --mode"),
        (["jobset", "--volume=a:/b"], "--image is missing: jobset needs it"),
        (["slurm", "--stage=exlpore"], "--stage must be one of run, experts, sft, explore"),
        (["slurm", "--stage=calibrate"], "calibrate: not a stage of this configuration"),
        (["slurm", "--stage=label", "--hosts=2"], "--hosts must be 1: label runs in one process"),
        (["slurm", "--stage=sft", "--hosts=2", "--mode=leases"], "--mode must be joined"),
        (["slurm", "--gpus=many"], "--gpus must be N or TYPE:N, such as H100:8 (got 'many')"),
        (["ray", "--gpus=H100:2"], "--gpus: ray takes a number without a type"),
        (["skypilot", "--volume=a:/b", "--gpus=2"], "skypilot needs their type as well"),
        (["slurm", "--time=soon"], "--time must be MINUTES or HH:MM:SS (got 'soon')"),
        (["slurm", "--queue=a b"], "--queue must have no blanks, quotes or any of"),
        (["slurm", "--name=A_b"], "--name must be at most 40 lower-case letters"),
        (["slurm", "--leases.enabled=true"], "is set by launch; give --hosts and --mode instead"),
        (["slurm", "--distributed.coordinator=auto"], "is set by launch; give --hosts and --mode"),
        (["slurm", "--program=a\x07b"], "must be on one line"),
        (["slurm", "--sead=3"], "unknown key sead; did you mean seed?"),
        ([*SHARED, "--tpu=v5e:2x2x2"], "--tpu must be v5e:AxB, v6e:AxB or v5p:AxBxC"),
        ([*SHARED, "--tpu=v5e:3x3"], "its chips must be a multiple of 4"),
        (
            [*SHARED, "--tpu=v5e:4x4", "--mode=leases"],
            "--mode must be joined: a process with leases",
        ),
        ([*SHARED, "--tpu=v5e:4x4", "--hosts=3", "--stage=sft"], "--hosts must be 4"),
        ([*SHARED, "--tpu=v5e:2x2", "--gpus=1"], "--gpus cannot be given together with --tpu"),
        (["jobset", "--image=i", "--volume=shared"], "--volume must be NAME:/PATH"),
    ],
)
def test_mistakes_are_one_line(words, message, capsys) -> None:
    kind, *options = words
    arguments = ["launch", kind, str(CONFIG), "--output", "/shared/run", "--dry-run", *options]
    assert main(arguments) == 2
    written = capsys.readouterr()
    assert message in written.err
    assert written.err.count("\n") == 1
    assert not written.out


def test_object_stores_are_refused(capsys) -> None:
    for url in ("gs://bucket/run", "s3://bucket/run"):
        assert main(["launch", "slurm", str(CONFIG), "--output", url, "--dry-run"]) == 2
        assert "--leases.store=URL" in capsys.readouterr().err


def test_a_place_that_a_user_starts_says_so(capsys, tmp_path, monkeypatch) -> None:
    options = ["--output", "/shared/run", "--image=i", "--volume=a:/b"]
    assert main(["launch", "jobset", str(CONFIG), *options]) == 2
    assert "add --dry-run to print its yaml file" in capsys.readouterr().err
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["launch", "slurm", str(CONFIG), "--output", "/shared/run"]) == 2
    assert "sbatch is missing: start it on a host of the cluster" in capsys.readouterr().err


SHIPPED = sorted(p for p in (ROOT / "launch").iterdir() if p.suffix in (".sh", ".yaml"))


def command_of(path: pathlib.Path) -> list[str]:
    """The words of the command that a file in `launch/` says it is made by."""
    lines = path.read_text().splitlines()
    [line] = [line for line in lines if line.startswith("#   agentrm launch ")]
    return shlex.split(line.removeprefix("#   agentrm "))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_the_files_in_launch_are_up_to_date(path, capsys, monkeypatch) -> None:
    """If not: give the command in their first lines again, with `> launch/FILE` after it."""
    monkeypatch.chdir(ROOT)
    assert main(command_of(path)) == 0
    assert capsys.readouterr().out == path.read_text()


def test_there_is_a_file_in_launch_for_each_place() -> None:
    assert {command_of(path)[1] for path in SHIPPED} == set(KINDS)
    text = (ROOT / "launch" / "README.md").read_text()
    assert all(f"`{path.name}`" in text for path in SHIPPED)
