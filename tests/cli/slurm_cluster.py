"""A SLURM cluster of one node, with the daemons of Debian's packages, in a folder of a test.

apt-get install slurmctld slurmd slurm-client munge
"""

from __future__ import annotations

import os
import pathlib
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue")
_CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmdPort={node_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
MailProg=/bin/true
ReturnToService=2
SlurmdTimeout=3600
MessageTimeout=60
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def run(*command: str) -> str:
    """Runs a program of SLURM; returns what it printed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


def missing() -> str:
    """What a cluster lacks here; empty if nothing."""
    path = f"{os.environ['PATH']}{os.pathsep}/usr/sbin"
    absent = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if absent:
        return f"{', '.join(absent)}: apt-get install slurmctld slurmd slurm-client munge"
    return "" if os.geteuid() == 0 else "the daemons of SLURM run as root"


def started(folder: pathlib.Path) -> Iterator[None]:
    """Starts a cluster, and ends it; `SLURM_CONF` names it for clients."""
    if lacks := missing():
        pytest.skip(lacks)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o400)
    folder.chmod(0o755)
    config = folder / "slurm.conf"
    host = socket.gethostname().partition(".")[0]
    config.write_text(
        _CONFIG.format(host=host, folder=folder, port=_free_port(), node_port=_free_port())
    )
    files = {"key": "munge.key", "socket": "munge.socket", "pid": "munge.pid"} | {
        "log": "munge.log", "seed": "munge.seed"
    }  # fmt: skip
    options = [
        f"--{name}{'' if name == 'socket' else '-file'}={folder / file}"
        for name, file in files.items()
    ]
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(config)
    try:
        run("/usr/sbin/munged", "--force", *options)
        run("/usr/sbin/slurmctld", "-f", str(config))
        run("/usr/sbin/slurmd", "-f", str(config))
        wait_until(lambda: "idle" in run("sinfo", "--noheader", "--format=%t"))
        yield
    finally:
        subprocess.run(["scancel", "--user=root"], check=False)
        for name in ("slurmd", "slurmctld", "munge"):
            if (pid := folder / f"{name}.pid").exists():
                subprocess.run(["kill", pid.read_text().strip()], check=False)
        os.environ.pop("SLURM_CONF")
        if before is not None:
            os.environ["SLURM_CONF"] = before


def wait_until(true: Callable[[], object], seconds: float = 300) -> None:
    """Waits for something."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def state(job: str) -> str:
    """The state of a job, or those of an array's jobs."""
    lines = run("scontrol", "show", "job", job).splitlines()
    return " ".join(
        line.split()[0].partition("=")[2] for line in lines if line.strip().startswith("JobState=")
    )


def start_again(job: str) -> None:
    """Starts a job that was queued again; SLURM would wait for two minutes."""
    wait_until(lambda: "PENDING" in state(job))
    run("scontrol", "update", f"jobid={job}", "StartTime=now")
