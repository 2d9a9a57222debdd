"""The Jericho family: what is said to a game, labels, and, where story files are, real games."""

import dataclasses
import json
import os
import random
import subprocess
import sys

import pytest

pytest.importorskip("jericho")

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import EnvironmentFamily
from agentrm_jax.envs.jericho import games as jericho_games
from agentrm_jax.envs.jericho import labels as jericho_labels
from agentrm_jax.envs.jericho import text as jericho_text
from agentrm_jax.envs.jericho.actions import possible_actions
from agentrm_jax.envs.jericho.episode import start
from agentrm_jax.envs.jericho.family import Jericho
from agentrm_jax.envs.jericho.simulator import Simulator, simulator
from agentrm_jax.envs.registry import load_family

FAMILY = Jericho()
SUBGOALS = ["The water runs", "Bed-room (in bed)", "You are clean"]

real_games = pytest.mark.skipif(
    not jericho_games.present(), reason="no story file in AGENTRM_DATA/jericho"
)


def games():
    return jericho_games.present()


def paper_task(game, max_steps=30):
    (task,) = FAMILY.tasks("paper", kinds=[game], n=1)
    return dataclasses.replace(task, max_steps=max_steps)


def started(task):
    episode = FAMILY.create()
    return episode, episode.reset(task)


@pytest.fixture
def own_data(tmp_path, monkeypatch):
    monkeypatch.setenv("AGENTRM_DATA", str(tmp_path))
    (tmp_path / "jericho").mkdir()
    return tmp_path


def write_labels(folder, labels):
    path = folder / jericho_labels.LABELS
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(label) + "\n" for label in labels))
    return path


def label(**changes):
    return {"id": 0, "task": "jericho", "goal": "Get clean.", "subgoals": SUBGOALS, **changes}


def test_it_is_registered_with_twenty_games():
    assert load_family("jericho").name == "jericho"
    assert isinstance(FAMILY, EnvironmentFamily)
    assert len(set(FAMILY.kinds())) == 20
    assert set(jericho_games.TEST_GAMES) < set(FAMILY.kinds())


def test_jericho_itself_knows_the_games_by_these_names():
    from jericho import defines

    roms = {bindings["name"]: bindings["rom"] for bindings in defines.BINDINGS_DICT.values()}
    assert all(roms[game] == jericho_games.story_name(game) for game in FAMILY.kinds())


@pytest.mark.parametrize(
    ("action", "said"),
    [
        ("take lamp", "take lamp"),
        ("  open   the\ndoor. Then go north", "open the door"),
        ("jill, hold me", "jill"),
        ("\\help", "help"),
        ("café\x00 \ud800", "caf"),
        ("go " * 40, " ".join(["go"] * 20)),
        ("x" * 500, "x" * 190),
        ("", ""),
    ],
)
def test_one_command_is_read(action, said):
    assert jericho_text.command(action) == said


@pytest.mark.parametrize(
    ("said", "refused"),
    [
        ("save", True),
        ("look then restore", True),
        ("oops undo", True),
        ("o quit", True),
        ("TRANSCRIPTION", True),  # the game reads nine letters
        ("purloin key", True),
        ("tree", False),  # not in this game's dictionary
        ("save the whale", True),
        ("examine script", False),
        ("out", False),
        ("", False),
    ],
)
def test_commands_to_the_machine_are_refused(said, refused):
    assert jericho_text.is_refused(said, frozenset({"purloin", "score"}), 9) is refused


def test_texts_are_one_line_without_score_remarks():
    assert jericho_text.clean("\nTaken.\n\n[Your score has just gone up by ten points.]\n") == (
        "Taken."
    )
    first = "Hm.\n\n  -----\nA Game\n  -----\n\nTitle\nRelease 3 / Serial number 9\n\nHut\nA hut."
    assert jericho_text.opening(first) == "Hm. Hut A hut."


def test_answers_to_unknown_commands_are_told_from_others():
    assert not jericho_text.was_understood("[!: Verb error.]")
    assert not jericho_text.was_understood("That's not a verb I recognise.")
    assert not jericho_text.was_understood("You can't see any such thing.")
    assert jericho_text.was_understood("The door is locked.")


def test_a_missing_package_is_one_line(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert FAMILY.missing() == "jericho is not installed: pip install 'agentrm-jax[jericho]'"
    with pytest.raises(UserError, match=r"pip install 'agentrm-jax\[jericho\]'"):
        FAMILY.counts()


def test_missing_story_files_are_one_line(own_data):
    assert str(own_data / "jericho") in (FAMILY.missing() or "")
    with pytest.raises(UserError, match="no story file"):
        FAMILY.tasks("paper", kinds=["zork1"], n=1)


def test_games_without_a_file_are_left_out(own_data):
    (own_data / "jericho" / "zork1.z5").write_bytes(b"x" * 100)
    assert FAMILY.missing() is None
    with pytest.raises(UserError, match=r"zork2\.z5: not found"):
        FAMILY.tasks("paper", kinds=["zork2", "zork3"], n=1)


def test_another_release_of_a_game_is_refused(own_data):
    (own_data / "jericho" / "zork1.z5").write_bytes(b"x" * 100)
    with pytest.raises(UserError, match=r"zork1\.z5: is not the release"):
        FAMILY.tasks("paper", kinds=["zork1", "zork2"], n=1)


def test_an_unknown_kind_names_the_kinds():
    with pytest.raises(UserError, match=r"no kind 'zork4'.*zork1"):
        FAMILY.tasks("paper", kinds=["zork4"], n=1)


def test_labels_are_read_in_the_order_of_the_games(own_data):
    labels = [label(goal=f"goal {i}") for i in range(20)]
    labels[3]["additional_info"] = {"init_obs": "You wake up."}
    write_labels(own_data, labels)
    assert FAMILY.metric == "progress rate"
    read = jericho_labels.read_label("balances")
    assert read == jericho_labels.Label("goal 3", tuple(SUBGOALS), "You wake up.")
    assert jericho_labels.read_label("905").opening == ""


def test_without_labels_the_score_is_measured(own_data):
    assert FAMILY.metric == "score / max score"


@pytest.mark.parametrize(
    ("labels", "error"),
    [
        ([label()] * 19, "holds 19 labels"),
        ([label(), [1]], r"test\.jsonl:2: needs `goal`"),
        ([label(subgoals="one")], r"test\.jsonl:1: needs `subgoals`"),
        ([label(subgoals=[])], r"test\.jsonl:1: needs `subgoals`"),
    ],
)
def test_a_broken_label_file_is_one_line(own_data, labels, error):
    write_labels(own_data, labels)
    with pytest.raises(UserError, match=error):
        jericho_labels.read_label("905")


def test_a_label_line_that_is_not_json_is_named(own_data):
    write_labels(own_data, [label()]).write_text("{}}\n")
    with pytest.raises(UserError, match=r"test\.jsonl:1: not JSON"):
        jericho_labels.read_label("905")


def test_subgoals_match_as_in_agentboard():
    assert jericho_labels.next_reached(SUBGOALS, "Bedroom, in bed. The water runs!") == SUBGOALS[0]
    assert jericho_labels.next_reached(SUBGOALS[1:], "Bedroom in bed") == SUBGOALS[1]
    assert jericho_labels.next_reached(SUBGOALS, "the water runs") is None


def test_the_prompt_shows_the_reply_format():
    prompt = FAMILY.prompt()
    assert len(prompt.example) % 2 == 0
    assert all(
        reply.startswith("Thought: ") and "\nAction: " in reply for reply in prompt.example[1::2]
    )


@real_games
def test_splits_share_no_problem_and_no_game():
    lists = {split: FAMILY.tasks(split, kinds=FAMILY.kinds(), n=10_000) for split in
             ("train", "test", "paper")}  # fmt: skip
    problems = [task.problem for tasks in lists.values() for task in tasks]
    assert len(set(problems)) == len(problems)
    assert len({task.task_id for tasks in lists.values() for task in tasks}) == len(problems)
    assert not {t.kind for t in lists["train"]} & {t.kind for t in lists["test"]}
    assert FAMILY.counts() == {split: len(tasks) for split, tasks in lists.items()}
    assert [task.kind for task in lists["paper"]] == list(games())
    assert {task.max_steps for task in lists["paper"]} == {30}


@real_games
def test_lists_are_stable_and_even():
    split = "test" if games()[0] in jericho_games.TEST_GAMES else "train"
    long = FAMILY.tasks(split, kinds=FAMILY.kinds(), n=12)
    assert FAMILY.tasks(split, kinds=FAMILY.kinds(), n=5) == long[:5]
    kinds = list(dict.fromkeys(task.kind for task in long))
    assert [task.kind for task in long[: len(kinds)]] == kinds
    assert FAMILY.tasks(split, kinds=FAMILY.kinds(), n=12, seed=1) != long


@real_games
def test_the_expert_solves_what_is_drawn():
    for split in ("train", "test"):
        for task in FAMILY.tasks(split, kinds=FAMILY.kinds(), n=40):
            episode, text = started(task)
            goal, place = text.split("\n")
            assert goal.startswith("Goal: ")
            assert place
            outcome = 0.0
            for turn in FAMILY.demonstrate(task):
                assert len(turn.thought.split()) <= 15
                last = episode.step(turn.action)
                outcome += last.reward
                assert last.reward >= 0
                if last.done:
                    break
            assert last.success, task.task_id
            assert outcome == pytest.approx(1)


@real_games
def test_the_walkthrough_from_the_beginning_gets_its_share_of_the_points():
    for game in games():
        task = paper_task(game)
        episode, _ = started(task)
        turns = FAMILY.demonstrate(task)
        assert len(turns) <= 30
        outcome = sum(episode.step(turn.action).reward for turn in turns)
        alone = simulator(game)
        state, best = alone.start, alone.start.score
        for said in alone.walkthrough[: len(turns)]:
            state = alone.play(state, said)
            best = max(best, state.score)
        gained, most = best - alone.start.score, alone.max_score - alone.start.score
        assert outcome == pytest.approx(gained / most)
        assert 0 < outcome <= 1


def _random_action(rng, episode):
    words = episode._state.text.split() or ["x"]
    return rng.choice([
        "look", "take all", "inventory", "north", "south", "east", "west", "out", "wait", "yes",
        "help", "q", "", "again", "save", "xyzzy", "check valid actions",
        f"examine {rng.choice(words)}", f"take {rng.choice(words)}", f"open {rng.choice(words)}",
    ])  # fmt: skip


@real_games
@pytest.mark.parametrize("seed", range(4))
def test_a_fork_answers_as_a_machine_of_its_own(seed):
    """All episodes of a game share one emulator; each must be as if it had it for itself."""
    rng = random.Random(seed)
    game = rng.choice(games())
    episode, _ = started(paper_task(game, max_steps=100))
    said = []
    for walked in simulator(game).walkthrough[:8]:
        others = [episode.fork() for _ in range(3)]
        script = [_random_action(rng, episode) for _ in range(4)]
        first, second, third = others
        answers = []
        for action in script:  # in turns, so that the emulator goes to and fro
            answers.append(first.step(action))
            assert second.step(action) == answers[-1]
            third.step("help")
        assert episode.fork().fork().step(script[0]) == answers[0]
        action = walked if rng.random() < 0.7 else rng.choice(script)
        said.append((action, episode.step(action)))
        if said[-1][1].done:
            break
    alone = FAMILY.create()
    alone.reset(paper_task(game, max_steps=100))
    alone._simulator = Simulator(jericho_games.story_file(game))
    alone._state = alone._simulator.start
    assert [alone.step(action) for action, _ in said] == [answer for _, answer in said]


@real_games
def test_random_numbers_belong_to_the_state():
    player = simulator(games()[0])
    after = player.play(player.start, "look")
    player.play(after, "wait")
    once = [str(part) for part in player.play(after, "wait").native[2:8]]
    player.play(player.play(after, "north"), "wait")
    assert [str(part) for part in player.play(after, "wait").native[2:8]] == once


@real_games
def test_a_menu_that_waits_for_keys_may_be_left_and_entered_again():
    if "detective" not in games():
        pytest.skip("detective is not there")
    episode, _ = started(paper_task("detective"))
    plain = episode.fork().step("look")
    menu = episode.fork()
    first = menu.step("help")
    assert "About this port" in first.observation
    copy = menu.fork()
    down = menu.step("next please")  # one key is read; no letter of it is left for others
    assert episode.fork().step("look") == plain
    assert copy.step("next please") == down
    assert menu.step("q") == copy.step("q")
    assert episode.step("look") == plain


@real_games
def test_nothing_is_written_and_nothing_undone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    episode, _ = started(paper_task(games()[0]))
    for action in ("save", "look then save", "script", "transcript", "recording", "undo", "quit"):
        answer = episode.step(action)
        assert (answer.observation, answer.valid, answer.reward) == (
            jericho_text.REFUSED, False, 0.0)  # fmt: skip
    assert list(tmp_path.iterdir()) == []


@real_games
def test_whatever_is_said_is_answered():
    for game in games():
        episode, _ = started(paper_task(game, max_steps=60))
        for action in (
            *("\\s", "\\help", "é ü", "\x00\x01", "\ud800", "a" * 5000, "go " * 400, "\n\n"),
            *("$ve", "#comm", "'", '"', "?", "12345", "take all from all"),
        ):
            answer = episode.step(action)
            assert isinstance(answer.observation, str)
            assert not answer.success


@real_games
def test_steps_run_out():
    episode, _ = started(paper_task(games()[0], max_steps=2))
    assert [episode.step("look").done for _ in range(2)] == [False, True]


@real_games
def test_listed_actions_do_something():
    for game in games():
        episode, _ = started(paper_task(game))
        answer = episode.step("check valid actions")
        assert answer.observation.startswith("You can take the following actions: ")
        names = answer.observation.partition(": ")[2].split(", ")
        assert names.pop() == "check valid actions"
        assert len(set(names)) == len(names) > 1
        player, state = simulator(game), start(game, 0)
        before = player.world(state)
        changed = [player.world(player.play(state, name)) for name in names]
        assert len(set(changed)) == len(changed)
        assert sum(world != before for world in changed) >= len(changed) - 1
        assert possible_actions(player, state) == tuple(names)


@real_games
def test_labels_of_the_user_make_the_paper_tasks(tmp_path, monkeypatch):
    game = games()[0]
    source = jericho_games.story_file(game)
    monkeypatch.setenv("AGENTRM_DATA", str(tmp_path))
    (tmp_path / "jericho").mkdir()
    (tmp_path / "jericho" / source.name).symlink_to(source)
    walk = simulator(game).walkthrough
    state = simulator(game).start
    texts = []
    for said in walk[:3]:
        state = simulator(game).play(state, said)
        texts.append(jericho_text.clean(state.text))
    labels = [label(subgoals=["never said", texts[2][:40], texts[0][-30:]]) for _ in range(20)]
    write_labels(tmp_path, labels)
    task = paper_task(game)
    episode, text = started(task)
    assert text.startswith("Goal: Get clean.\n")
    rewards = [episode.step(said).reward for said in walk[:3]]
    assert sum(rewards) == pytest.approx(2 / 3)
    assert rewards[0] > 0
    assert not episode.step("look").success


def test_a_worker_needs_no_jax_no_spacy_and_prints_nothing():
    code = (
        "import sys; from agentrm_jax.envs.jericho.family import Jericho; f = Jericho();"
        "f.missing() or [f.create().reset(t) for t in f.tasks('paper', kinds=f.kinds(), n=2)];"
        "sys.exit('jax' in sys.modules or 'spacy' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=os.environ
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
