"""The ScienceWorld family: tasks and splits, episodes, forks, the expert, the Java process."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import EnvironmentFamily
from agentrm_jax.envs.pool import EnvPool
from agentrm_jax.envs.scienceworld import expert as scienceworld_expert
from agentrm_jax.envs.scienceworld import java as scienceworld_java
from agentrm_jax.envs.scienceworld.episode import ScienceWorldSimulator, simulators, was_done
from agentrm_jax.envs.scienceworld.family import ScienceWorld
from agentrm_jax.envs.scienceworld.patch import with_hash, with_memory
from agentrm_jax.envs.scienceworld.tasks import KINDS, simplifications, task, variations

FAMILY = ScienceWorld()
installed = pytest.mark.skipif(
    scienceworld_java.missing() is not None, reason=str(scienceworld_java.missing())
)
# Things of all sorts that an agent may say, most of which do something in most rooms.
SAYINGS = (
    "look around",
    "inventory",
    "wait1",
    "wait",
    "pick up thermometer",
    "open cupboard",
    "activate stove",
    "teleport to kitchen",
    "teleport to outside",
    "teleport to greenhouse",
    "teleport to art studio",
    "pick up cup",
    "1",
    "",
    "mix jug",
    "move metal pot to stove",
    "pour wood cup in jug",
    "no such thing",
)


def started(kind, number, max_steps=None):
    episode = FAMILY.create()
    return episode, episode.reset(task(kind, number, "train", max_steps))


# Tasks: without Java.


def test_the_family_is_one():
    assert isinstance(FAMILY, EnvironmentFamily)
    assert len(FAMILY.kinds()) == 30
    counts = FAMILY.counts()
    assert (counts["train"], counts["test"]) == (3592, 1819)


def test_splits_share_no_problem_and_hold_what_they_count():
    train, test = (FAMILY.tasks(s, kinds=FAMILY.kinds(), n=10_000) for s in ("train", "test"))
    assert (len(train), len(test)) == (3592, 1819)
    problems = [t.problem for t in train + test]
    assert len(set(problems)) == len(problems)
    assert len({t.task_id for t in train + test}) == len(problems)


def test_tasks_are_stable_even_and_begin_alike():
    kinds = ("boil", "identify-life-stages-2", "find-plant")
    short, long = (FAMILY.tasks("train", kinds=kinds, n=n) for n in (6, 30))
    assert long[:6] == short
    assert [sum(t.kind == kind for t in short) for kind in kinds] == [2] * 3
    assert sum(t.kind == "identify-life-stages-2" for t in long) == 4  # it has no more
    assert FAMILY.tasks("train", kinds=kinds, n=6, seed=1) != short


def test_unknown_kind_names_the_kinds():
    with pytest.raises(UserError, match=r"no kind 'boyl'.*boil"):
        FAMILY.tasks("train", kinds=["boyl"], n=1)


def paper_files(folder: Path, tasks, limits) -> None:
    (folder / "sciworld").mkdir()
    (folder / "sciworld" / "test_indices.json").write_text(json.dumps(tasks))
    (folder / "sciworld" / "max_steps.json").write_text(json.dumps(limits))


def test_paper_tasks_are_read_with_their_older_names(tmp_path, monkeypatch):
    names = {
        "task-1-boil": "boil",
        "task-2a-test-conductivity": "test-conductivity",
        "task-10-measure-melting-point-(known-substance)": "measure-melting-point-known-substance",
        "task-9-mendellian-genetics-(known-plant)": "mendelian-genetics-known-plant",
    }
    listed = [[name, 7] for name in names] + [["task-1-boil", 29]]
    paper_files(tmp_path, listed, dict.fromkeys(names, 11))
    monkeypatch.setenv("AGENTRM_DATA", str(tmp_path))
    tasks = FAMILY.tasks("paper", kinds=FAMILY.kinds(), n=100)
    assert {t.kind for t in tasks} == set(names.values())
    assert [t.spec["variation"] for t in tasks if t.kind == "boil"] == [7, 29]
    assert {t.max_steps for t in tasks} == {11}
    assert FAMILY.counts()["paper"] == 5


@pytest.mark.parametrize("listed", [{"a": 1}, [["task-1-boyl", 1]], [["task-1-boil", 30]], [1]])
def test_a_broken_paper_list_is_named(listed, tmp_path, monkeypatch):
    paper_files(tmp_path, listed, {"task-1-boil": 5})
    monkeypatch.setenv("AGENTRM_DATA", str(tmp_path))
    with pytest.raises(UserError, match=r"test_indices\.json"):
        FAMILY.tasks("paper", kinds=["boil"], n=1)


def test_a_missing_paper_list_says_where_it_is_had(tmp_path, monkeypatch):
    monkeypatch.setenv("AGENTRM_DATA", str(tmp_path))
    with pytest.raises(UserError, match=r"test_indices.json: not found; get it from .*ETO"):
        FAMILY.tasks("paper", kinds=["boil"], n=1)
    assert "paper" not in FAMILY.counts()


def test_the_real_paper_list():
    data = os.environ.get("AGENTRM_DATA")
    if not data or not Path(data, "sciworld").is_dir():
        pytest.skip("no sciworld folder in AGENTRM_DATA")
    tasks = FAMILY.tasks("paper", kinds=FAMILY.kinds(), n=1000)
    assert len(tasks) == FAMILY.counts()["paper"] == 211
    assert len({t.kind for t in tasks}) == 24
    train = FAMILY.tasks("train", kinds=FAMILY.kinds(), n=10_000)
    assert not {t.problem for t in tasks} & {t.problem for t in train}
    measured = json.loads(Path(data, "sciworld", "scienceworld_1.2.3_splits.json").read_text())
    assert {kind: len(variations(kind, "train")) for kind in KINDS} == {
        kind: counts["train"] for kind, counts in measured.items()
    }


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(scienceworld_java.importlib.util, "find_spec", lambda name: None)
    assert "pip install 'agentrm-jax[scienceworld]'" in str(FAMILY.missing())
    monkeypatch.setattr(scienceworld_java.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    assert "openjdk-17-jre-headless" in str(FAMILY.missing())
    with pytest.raises(UserError, match="openjdk-17-jre-headless"):
        scienceworld_java.Java()


@pytest.mark.parametrize("patch", [with_hash, with_memory])
def test_the_patches_want_the_classes_that_they_are_for(patch):
    with pytest.raises(ValueError, match="not a class file"):
        patch(b"PK\x03\x04")
    with pytest.raises(ValueError, match=r"1\.2\.3"):
        patch(empty_class("Other"))


def empty_class(name: str) -> bytes:
    pool = b"\x01" + len(name).to_bytes(2, "big") + name.encode() + b"\x07\x00\x01"
    return b"\xca\xfe\xba\xbe\x00\x00\x00\x34\x00\x03" + pool + b"\x00\x21\x00\x02" + bytes(10)


@pytest.mark.parametrize(
    ("said", "done"),
    [
        ("You move to the kitchen.", True),
        ("This room is called the kitchen. In it, you see: \n\tan apple", True),
        ("The cupboard is already open.", False),
        ("No known action matches that input.", False),
        ("Ambiguous request: Please enter the number for the action you intended", False),
        ("", False),
    ],
)
def test_what_was_done_is_read_from_the_answer(said, done):
    assert was_done(said) == done


def test_walks_become_teleports():
    path = [
        "look around", "open door to hall", "go to hall", "open door to bath", "go to bath",
        "look around", "pick up cup", "go to hall", "go to bath", "wait", "open door to hall",
    ]  # fmt: skip
    assert scienceworld_expert.shortened(path) == [
        "look around", "teleport to bath", "look around", "pick up cup", "teleport to bath",
        "wait", "open door to hall",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("action", "thought"),
    [
        ("teleport to kitchen", "I go on to the kitchen."),
        ("move cup to sink", "Cup has to be in sink."),
        ("3", "The game asks which one I mean: number 3."),
        ("dance", "Next I dance."),
    ],
)
def test_thoughts(action, thought):
    assert scienceworld_expert.thought(action) == thought


# The game itself.


@installed
def test_the_library_has_these_tasks_and_variations():
    java = scienceworld_java.java()
    assert {kind: java.variations(kind) for kind in KINDS} == {
        kind: known.variations for kind, known in KINDS.items()
    }
    kind = "identify-life-stages-1"  # 14 do not divide by 4
    train, dev, test = java.splits(kind)
    assert train == list(variations(kind, "train"))
    assert test == list(variations(kind, "test"))
    assert not set(dev) & {*train, *test}


@installed
def test_the_parser_with_a_memory_finds_the_words_that_it_found_without():
    parser = scienceworld_java._singleton(
        scienceworld_java.java()._gateway.jvm, "scienceworld.input.InputParser$"
    )
    for text in ("the cup in a  drawer", "", " a ", "flower pot 3", "the cup in a  drawer"):
        assert list(parser.tokenize(text)) == list(parser.tokenize2(text))


@installed
def test_the_worked_example_is_a_real_episode():
    prompt = FAMILY.prompt()
    episode, text = started("find-non-living-thing", 0)
    assert text == prompt.example[0]
    total = 0.0
    for reply, answer in zip(prompt.example[1::2], prompt.example[2::2], strict=True):
        transition = episode.step(reply.partition("\nAction: ")[2])
        assert transition.observation == answer
        total += transition.reward
    assert transition.success
    assert total == pytest.approx(1.0)


@installed
def test_the_best_score_counts_and_a_wrong_focus_ends_the_episode():
    episode, text = started("lifespan-longest-lived", 1)
    assert text.startswith("Your task is to find the animal with the longest life span.")
    first = episode.step("teleport to outside")
    assert (first.reward, first.done) == (0.5, False)
    wrong = episode.step("focus on axe")
    assert (wrong.reward, wrong.done, wrong.success) == (0.0, True, False)


@installed
def test_containers_are_open_but_where_bees_matter():
    episode, _ = started("boil", 0)
    episode.step("teleport to greenhouse")
    assert "The bee hive door is open" in episode.step("look around").observation
    episode, _ = started("grow-fruit", 0)
    episode.step("teleport to greenhouse")
    assert "The bee hive door is closed" in episode.step("look around").observation


@installed
@pytest.mark.parametrize(
    ("action", "answer"),
    [
        ("", "No known action"),
        ("open the pod bay doors", "No known action"),
        ("look\x00around\n\ud800", "No known action"),
        ("teleport to " + "kitchen " * 5000, "No known action"),
        ("Thought: x\nAction: y", "No known action"),
    ],
)
def test_impossible_actions_are_answered(action, answer):
    episode, _ = started("boil", 0)
    transition = episode.step(action)
    assert transition.observation.startswith(answer)
    assert (transition.valid, transition.reward, transition.done) == (False, 0.0, False)


@installed
def test_help_objects_and_task_are_answered():
    episode, text = started("boil", 0)
    assert episode.step("task").observation == f"Task description:\n{text}"
    assert "\n\tteleport OBJ" in episode.step(" Help ").observation
    assert "\n\t" in episode.step("objects").observation


@installed
def test_steps_run_out():
    episode, _ = started("melt", 3, max_steps=3)
    assert [episode.step(a).done for a in ("help", "wait1", "nonsense")] == [False, False, True]


@installed
def test_a_fork_answers_as_the_original_and_stays_apart():
    rng = random.Random(5)
    for kind, number in (("grow-fruit", 3), ("test-conductivity", 2)):
        episode, _ = started(kind, number)
        for _ in range(4):
            episode.step(rng.choice(SAYINGS))
        script = [rng.choice(SAYINGS) for _ in range(6)]
        left, right = episode.fork(), episode.fork()
        both = [(left.step(a), right.step(a)) for a in script]  # in turn: worlds are swapped
        assert all(one == other for one, other in both)
        left.step("teleport to foundry")
        assert right.step("look around") == episode_after(episode, [*script, "look around"])


def episode_after(episode, script):
    other = episode.fork()
    return [other.step(action) for action in script][-1]


@installed
def test_worlds_side_by_side_answer_as_each_alone():
    """What the game keeps outside a world is put in its place before each action."""
    names = [("grow-plant", 4), ("mendelian-genetics-known-plant", 2), ("power-component", 1)]
    rng = random.Random(7)
    scripts = {name: [rng.choice(SAYINGS) for _ in range(15)] for name in names}

    def worlds():
        found = {}
        for kind, number in names:
            found[kind, number] = ScienceWorldSimulator()
            found[kind, number].reset(task(kind, number, "train"))
        return found

    alone = {}
    for name, world in worlds().items():
        alone[name] = [world.step(action) for action in scripts[name]]
    together = worlds()
    mixed = {name: [] for name in names}
    for place in range(15):
        for name in names:
            mixed[name].append(together[name].step(scripts[name][place]))
    assert mixed == alone


@installed
def test_forks_that_play_again_are_counted_and_checked():
    episode, _ = started("chemistry-mix", 1)
    episode.step("teleport to kitchen")
    before = simulators().replayed
    first, second = episode.fork(), episode.fork()
    first.step("wait1")
    assert simulators().replayed == before  # it took over the world that stood there
    second.step("wait1")
    assert simulators().replayed == before + 1


@installed
@pytest.mark.parametrize(
    "kind",
    ["lifespan-longest-lived-then-shortest-lived", "chemistry-mix-paint-secondary-color"],
)
def test_the_expert_succeeds(kind):
    each = FAMILY.tasks("test", kinds=[kind], n=1)[0]
    turns = FAMILY.demonstrate(each)
    assert turns is not None
    episode = FAMILY.create()
    episode.reset(each)
    transitions = [episode.step(turn.action) for turn in turns]
    assert transitions[-1].success
    assert sum(t.reward for t in transitions) == pytest.approx(1.0)
    assert not any(t.done for t in transitions[:-1])


@installed
def test_the_expert_gives_up_where_there_are_too_few_steps():
    assert FAMILY.demonstrate(task("find-plant", 3, "train", max_steps=1)) is None


@installed
def test_workers_play_as_this_process_does_under_their_limit_of_memory():
    tasks = FAMILY.tasks("train", kinds=["melt", "find-animal"], n=2)
    script = ["teleport to kitchen", "look around", "pick up thermometer"]
    pools = [EnvPool(workers=0), EnvPool(workers=1, step_seconds=120.0)]
    seen = []
    for pool in pools:
        handles, texts = zip(*pool.reset(tasks), strict=True)
        answers = [texts]
        for action in script:
            branched = pool.branch([(handle, action) for handle in handles])
            handles, transitions = zip(*branched, strict=True)
            answers.append(transitions)
        seen.append(answers)
        pool.close()
    assert seen[0] == seen[1]


_HOLDER = """
import sys, time
from agentrm_jax.envs.scienceworld.java import java
print(java()._process.pid, flush=True)
time.sleep(100)
"""


@installed
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_java_dies_with_its_process(how):
    holder = subprocess.Popen([sys.executable, "-c", _HOLDER], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    pid = int(holder.stdout.readline())
    assert alive(pid)
    holder.send_signal(how)
    holder.wait()
    holder.stdout.close()
    for _ in range(200):
        if not alive(pid):
            break
        time.sleep(0.1)
    assert not alive(pid)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@installed
def test_a_java_that_ended_is_replaced():
    episode, text = started("freeze", 2)
    old = scienceworld_java.java()
    old.close()
    assert not old.running
    with pytest.raises(Exception, match=r"connect|Java"):
        episode.step("look around")
    again, same = started("freeze", 2)
    assert same == text
    assert again.step("look around").valid


@installed
def test_a_worker_needs_no_jax_and_prints_nothing():
    code = (
        "import sys; from agentrm_jax.envs.scienceworld.family import ScienceWorld as S; f = S();"
        "t = f.tasks('train', kinds=['boil'], n=1)[0]; e = f.create(); e.reset(t); e.step('wait1');"
        "sys.exit('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_simplifications_by_kind():
    assert "noElectricalAction" in simplifications("boil")
    assert "noElectricalAction" not in simplifications("power-component")
    assert "openContainers" not in simplifications("grow-fruit")
