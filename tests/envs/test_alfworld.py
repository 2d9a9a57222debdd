"""The ALFWorld family: its games, the library's own texts, tasks and splits, the experts, forks."""

import collections
import io
import multiprocessing
import os
import random
import re
import subprocess
import sys
import tarfile

import pytest

pytest.importorskip("alfworld")
pytest.importorskip("fast_downward")

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import EnvironmentFamily
from agentrm_jax.envs.alfworld import files as alfworld_files
from agentrm_jax.envs.alfworld import game as alfworld_game
from agentrm_jax.envs.alfworld import tasks as alfworld_tasks
from agentrm_jax.envs.alfworld import text as alfworld_text
from agentrm_jax.envs.alfworld.family import Alfworld
from tests.envs.alfworld_house import own_name, simple_goal, write_game, write_house

FAMILY = Alfworld()
REAL = os.environ.get("AGENTRM_DATA", "")
HAS_REAL = bool(REAL) and os.path.isdir(os.path.join(REAL, "alfworld"))
real_data = pytest.mark.skipif(not HAS_REAL, reason="AGENTRM_DATA names no folder with alfworld/")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_house(folder / "alfworld")
    return folder


@pytest.fixture
def house(folder, monkeypatch):
    """The small house in place of the real games."""
    monkeypatch.setenv("AGENTRM_DATA", str(folder))
    monkeypatch.setenv("ALFWORLD_DATA", str(folder / "none"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))


@pytest.fixture
def real(monkeypatch):
    monkeypatch.setenv("AGENTRM_DATA", REAL)


def tasks(split, n=10_000, kinds=alfworld_tasks.KINDS, seed=0):
    return FAMILY.tasks(split, kinds=kinds, n=n, seed=seed)


def started(task):
    episode = FAMILY.create()
    return episode, episode.reset(task)


def test_the_family_is_one_and_lists_its_games(house):
    assert isinstance(FAMILY, EnvironmentFamily)
    assert FAMILY.missing() is None
    assert FAMILY.counts() == {"train": None, "test": 1, "paper": 1}
    assert [task.max_steps for task in tasks("paper")] == [40]


def test_the_prompts_example_is_what_happens(house):
    (task,) = tasks("paper")
    episode, first = started(task)
    prompt = FAMILY.prompt()
    assert first == prompt.example[0]
    for reply, answer in zip(prompt.example[1::2], prompt.example[2::2], strict=True):
        transition = episode.step(reply.partition("\nAction: ")[2])
        assert (transition.observation, transition.valid) == (answer, True)
    assert (transition.success, transition.done, transition.reward) == (True, True, 1.0)


@pytest.mark.parametrize(
    "said",
    ["", "dance", "move mug 1 to cabinet 1", "take mug 1", "go to mug 1", "look\nlook", "{}"],
)
def test_what_is_not_possible_changes_nothing(house, said):
    episode, _ = started(tasks("paper")[0])
    episode.step("go to countertop 1")
    before = episode.fork().step("look")
    answer = episode.step(said)
    assert answer.observation == "Nothing happens."
    assert (answer.valid, answer.reward, answer.done) == (False, 0.0, False)
    assert episode.step("look") == before


@pytest.mark.parametrize(
    "said", [" PUT  mug 1 in/on CABINET 1.", "put mug 1 in cabinet 1", "put mug 1 on cabinet 1"]
)
def test_spellings_that_are_understood(house, said):
    episode, _ = started(tasks("paper")[0])
    for action in ("go to countertop 1", "take mug 1 from countertop 1", "go to cabinet 1"):
        episode.step(action)
    episode.step("open cabinet 1")
    assert episode.step(said).observation == "You put the mug 1 in/on the cabinet 1."


def test_steps_run_out(house):
    episode, _ = started(tasks("paper")[0])
    answers = [episode.step("look") for _ in range(40)]
    assert [answer.done for answer in answers] == [False] * 39 + [True]
    assert sum(answer.reward for answer in answers) == 0.0


def walk(task, length, seed):
    """Random commands, possible ones for the most part."""
    rng = random.Random(seed)
    simulator = alfworld_game.Simulator(alfworld_tasks.source_of)
    simulator.reset(task)
    said = []
    for _ in range(length):
        possible = simulator._game.possible()
        doing = [one for one in possible if not one.startswith(("go to", "examine", "look"))]
        said.append(rng.choice(rng.choice([possible, doing or possible, ["jump"]])))
        simulator.step(said[-1])
    return said


def check_forks(task, seed):
    """Copies of an episode answer alike and do not disturb it or each other."""
    before, after, other = (walk(task, n, f"{seed}/{n}") for n in (6, 7, 5))
    episode, _ = started(task)
    for action in before:
        episode.step(action)
    left, right = episode.fork(), episode.fork().fork()
    answers = []
    for i, action in enumerate(after):  # by turns, while a third one goes another way
        answers.append(left.step(action))
        if i < len(other):
            episode.step(other[i])
        assert right.step(action) == answers[-1]
    again, _ = started(task)
    assert [again.step(action) for action in before + after][len(before) :] == answers


@pytest.mark.parametrize("seed", range(4))
def test_copies_stay_apart(house, seed):
    check_forks(tasks("train", n=5)[seed % 5], seed)


def compare_with_the_library(task, length, seed):
    """All texts, wins and possible commands of a random walk, as TextWorld itself gives them."""
    import textworld
    from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
    from textworld.envs.pddl import PddlEnv

    path = alfworld_files.games_folder() / task.spec["game"] / alfworld_files.GAME
    infos = textworld.EnvInfos(won=True, admissible_commands=True)
    library = AlfredDemangler(PddlEnv(infos))
    arguments = sys.argv
    try:
        library.load(str(path))
        state = library.reset()
    finally:
        sys.argv = arguments
    simulator = alfworld_game.Simulator(alfworld_tasks.source_of)
    assert simulator.reset(task).split("\n") == state.feedback.split("\n\n")[1:]
    for action in walk(task, length, seed):
        own = {one: re.sub(r"^move (.*) to (.*)$", r"put \1 in/on \2", one)
               for one in state["admissible_commands"]}  # fmt: skip
        assert simulator._game.possible() == sorted(own.values())
        theirs = next((one for one, shown in own.items() if shown == action), action)
        state, _, _ = library.step(theirs)
        transition = simulator.step(action)
        text = re.sub(r"^You move the (.*) to the (.*)\.$", r"You put the \1 in/on the \2.",
                      state.feedback.strip())  # fmt: skip
        text = text.replace(
            "move (object) to (receptacle):  ", "put (object) in/on (receptacle):  "
        )
        assert transition.observation == text
        assert transition.success == state["won"]
        assert transition.valid == (theirs in own)


@pytest.mark.parametrize("split", ["train", "paper"])
def test_the_texts_are_the_librarys(house, split):
    compare_with_the_library(tasks(split)[0], 25, split)


def test_translations_are_kept(house, monkeypatch):
    source = alfworld_tasks.source_of(tasks("paper")[0])
    alfworld_game.translate.cache_clear()
    first = alfworld_game.translate(source.domain, source.problem)
    alfworld_game.translate.cache_clear()
    monkeypatch.setattr(alfworld_game, "_translate", None)  # would raise
    assert alfworld_game.translate(source.domain, source.problem) == first


def test_a_kept_translation_that_is_broken_is_made_again(house):
    source = alfworld_tasks.source_of(tasks("paper")[0])
    alfworld_game.translate.cache_clear()
    first = alfworld_game.translate(source.domain, source.problem)
    for file in alfworld_game._folder().iterdir():
        file.write_bytes(b"nonsense")
    alfworld_game.translate.cache_clear()
    assert alfworld_game.translate(source.domain, source.problem) == first


def test_the_command_line_is_left_alone(house, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["mine", "--flag"])
    source = alfworld_tasks.source_of(tasks("paper")[0])
    alfworld_game._pddl2sas(source.domain, source.problem)
    assert sys.argv == ["mine", "--flag"]


def test_new_goals_are_allowed_open_and_can_be_won(house):
    found = tasks("train")
    new = [task for task in found if task.spec["goal"] is not None]
    goals = {(task.kind, *task.spec["goal"]) for task in new}
    assert len(new) == len(goals) == len(found) - 1
    expected = {
        ("look_at_obj_in_light", "Book", "DeskLamp"),
        ("pick_and_place_simple", "Mug", "Cabinet"),
        ("pick_two_obj_and_place", "Mug", "Microwave"),
        ("pick_heat_then_place_in_recep", "Bread", "CounterTop"),
        ("pick_clean_then_place_in_recep", "Spoon", "SinkBasin"),  # not clean yet
    }
    assert expected <= goals
    assert ("pick_and_place_simple", "Spoon", "SinkBasin") not in goals  # it is there
    assert ("pick_and_place_simple", "Book", "Cabinet") not in goals  # the game's own
    assert ("pick_and_place_simple", "Book", "Fridge") not in goals  # not allowed
    assert ("pick_two_obj_and_place", "Book", "Cabinet") not in goals  # there is one
    assert {thing for kind, thing, _ in goals if kind == "pick_cool_then_place_in_recep"} == {
        "Mug",
        "Bread",
    }
    for task in new:
        check_expert(task)


def check_expert(task):
    """The expert wins with its last action, and nothing was won before."""
    turns = FAMILY.demonstrate(task)
    assert turns is not None
    assert len(turns) <= task.max_steps
    episode, _ = started(task)
    answers = [episode.step(turn.action) for turn in turns]
    assert [answer.success for answer in answers] == [False] * (len(turns) - 1) + [True]
    assert all(answer.valid for answer in answers)
    assert all(turn.thought.endswith(".") for turn in turns)
    return turns


def test_the_stored_walkthrough_comes_first(house):
    turns = check_expert(tasks("test")[0])
    assert [turn.action for turn in turns] == [
        "go to countertop 1",
        "take spoon 1 from countertop 1",
        "go to cabinet 1",
        "open cabinet 1",
        "put spoon 1 in/on cabinet 1",
    ]


def test_experts_leave_the_random_numbers_alone_and_repeat(house):
    task = tasks("train")[0]
    random.seed(7)
    state = random.getstate()
    first = FAMILY.demonstrate(task)
    assert random.getstate() == state
    random.seed(8)
    assert FAMILY.demonstrate(task) == first


def test_splits_share_no_problem_and_lists_begin_alike(house):
    train, test, paper = map(tasks, ("train", "test", "paper"))
    problems = [task.problem for task in train + test + paper]
    assert len(set(problems)) == len(problems)
    assert len({task.task_id for task in train}) == len(train)
    assert tasks("train", n=7) == train[:7]
    assert tasks("test", kinds=["pick_two_obj_and_place"]) == []


def test_a_goal_of_a_test_game_is_never_made_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("AGENTRM_DATA", str(tmp_path))
    games = {"valid_train": "Spoon", "valid_seen": "Mug", "valid_unseen": "Bread"}
    for split, thing in games.items():
        place = "Fridge" if thing == "Bread" else "Cabinet"
        name = f"{split}/pick_and_place_simple-{thing}-None-{place}-1/trial_1"
        write_game(tmp_path / "alfworld", name, simple_goal(thing, place), f"put a {thing} there.")
    train = tasks("train", kinds=["pick_and_place_simple"])
    goals = [task.spec["goal"] for task in train]
    assert ["Mug", "Fridge"] in goals
    assert ["Mug", "Cabinet"] not in goals
    assert ["Bread", "Fridge"] not in goals


def test_the_folder_of_alfworld_download_is_found(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("AGENTRM_DATA", str(tmp_path))
    monkeypatch.setenv("ALFWORLD_DATA", str(folder / "alfworld"))
    assert FAMILY.counts()["test"] == 1


def test_missing_games_are_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("AGENTRM_DATA", str(tmp_path))
    monkeypatch.setenv("ALFWORLD_DATA", str(tmp_path))
    assert "alfworld-download" in FAMILY.missing()
    assert "\n" not in FAMILY.missing()
    for call in (FAMILY.counts, lambda: tasks("test"), FAMILY.create):
        with pytest.raises(UserError, match="holds neither"):
            call()


def test_missing_packages_are_one_line(house, monkeypatch):
    monkeypatch.setitem(sys.modules, "textworld", None)
    with pytest.raises(UserError, match=r"textworld is not installed: pip install"):
        FAMILY.create()


def test_an_unknown_kind_names_the_kinds(house):
    with pytest.raises(UserError, match="pick_two_obj_and_place"):
        tasks("train", kinds=["pick"])


def test_a_broken_game_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("AGENTRM_DATA", str(tmp_path))
    path = (
        tmp_path / "alfworld/json_2.1.1/valid_seen/pick_and_place_simple-A-None-B-1/t/game.tw-pddl"
    )
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with pytest.raises(UserError, match=r"game\.tw-pddl: is no game"):
        tasks("test")


def packed(folder, target, extra=()):
    """The games as an archive, with whatever else is given: (name, content or link target)."""
    with tarfile.open(target, "w:xz") as archive:
        archive.add(folder / "alfworld/json_2.1.1", "json_2.1.1")
        for name, content in extra:
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                archive.addfile(member)
            else:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


@pytest.fixture
def archive(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("AGENTRM_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("ALFWORLD_DATA", str(tmp_path / "none"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "data/alfworld").mkdir(parents=True)
    return tmp_path / "data/alfworld/alfworld_games_474.tar.xz"


def test_the_archive_is_unpacked_and_nothing_beside_it(archive, folder, tmp_path):
    evil = [
        ("../../outside/game.tw-pddl", b"x"),
        ("json_2.1.1/valid_seen/../../game.tw-pddl", b"x"),
        ("json_2.1.1/valid_seen/../escaped/game.tw-pddl", b"x"),
        ("/absolute/game.tw-pddl", b"x"),
        ("json_2.1.1/valid_seen/a/link/game.tw-pddl", str(folder)),
        ("json_2.1.1/valid_seen/a/b/other.txt", b"x"),
    ]
    packed(folder, archive, evil)
    assert FAMILY.counts() == {"train": None, "test": 1, "paper": 1}
    files = [path for path in (tmp_path / "cache").rglob("*") if not path.is_dir()]
    names = sorted(path.name for path in files if path.suffix != ".lock")
    assert names == ["game.tw-pddl"] * 3 + ["sha256.json"]
    assert not any(path.is_symlink() for path in (tmp_path / "cache").rglob("*"))
    assert not (tmp_path / "outside").exists()


def test_a_broken_archive_is_an_error_and_leaves_nothing(archive, tmp_path):
    archive.write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match="cannot be unpacked"):
        FAMILY.counts()
    assert [p for p in (tmp_path / "cache").rglob("*") if p.is_file() and p.suffix != ".lock"] == []


def _count(_):
    return FAMILY.counts()["test"]


def test_processes_that_come_together_unpack_once(archive, folder, tmp_path):
    packed(folder, archive)
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert pool.map(_count, range(3)) == [1, 1, 1]
    unpacked = [p for p in (tmp_path / "cache/agentrm_jax/alfworld").iterdir() if p.is_dir()]
    assert len(unpacked) == 1


def test_a_grammar_cannot_run_code():
    with pytest.raises(UserError, match="not understood"):
        alfworld_text._value("__import__('os').getpid()")
    with pytest.raises(UserError, match="not understood"):
        alfworld_text._value("o.name.__class__")


def test_objects_are_numbered_as_alfworld_does(house):
    from alfworld.agents.utils.misc import Demangler
    from textworld.generator.game import EntityInfo

    objects = [own_name(kind, i).lower() for kind in ("Mug", "Drawer", "Sink") for i in range(4)]
    objects += ["agent1", own_name("SinkBasin", 7).lower()]
    theirs = Demangler(game_infos={one: EntityInfo(one, "o") for one in objects})
    assert alfworld_game.displayed_names(objects) == {
        one: theirs.demangle_alfred_name(one) for one in objects
    }


def test_a_worker_needs_no_jax(house):
    code = (
        "import sys; from agentrm_jax.envs.alfworld.family import Alfworld; f = Alfworld();"
        "t = f.tasks('test', kinds=f.kinds(), n=1)[0]; f.demonstrate(t); f.create().reset(t);"
        "sys.exit('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


@real_data
def test_the_real_games(real):
    test, paper = tasks("test"), tasks("paper")
    assert (len(test), len(paper)) == (140, 134)
    assert FAMILY.counts() == {"train": None, "test": 140, "paper": 134}
    assert len({task.problem for task in test + paper}) == 274
    counts = collections.Counter(task.kind for task in paper)
    assert counts["pick_and_place_simple"] == 24
    assert counts["pick_two_obj_and_place"] == 17
    listed = alfworld_files.paper_names()
    assert listed is not None
    assert set(listed) == {task.spec["game"] for task in paper}


@real_data
def test_the_goals_of_real_games_are_read_and_written_alike(real):
    """A stored goal that is taken out and put back in our words is the same problem."""
    folder = alfworld_files.games_folder()
    for task in tasks("paper", n=12):
        goal = alfworld_tasks.goal_of(task)
        own = alfworld_tasks._source(folder, task.spec["game"], "null").task
        assert own in (goal.sentence(0), goal.sentence(1))
        assert task.spec["game"].split("/")[1].split("-")[:2] == [goal.kind, goal.thing]


@real_data
@pytest.mark.parametrize("seed", range(2))
def test_forks_of_real_games(real, seed):
    check_forks(tasks("paper", n=4)[seed * 2 + 1], seed)


@real_data
def test_new_tasks_in_real_rooms_are_disjoint_and_won(real):
    train = tasks("train", n=212)
    fresh = [task for task in train if task.spec["goal"] is not None]
    others = {task.problem for split in ("test", "paper") for task in tasks(split)}
    assert not others & {task.problem for task in train}
    assert len({task.problem for task in train}) == 212
    for task in fresh[:3]:
        check_expert(task)
