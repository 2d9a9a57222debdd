"""Our environments against the original software that they use, on the same actions."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agentrm_jax.core.records import Task
from agentrm_jax.envs.registry import load_family

WEBSHOP_STEPS_A_SECOND = 25
"""The speed of the original WebShop, measured on another machine."""


def alfworld(steps: int) -> dict[str, Any]:
    """Plays random admissible commands in the same games, in ALFWorld's TextWorld and in ours.

    The original writes `move X to Y`; its commands and texts are rewritten to `put X in/on Y`.
    """
    import textworld
    from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
    from textworld.envs.pddl.pddl import PddlEnv

    from agentrm_jax.envs.alfworld.files import games_folder

    family = load_family("alfworld")
    each = min(steps, 40)
    seconds = {"ours": 0.0, "original": 0.0}
    played = different = 0
    for task in family.tasks("paper", kinds=family.kinds(), n=-(-steps // each)):
        wanted = textworld.EnvInfos(won=True, admissible_commands=True)
        original = AlfredDemangler(PddlEnv(wanted))
        original.load(str(games_folder() / task.spec["game"] / "game.tw-pddl"))
        state = original.reset()
        ours = family.create()
        first = ours.reset(task)
        different += first != "\n".join(state.feedback.split("\n\n")[1:])
        rng = random.Random(task.task_id)
        for _ in range(each):
            command = rng.choice(sorted(state["admissible_commands"]))
            (state, _, _), taken = _timed(original.step, command)
            seconds["original"] += taken
            action = re.sub(r"^move (.*) to (.*)$", r"put \1 in/on \2", command)
            answer, taken = _timed(ours.step, action)
            seconds["ours"] += taken
            played += 1
            different += answer.observation != _as_put(state.feedback.strip())
            different += answer.success != state["won"]
            if answer.done:
                break
    return _compared(seconds, played, different=different)


def _as_put(text: str) -> str:
    text = re.sub(r"You move the (.*) to the (.*)\.", r"You put the \1 in/on the \2.", text)
    return text.replace("move (object) to (receptacle):  ", "put (object) in/on (receptacle):  ")


def scienceworld(steps: int) -> dict[str, Any]:
    """Plays an expert's actions with the library's `step`, which lists all valid actions, and ours.

    The library's texts depend on the order of its sets (see `envs.scienceworld.patch`). Therefore
    the best scores are compared, not the texts. Java compiles while it runs, so both sides play
    before the clock starts. A step of the original runs the same code a hundred times; therefore
    fewer of its plays warm it up.
    """
    from scienceworld import ScienceWorldEnv

    from agentrm_jax.envs.scienceworld.tasks import simplifications

    family = load_family("scienceworld")
    wrapper = ScienceWorldEnv(envStepLimit=1_000_000)
    environment = family.create()
    kinds = ("melt", "find-animal", "test-conductivity", "grow-plant", "use-thermometer")
    tasks = family.tasks("train", kinds=kinds, n=-(-steps // 20))
    plans = [[turn.action for turn in family.demonstrate(task) or []] for task in tasks]

    def ours(task: Task, plan: Sequence[str]) -> tuple[float, float]:
        environment.reset(task)
        answers = [_timed(environment.step, action) for action in plan]
        return sum(answer.reward for answer, _ in answers), sum(taken for _, taken in answers)

    def original(task: Task, plan: Sequence[str]) -> tuple[float, float]:
        wrapper.load(task.kind, task.spec["variation"], simplifications(task.kind))
        wrapper.reset()
        answers = [_timed(wrapper.step, action) for action in plan]
        best = max((told["score"] for (_, _, _, told), _ in answers), default=0)
        return best / 100, sum(taken for _, taken in answers)

    for play, times in ((ours, 12), (original, 2)):
        for task, plan in list(zip(tasks, plans, strict=True)) * times:
            play(task, plan)
    seconds = {"ours": 0.0, "original": 0.0}
    different = 0
    for task, plan in zip(tasks, plans, strict=True):
        (mine, taken), (theirs, other) = ours(task, plan), original(task, plan)
        seconds = {"ours": seconds["ours"] + taken, "original": seconds["original"] + other}
        different += abs(mine - theirs) > 1e-6
    wrapper.close()
    return _compared(seconds, sum(map(len, plans)), different=different)


def webshop(steps: int) -> dict[str, Any]:
    """Plays an expert's actions in ours; the speed of the original is `WEBSHOP_STEPS_A_SECOND`."""
    family = load_family("webshop")
    taken, played = 0.0, 0
    for task in family.tasks("test", kinds=family.kinds(), n=-(-steps // 4)):
        environment = family.create()
        environment.reset(task)
        for turn in family.demonstrate(task) or []:
            answer, seconds = _timed(environment.step, turn.action)
            taken += seconds
            played += 1
            if answer.done:
                break
    rate = played / taken
    return {"ratio": rate / WEBSHOP_STEPS_A_SECOND, "steps": played, "steps_per_second": rate}


def _timed(call: Callable[[str], Any], action: str) -> tuple[Any, float]:
    begin = time.perf_counter()
    result = call(action)
    return result, time.perf_counter() - begin


def _compared(seconds: Mapping[str, float], steps: int, **more: Any) -> dict[str, Any]:
    return {
        "ratio": seconds["original"] / seconds["ours"],
        "steps": steps,
        **{f"{side}_ms": 1000 * taken / steps for side, taken in seconds.items()},
        **more,
    }


COMPARISONS: Mapping[str, Callable[..., dict[str, Any]]] = {
    "alfworld": alfworld,
    "scienceworld": scienceworld,
    "webshop": webshop,
}
