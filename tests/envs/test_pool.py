"""The pool against a plain sum, with environments that misbehave on demand."""

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import EnvironmentFailure
from agentrm_jax.core.records import Task, Transition
from agentrm_jax.envs.pool import EnvPool
from agentrm_jax.envs.registry import load_family

SOURCE = '''
import os, subprocess, sys, time
from pathlib import Path
from agentrm_jax.core.errors import UserError
from agentrm_jax.core.records import Transition


class Sums:
    """`add N` adds N to a sum; other actions misbehave."""

    name = "sums"
    pooled = True
    metric = "sum"
    def missing(self): return None
    def counts(self): return {}
    def kinds(self): return ("only",)
    def tasks(self, split, *, kinds, n, seed=0): return []
    def prompt(self): ...
    def create(self): return Episode()
    def demonstrate(self, task): return None


class HereOnly(Sums):
    name = "here-only"
    pooled = False


class Episode:
    def __init__(self, total=0):
        self.total = total

    def reset(self, task):
        self.total = task.spec["start"]
        if "reset" in task.spec:
            return self.misbehave(*task.spec["reset"].split(" "))
        return f"start {self.total}"

    def fork(self):
        return Episode(self.total)

    def step(self, action):
        word, _, rest = action.partition(" ")
        if word == "add":
            self.total += int(rest)
            return Transition(observation=f"sum {self.total}", reward=self.total / 1e6,
                              done=False, success=False, valid=True)
        self.total += 1000  # a misdeed leaves its mark
        answer = self.misbehave(word, rest)
        if isinstance(answer, str):
            return Transition(observation=answer, reward=0.0, done=False, success=False)
        return answer

    def misbehave(self, word, rest=""):
        if word.startswith("once-"):  # the file remembers that it was done
            if Path(rest).exists():
                return "calm"
            Path(rest).write_text("done")
            return self.misbehave(word.removeprefix("once-"))
        return getattr(self, word)(rest)

    def throw(self, _): raise ValueError("first line\\nsecond line")
    def quit(self, _): sys.exit(3)
    def hang(self, _): time.sleep(1000)
    def spin(self, _): return sum(range(10**15))  # in C, and never lets go of the GIL
    def die(self, _): os._exit(7)
    def crash(self, _): os.kill(os.getpid(), 11)
    def hoard(self, _): return str(len(bytearray(4 * 2**30)))
    def complain(self, _): raise UserError("sums: put the file where it belongs")
    def wait(self, seconds): time.sleep(float(seconds)); return "waited"
    def talk(self, _): print("to whoever listens", flush=True); return "talked"
    def modules(self, _): return " ".join(sys.modules)
    def pid(self, _): return str(os.getpid())
    def note(self, file): Path(file).write_text(str(os.getpid())); return "noted"
    def nothing(self, _): return None
    def text(self, _): return [b"bytes"]
    def strange(self, _): return "\\ud800 \\u2028 \\n \\x00 \\u00e9"
    def nan(self, _):
        nan = float("nan")
        return Transition(observation="", reward=nan, done=False, success=False)
    def octets(self, _): return Transition(observation=b"", reward=0.0, done=False, success=False)
    def truth(self, _): return Transition(observation="", reward=0.0, done=1, success=False)
    def child(self, _): return str(subprocess.Popen(["sleep", "1000"]).pid)
'''


@pytest.fixture(scope="module", autouse=True)
def environments(tmp_path_factory):
    """A distribution of its own that registers the environments above."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "agentrm_test_sums.py").write_text(SOURCE)
    info = folder / "agentrm_test_sums-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: agentrm-test-sums\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[agentrm_jax.environments]\n"
        "sums = agentrm_test_sums:Sums\nhere-only = agentrm_test_sums:HereOnly\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        load_family.cache_clear()
        yield folder
    load_family.cache_clear()


@pytest.fixture
def pools():
    """Makes pools that are closed in the end."""
    made = []

    def make(workers=0, **options):
        made.append(EnvPool(workers=workers, **options))
        return made[-1]

    yield make
    for pool in made:
        pool.close()


def task(start=0, environment="sums", **spec):
    return Task(
        environment=environment,
        task_id=f"{environment}/only/{start}",
        kind="only",
        split="train",
        problem="0",
        max_steps=100,
        spec={"start": start, **spec},
    )


def begin(pool, *starts):
    """Handles of new episodes."""
    answers = pool.reset([task(start) for start in starts])
    assert [text for _, text in answers] == [f"start {start}" for start in starts]
    return [handle for handle, _ in answers]


def alive(pid):
    """Whether a process runs; one that ended and only waits to be collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(pids, within=10.0):
    end = time.monotonic() + within
    while any(alive(pid) for pid in pids) and time.monotonic() < end:
        time.sleep(0.02)
    return not any(alive(pid) for pid in pids)


linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_random_play_equals_plain_sums(pools, workers):
    pool, draw, sums = pools(workers), random.Random(workers), {}
    for _ in range(40):
        starts = [draw.randrange(100) for _ in range(draw.randrange(4))]
        for start, (handle, text) in zip(
            starts, pool.reset([task(s) for s in starts]), strict=True
        ):
            assert handle not in sums
            assert text == f"start {start}"
            sums[handle] = start
        picked = [(h, draw.randrange(9)) for h in draw.choices([*sums], k=7)] if sums else []
        requests = [(handle, f"add {n}") for handle, n in picked]
        if draw.random() < 0.5:
            for (handle, n), (new, transition) in zip(picked, pool.branch(requests), strict=True):
                assert new not in sums
                sums[new] = sums[handle] + n
                assert transition == Transition(
                    observation=f"sum {sums[new]}",
                    reward=sums[new] / 1e6,
                    done=False,
                    success=False,
                )
        else:
            for (handle, n), transition in zip(picked, pool.step(requests), strict=True):
                sums[handle] += n
                assert transition.observation == f"sum {sums[handle]}"
        released = draw.sample([*sums], k=len(sums) // 4)
        pool.release(released)
        for handle in released:
            del sums[handle]


def test_episodes_spread_over_workers_and_forks_stay(pools, tmp_path):
    pool = pools(2)
    handles = begin(pool, 1, 2, 3, 4)
    pids = [t.observation for t in pool.step([(h, "pid") for h in handles])]
    assert sorted(map(pids.count, set(pids))) == [2, 2]
    forks = pool.branch([(h, "pid") for h in handles])
    assert [t.observation for _, t in forks] == pids
    pool.release([h for h, pid in zip(handles, pids, strict=True) if pid == pids[0]])
    pool.release([f for (f, t) in forks if t.observation == pids[0]])
    newer = begin(pool, 5, 6)
    assert {t.observation for t in pool.step([(h, "pid") for h in newer])} == {pids[0]}


def test_workers_work_in_parallel(pools):
    pool = pools(4)
    handles = begin(pool, 1, 2, 3, 4)
    started = time.monotonic()
    pool.step([(handle, "wait 0.5") for handle in handles])
    assert time.monotonic() - started < 1.5  # one after the other takes 2


def test_the_deadline_is_for_each_request(pools):
    pool = pools(1, step_seconds=1.0)
    handles = begin(pool, 1, 2, 3, 4)
    (before,) = pool.step([(handles[0], "pid")])
    answers = pool.step([(handle, "wait 0.4") for handle in handles])
    assert [answer.observation for answer in answers] == ["waited"] * 4
    assert pool.step([(handles[0], "pid")]) == [before]  # no worker was killed and replaced


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("action", "what"),
    [
        ("throw", "step 1: ValueError: first line second line"),
        ("quit", "SystemExit: 3"),
        ("nothing", "step 1: step must return a Transition (got None)"),
        ("text", "step 1: step must return a Transition (got list)"),
        ("nan", "step 1: reward must be a finite number (got nan)"),
        ("octets", "step 1: observation must be a str (got bytes)"),
        ("truth", "step 1: done must be True or False (got 1)"),
    ],
)
def test_a_misdeed_fails_its_own_handle_only(pools, workers, action, what):
    pool = pools(workers)
    good, bad = begin(pool, 1, 2)
    transition, failure = pool.step([(good, "add 1"), (bad, action)])
    assert transition.observation == "sum 2"
    assert what in failure.reason
    assert "environment 'sums', task 'sums/only/2'" in failure.reason
    assert "\n" not in failure.reason
    again, dead = pool.step([(good, "add 1"), (bad, "add 1")])
    assert again.observation == "sum 3"
    assert dead == failure
    assert pool.branch([(bad, "add 1")]) == [failure]


FATAL = [
    ("hang", "no answer within 0.7 s"),
    ("spin", "no answer within 0.7 s"),
    ("die", "the worker exited with status 7"),
    ("crash", "the worker died of SIGSEGV"),
]


@pytest.mark.parametrize(("action", "what"), FATAL)
def test_a_lost_worker_costs_its_culprit_only(pools, action, what):
    """A fork that kills is given up; its parent, siblings and neighbours go on as they were."""
    pool = pools(1, step_seconds=0.7)
    parent, neighbour = begin(pool, 10, 20)
    pool.step([(parent, "add 1"), (neighbour, "add 2")])
    before, failure, after, beside = pool.branch(
        [(parent, "add 5"), (parent, action), (parent, "add 6"), (neighbour, "add 7")]
    )
    assert what in failure.reason
    assert [t.observation for _, t in (before, after, beside)] == ["sum 16", "sum 17", "sum 29"]
    forks = [handle for handle, _ in (before, after, beside)]
    answers = pool.step([(h, "add 100") for h in (*forks, parent, neighbour)])
    assert [t.observation for t in answers] == [
        "sum 116", "sum 117", "sum 129", "sum 111", "sum 122",
    ]  # fmt: skip


@pytest.mark.parametrize("workers", [0, 1])
def test_a_fork_that_raises_leaves_its_parent(pools, workers):
    pool = pools(workers)
    (parent,) = begin(pool, 1)
    failure, (_, transition) = pool.branch([(parent, "throw"), (parent, "add 1")])
    assert isinstance(failure, EnvironmentFailure)
    assert transition.observation == "sum 2"
    assert pool.step([(parent, "add 5")])[0].observation == "sum 6"


@pytest.mark.parametrize("misdeed", ["throw", "quit", "nan", "hang", "die", "crash"])
def test_what_happens_once_is_mended(pools, tmp_path, misdeed):
    """The second attempt starts from a clean replay, without the first one's marks."""
    pool = pools(1, step_seconds=0.7)
    (handle,) = begin(pool, 1)
    pool.step([(handle, "add 1")])
    (answer,) = pool.step([(handle, f"once-{misdeed} {tmp_path / 'done'}")])
    assert answer.observation == "calm"
    assert pool.step([(handle, "add 1")])[0].observation == "sum 1003"  # the calm one's own mark


def test_order_within_a_batch_survives_a_fault(pools, tmp_path):
    pool = pools(1)
    (handle,) = begin(pool, 0)
    answers = pool.step(
        [(handle, "add 1"), (handle, f"once-throw {tmp_path / 'x'}"), (handle, "add 1")]
    )
    assert [answer.observation for answer in answers] == ["sum 1", "calm", "sum 1002"]


@pytest.mark.parametrize(("misdeed", "what"), [*FATAL, ("throw", "ValueError"), ("nothing", "str")])
def test_a_reset_that_fails(pools, misdeed, what):
    pool = pools(1, step_seconds=0.7)
    failure, good = pool.reset([task(1, reset=misdeed), task(2)])
    assert what in failure.reason
    assert pool.step([(good[0], "add 1")])[0].observation == "sum 3"


def test_killed_between_calls_is_rebuilt_unnoticed(pools, tmp_path):
    pool, note = pools(2), tmp_path / "pid"
    sums, draw = dict.fromkeys(begin(pool, 0, 0, 0, 0), 0), random.Random(0)
    for _ in range(4):
        for handle in sums:
            n = draw.randrange(100)
            sums[handle] += n
            assert pool.step([(handle, f"add {n}")])[0].observation == f"sum {sums[handle]}"
        victim = draw.choice([*sums])
        pool.release([pool.branch([(victim, f"note {note}")])[0][0]])
        os.kill(int(note.read_text()), signal.SIGKILL)
    answers = pool.branch([(handle, "add 1") for handle in sums])
    assert [t.observation for _, t in answers] == [f"sum {total + 1}" for total in sums.values()]


def test_a_replay_that_differs_is_given_up(pools):
    pool = pools(1)
    honest, fickle = begin(pool, 1, 2)
    (answer,) = pool.step([(fickle, "pid")])  # another process will answer otherwise
    os.kill(int(answer.observation), signal.SIGKILL)
    transition, failure = pool.step([(honest, "add 1"), (fickle, "add 1")])
    assert transition.observation == "sum 2"
    assert "replay differs" in failure.reason
    assert pool.step([(fickle, "add 1")]) == [failure]


def test_memory_is_limited_in_a_worker(pools):
    pool = pools(1, memory_gib=1.0)
    good, greedy = begin(pool, 1, 2)
    transition, failure = pool.step([(good, "add 1"), (greedy, "hoard")])
    assert transition.observation == "sum 2"
    assert "MemoryError" in failure.reason


def test_a_worker_that_cannot_start(pools, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(UserError, match="cannot start: the worker exited with status 1"):
        pools(1).reset([task(1)])


@pytest.mark.parametrize("workers", [0, 1])
def test_what_the_user_can_mend_is_raised(pools, workers):
    pool = pools(workers)
    with pytest.raises(UserError, match=r"^sums: put the file where it belongs$"):
        pool.reset([task(1, reset="complain")])
    with pytest.raises(UserError, match="not registered"):
        pool.reset([task(1, environment="no-such")])


def test_texts_arrive_as_valid_unicode_from_anywhere(pools):
    here, there = pools(0), pools(1)
    answers = [pool.step([(begin(pool, 1)[0], "strange")])[0] for pool in (here, there)]
    assert answers[0] == answers[1]
    assert answers[0].observation == "\ufffd \u2028 \n \x00 \u00e9"
    (noisy,) = there.step([(begin(there, 1)[0], "talk")])
    assert noisy.observation == "talked"


def test_large_messages(pools):
    """Neither side may wait for the other to read while it writes."""
    pool = pools(1)
    (handle,) = begin(pool, 0)
    answers = pool.branch([(handle, "add " + "0" * 2000 + str(i)) for i in range(2000)])
    assert [t.observation for _, t in answers] == [f"sum {i}" for i in range(2000)]


def test_cheap_families_stay_in_this_process(pools):
    pool = pools(2)
    answers = pool.reset([task(1, environment="here-only"), task(2)])
    mine, other = [t.observation for t in pool.step([(h, "pid") for h, _ in answers])]
    assert int(mine) == os.getpid() != int(other)


def test_a_worker_has_no_jax(pools):
    pool = pools(1)
    wanted = [task(1)]
    if "minigrid" in sys.modules or _importable("minigrid"):
        family = load_family("babyai")
        wanted += family.tasks("train", kinds=["OpenDoor"], n=1)
    (handle, _), *_ = pool.reset(wanted)
    modules = pool.step([(handle, "modules")])[0].observation.split(" ")
    assert "agentrm_test_sums" in modules
    assert ("minigrid" in modules) == (len(wanted) == 2)
    assert not {"jax", "jaxlib", "flax", "torch"} & set(modules)


def _importable(name):
    import importlib.util

    return importlib.util.find_spec(name) is not None


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"workers": -1}, r"workers must be at least 0 \(got -1\)"),
        ({"workers": 1, "step_seconds": 0.0}, r"step_seconds must .* \(got 0.0\)"),
        ({"workers": 1, "step_seconds": float("nan")}, r"step_seconds must .* \(got nan\)"),
        ({"workers": 1, "memory_gib": 0.0}, r"memory_gib must .* \(got 0.0\)"),
    ],
)
def test_options_out_of_range(options, what):
    with pytest.raises(UserError, match=what):
        EnvPool(**options)


@linux
def test_close_ends_workers_and_their_children(pools):
    pool = pools(2)
    handles = begin(pool, 1, 2)
    pids = [int(t.observation) for t in pool.step([(h, "pid") for h in handles])]
    pids += [int(t.observation) for t in pool.step([(h, "child") for h in handles])]
    assert all(map(alive, pids))
    pool.close()
    pool.close()
    assert gone(pids)


def test_interrupted_in_the_middle_it_goes_on(pools):
    """Ctrl-C while waiting: late answers are not taken for those of the next call."""
    pool = pools(1)
    one, two = begin(pool, 1, 2)
    handler = signal.signal(signal.SIGALRM, _interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(KeyboardInterrupt):
            pool.step([(one, "wait 0.6")])
    finally:
        signal.signal(signal.SIGALRM, handler)
    answers = pool.step([(two, "add 5"), (one, "add 5")])
    assert [answer.observation for answer in answers] == ["sum 7", "sum 6"]


def _interrupt(number, frame):
    raise KeyboardInterrupt


PROGRAM = """
import json, sys
sys.path.insert(0, SITE)
from agentrm_jax.core.records import Task
from agentrm_jax.envs.pool import EnvPool
print("main", flush=True)  # no __main__ guard: a worker must not run this file
pool = EnvPool(workers=2)
tasks = [Task(environment="sums", task_id=str(i), kind="only", split="train", problem="0",
              max_steps=9, spec={"start": i}) for i in range(2)]
handles = [handle for handle, _ in pool.reset(tasks)]
print(json.dumps([t.observation for t in pool.step([(h, "pid") for h in handles])]), flush=True)
LAST
"""


def program(tmp_path, environments, last):
    """Starts a program with a pool; returns it and the process ids of its workers."""
    file = tmp_path / "program.py"
    # A shell has its background jobs ignore SIGINT, and so would the program.
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    file.write_text(heard + PROGRAM.replace("SITE", repr(str(environments))).replace("LAST", last))
    running = subprocess.Popen(
        [sys.executable, str(file)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert running.stdout is not None
    assert running.stdout.readline() == "main\n"
    return running, [int(pid) for pid in json.loads(running.stdout.readline())]


SPIN = "pool.step([(handles[0], 'spin'), (handles[1], 'hang')])"


@linux
@pytest.mark.parametrize(
    ("last", "number"),
    [
        ("", None),
        ("raise ValueError('the program fails')", None),
        (SPIN, signal.SIGINT),
        (SPIN, signal.SIGTERM),
        (SPIN, signal.SIGKILL),
    ],
)
def test_no_worker_outlives_its_parent(tmp_path, environments, last, number):
    running, pids = program(tmp_path, environments, textwrap.dedent(last))
    if number is not None:
        time.sleep(0.3)  # now the workers are busy, one of them deaf
        assert all(map(alive, pids))
        running.send_signal(number)
    rest, _ = running.communicate(timeout=20)
    assert rest == ""
    assert gone(pids)
