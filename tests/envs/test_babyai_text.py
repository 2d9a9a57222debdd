"""The text over the world: views against minigrid's images, paths against a plain queue."""

import copy
import random

import pytest

minigrid_objects = pytest.importorskip("minigrid.core.world_object")

from minigrid.core.constants import IDX_TO_COLOR, IDX_TO_OBJECT  # noqa: E402
from minigrid.core.grid import Grid  # noqa: E402

from agentrm_jax.envs.babyai.paths import DIRECTIONS, FORWARD, LEFT, RIGHT, Paths  # noqa: E402
from agentrm_jax.envs.babyai.text import describe, look, options  # noqa: E402
from agentrm_jax.envs.babyai.world import build, copy_world, problem_form  # noqa: E402

LEVELS = ("GoToLocal", "BossLevel", "KeyCorridorS3R2", "PutNextS5N2Carrying", "UnlockLocal")


def room(width=7, height=7):
    """An empty walled room, the agent in the middle facing right."""
    world = build("GoToObj", 0)
    world.grid = Grid(width, height)
    world.grid.wall_rect(0, 0, width, height)
    world.width, world.height = width, height
    world.agent_pos, world.agent_dir, world.carrying = (3, 3), 0, None
    return world


def image(world):
    return type(world).gen_obs(world)["image"]


def random_walk(level, seed, moves=60):
    world = build(level, seed)
    rng = random.Random(seed)
    yield world
    for _ in range(moves):
        world.step(rng.choice((0, 1, 2, 2, 2, 3, 4, 5, 5)))
        yield world


@pytest.mark.parametrize("level", LEVELS)
def test_the_view_holds_what_minigrid_shows(level):
    previous = None
    for world in random_walk(level, 5):
        picture, view = image(world), look(world)
        size = world.agent_view_size
        shown = {
            (size - 1 - j, i - size // 2, IDX_TO_OBJECT[kind], IDX_TO_COLOR[color])
            for i in range(size)
            for j in range(size)
            for kind, color, _ in [picture[i, j]]
            if IDX_TO_OBJECT[kind] not in ("unseen", "empty") and (i, j) != (size // 2, size - 1)
        }
        seen = {(t.front, t.right, t.type, t.name.split()[0]) for t in view.things}
        beyond = {item for item in shown - seen if item[2:] == ("wall", "grey")}
        assert seen <= shown
        assert shown - seen == beyond
        assert [t.distance for t in view.things] == sorted(t.distance for t in view.things)
        for thing in view.things:
            if 0 <= thing.position[0] < world.width and 0 <= thing.position[1] < world.height:
                assert world.grid.get(*thing.position).type == thing.type
        if previous is not None:
            assert (view.code == previous[0]) == bool((picture == previous[1]).all())
        previous = view.code, picture


def test_a_room_in_words():
    world = room()
    world.grid.set(5, 3, minigrid_objects.Ball("red"))
    world.grid.set(4, 2, minigrid_objects.Key("grey"))
    world.grid.set(5, 4, minigrid_objects.Key("grey"))
    world.grid.set(3, 0, minigrid_objects.Door("blue", is_locked=True))
    world.carrying = minigrid_objects.Box("green")
    assert describe(world, look(world)) == (
        "In front of you in this room, you can see several objects: "
        "There is a red ball 1 right in front of you 2 steps away.  "
        "There is a grey key 1 1 steps in front of you and 1 steps to your left.  "
        "There is a grey key 2 2 steps in front of you and 1 steps to your right.  "
        "There is a blue locked door 1 0 steps in front of you and 3 steps to your left.  "
        "The room has walls around you. You are facing a wall 3 steps away. "
        "You are carrying a green box."
    )


def test_available_actions_and_reasons():
    world = room()
    world.grid.set(4, 3, minigrid_objects.Box("green"))
    world.grid.set(6, 2, minigrid_objects.Door("red"))
    world.grid.set(6, 4, minigrid_objects.Door("blue", is_locked=True))
    world.grid.set(3, 6, minigrid_objects.Door("grey", is_open=True))
    found = options(world, look(world))
    assert found.available["pickup green box 1"].moves == (3,)
    assert found.available["toggle and go through red closed door 1"].moves[-2:] == (5, 2)
    assert found.available["go through grey open door 1"].moves == (
        RIGHT,
        FORWARD,
        FORWARD,
        FORWARD,
    )
    assert list(found.available)[:2] == ["turn left", "turn right"]
    assert list(found.available)[-1] == "check available actions"
    assert "barrier in front of you" in found.refused["move forward"]
    assert "not carrying anything" in found.refused["drop"]
    assert "should toggle it first" in found.refused["go through red closed door 1"]
    blue = "toggle and go through blue locked door 1"
    assert found.refused[blue].endswith("as you are not carrying a key.")

    world.carrying = minigrid_objects.Key("red")
    refused = options(world, look(world)).refused
    assert "does not match" in refused[blue]
    assert "already an object in front" in refused["drop"]

    world.carrying = minigrid_objects.Key("blue")
    available = options(world, look(world)).available
    assert available[blue].moves[-2:] == (5, 2)
    assert not any(name.startswith("pickup") for name in available)


def test_unreachable_things_are_refused_and_not_counted():
    world = room(9, 9)
    for x, y in ((4, 2), (5, 1), (5, 3), (6, 2)):  # a key walled in by boxes, nearer than another
        world.grid.set(x, y, minigrid_objects.Box("grey"))
    world.grid.set(5, 2, minigrid_objects.Key("red"))
    world.grid.set(7, 5, minigrid_objects.Key("red"))
    found = options(world, look(world))
    assert "There is a red key 2" in describe(world, look(world))
    assert found.available["go to red key 1"].target.position == (7, 5)
    assert found.refused["pickup red key 1"].endswith("no path leading to it.")
    assert "go to red key 2" not in found.available


def reference_search(start, blocked, columns, rows, targets):
    """AgentBoard's search as a plain queue: poses enter again until they are first taken out."""
    queue, parent, taken = [start], {}, set()
    while queue:
        pose = queue.pop(0)
        taken.add(pose)
        if pose in targets:
            moves = []
            while pose != start:
                pose, move = parent[pose]
                moves.append(move)
            return tuple(reversed(moves))
        x, y, facing = pose
        dx, dy = DIRECTIONS[facing]
        for child, move in (
            ((x + dx, y + dy, facing), FORWARD),
            ((x, y, (facing - 1) % 4), LEFT),
            ((x, y, (facing + 1) % 4), RIGHT),
        ):
            inside = child[0] in columns and child[1] in rows
            if inside and child[:2] not in blocked and child not in taken:
                queue.append(child)
                parent[child] = (pose, move)
    return None


@pytest.mark.parametrize("seed", range(12))
def test_paths_are_those_of_the_plain_queue(seed):
    rng = random.Random(seed)
    x, y, facing = start = (rng.randrange(4, 8), rng.randrange(4, 8), rng.randrange(4))
    # What lies in view of a size of 5, and one more line behind or beside, by direction.
    columns, rows = {
        0: (range(x - 1, x + 5), range(y - 2, y + 3)),
        1: (range(x - 3, x + 3), range(y - 1, y + 5)),
        2: (range(x - 4, x + 1), range(y - 3, y + 3)),
        3: (range(x - 2, x + 3), range(y - 4, y + 1)),
    }[facing]
    cells = [(i, j) for i in columns for j in rows if (i, j) != (x, y)]
    blocked = set(rng.sample(cells, 8))
    paths = Paths(start, 5, blocked)
    for target in rng.sample(cells, 10):
        i, j = target
        beside = {(i - dx, j - dy, d) for d, (dx, dy) in enumerate(DIRECTIONS)}
        onto = {(i, j, d) for d in range(4)}
        expected = reference_search(start, blocked, columns, rows, beside)
        assert paths.facing(target) == expected
        assert paths.onto(target) == reference_search(start, blocked, columns, rows, onto)


@pytest.mark.parametrize("level", [*LEVELS, "GoToSeqS5R2", "KeyInBox"])
def test_a_copy_acts_as_a_deep_copy_and_leaves_the_original_alone(level):
    rng = random.Random(1)
    for index, world in enumerate(random_walk(level, 3, moves=12)):
        if index % 4:
            continue
        before = problem_form(world), world.step_count
        ours, oracle = copy_world(world), copy.deepcopy(world)
        for _ in range(40):
            move = rng.randrange(6)
            ours_result, oracle_result = ours.step(move)[1:4], oracle.step(move)[1:4]
            assert ours_result == oracle_result
            assert problem_form(ours) == problem_form(oracle)
            assert look(ours) == look(oracle)
        assert (problem_form(world), world.step_count) == before


def test_a_copy_has_its_own_instructions_and_things():
    world = build("OpenRedBlueDoors", 1)
    first = copy_world(world)
    for copied in (first, copy_world(first)):
        assert copied.instrs.env is copied
        (ours,), (theirs,) = (w.instrs.instr_a.desc.obj_set for w in (copied, world))
        assert ours is not theirs
        assert any(ours is item for item in copied.grid.grid)
