"""Workers that die, stop or give up, in a simulated place and as processes of this machine."""

from __future__ import annotations

import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

import pytest

from agentrm_jax.launch.process_place import ProcessPlace
from agentrm_jax.launch.workers import Supervisor, Team, main


class Simulated:
    """A place without processes: at each step, workers end as planned.

    Args:
      plan: The exit status of each start of each worker; None if it runs until it is stopped.
    """

    def __init__(self, plan: dict[int, list[int | None]]) -> None:
        self.plan, self.now = {number: list(each) for number, each in plan.items()}, 0.0
        self.running: dict[int, int | None] = {}
        self.starts: list[tuple[float, int, tuple[str, ...]]] = []
        self.stopped: list[int] = []
        self.killed: list[int] = []
        self.deaf = False

    def address(self) -> str:
        return f"host:{len(self.starts)}"

    def start(self, number: int, command: Sequence[str]) -> None:
        assert number not in self.running
        self.starts.append((self.now, number, tuple(command)))
        self.running[number] = self.plan[number].pop(0)

    def ended(self, seconds: float) -> dict[int, int]:
        self.now += seconds
        ended = {number: status for number, status in self.running.items() if status is not None}
        for number in ended:
            del self.running[number]
        return ended

    def stop(self, number: int) -> None:
        self.stopped.append(number)
        if not self.deaf:
            self.running[number] = 0

    def kill(self, number: int) -> None:
        self.killed.append(number)
        del self.running[number]

    def close(self) -> None:
        pass


def ran(place: Simulated, team: Team) -> int:
    status = Supervisor(place, team, lambda line: None, lambda: place.now).run()
    assert not place.running
    return status


def test_a_worker_that_dies_starts_again_by_itself() -> None:
    place = Simulated({0: [0], 1: [-9, 1, 0], 2: [0]})
    assert ran(place, Team(command=("work",), count=3)) == 0
    assert [number for _, number, _ in place.starts] == [0, 1, 2, 1, 1]
    assert all(command == ("work",) for *_, command in place.starts)
    (first, second, third) = (when for when, number, _ in place.starts if number == 1)
    assert 1 <= second - first < third - second


def test_joined_workers_start_again_all_together_at_another_address() -> None:
    place = Simulated({0: [None, 0], 1: [-9, 0]})
    assert ran(place, Team(command=("work",), count=2, joined=True)) == 0
    assert [number for _, number, _ in place.starts] == [0, 1, 0, 1]
    assert place.stopped == [0]
    addresses = {command[1].partition("=")[2] for *_, command in place.starts}
    assert addresses == {"host:0", "host:2"}
    assert place.starts[1][2][2:] == (
        "--distributed.num_processes=2",
        "--distributed.process_id=1",
    )


def test_one_joined_worker_needs_no_address() -> None:
    place = Simulated({0: [0]})
    assert ran(place, Team(command=("work",), count=1, joined=True)) == 0
    assert place.starts[0][2] == ("work",)


@pytest.mark.parametrize("joined", [False, True])
def test_wrong_input_ends_all_at_once(joined) -> None:
    place = Simulated({0: [2], 1: [None]})
    assert ran(place, Team(command=("work",), count=2, joined=joined)) == 2
    assert place.stopped == [1]


@pytest.mark.parametrize("joined", [False, True])
def test_restarts_have_a_limit_and_a_worker_that_does_not_stop_is_killed(joined) -> None:
    place = Simulated({0: [1] * 9, 1: [None] * 9})
    place.deaf = True
    assert ran(place, Team(command=("work",), count=2, restarts=2, joined=joined)) == 1
    assert sum(number == 0 for _, number, _ in place.starts) == 3
    assert place.killed == [1] * (3 if joined else 1)


def test_a_worker_killed_by_a_signal_gives_the_status_of_a_shell() -> None:
    assert ran(Simulated({0: [-9]}), Team(command=("work",), count=1, restarts=0)) == 137


def alive(pid: int) -> bool:
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return state.rpartition(")")[2].split()[0] != "Z"


def test_processes_are_started_again_and_see_their_own_gpus(tmp_path) -> None:
    script = 'echo "$CUDA_VISIBLE_DEVICES" >>"$0"; ! mkdir "$0.first" 2>/dev/null'  # one fails
    log = tmp_path / "log"
    command = ["bash", "-c", script, str(log)]
    assert main(["--place=processes", "--count=2", "--gpus=2", "--", *command]) == 0
    lines = log.read_text().splitlines()
    assert sorted(set(lines)) == ["0,1", "2,3"]
    assert len(lines) == 3


@pytest.mark.skipif(sys.platform != "linux", reason="a process gets no signal with its parent")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_the_supervisor_reaches_the_workers(number, tmp_path) -> None:
    ends = f"trap 'echo stopped >>{tmp_path}/log; exit 0' TERM"
    script = f"{ends}; echo $$ >>{tmp_path}/pids; sleep 60 & wait"
    words = ["--place=processes", "--count=2", "--", "bash", "-c", script]
    process = subprocess.Popen([sys.executable, "-m", "agentrm_jax.launch.workers", *words])
    pids, deadline = tmp_path / "pids", time.monotonic() + 60
    while not pids.exists() or pids.read_text().count("\n") < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(timeout=60) == (0 if number == signal.SIGTERM else -number)
    while any(alive(int(pid)) for pid in pids.read_text().split()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert (tmp_path / "log").read_text() == "stopped\n" * 2


def test_what_is_left_is_ended_when_the_place_is_closed() -> None:
    place = ProcessPlace(Team(command=(), count=1))
    place.start(0, ["sleep", "60"])
    process = place._processes[0]
    place.close()
    assert process.returncode == -signal.SIGKILL


def test_supervisors_import_no_jax() -> None:
    program = "import sys, agentrm_jax.launch.ray_place; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_command_is_required(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["--place=processes", "--count=1"])
    assert "the worker command is missing" in capsys.readouterr().err


def test_ray_is_an_extra(monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["--place=ray", "--count=1", "--", "true"]) == 2
    assert "ray is missing: pip install 'agentrm-jax[ray]'" in capsys.readouterr().err
