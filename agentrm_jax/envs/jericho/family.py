"""Text adventures played with Jericho, as AgentBoard does (paper, held-out environments)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import Demonstration, Prompt
from agentrm_jax.core.records import Split, Task
from agentrm_jax.envs.jericho import games as jericho_games
from agentrm_jax.envs.jericho import text as jericho_text
from agentrm_jax.envs.jericho.episode import JerichoEpisode
from agentrm_jax.envs.jericho.expert import demonstrate
from agentrm_jax.envs.jericho.games import GAMES, TEST_GAMES, present, story_file
from agentrm_jax.envs.jericho.labels import has_labels
from agentrm_jax.envs.jericho.tasks import NAME, paper_task, stretch_tasks, stretches
from agentrm_jax.envs.task_lists import check_kinds, in_turn


class Jericho:
    """AgentBoard's twenty games. Needs jericho (`pip install 'agentrm-jax[jericho]'`) and story
    files; games without one are left out."""

    name = NAME
    pooled = True

    @property
    def metric(self) -> str:
        """The metric of `paper`: AgentBoard's progress if its labels are installed."""
        return "progress rate" if has_labels() else "score / max score"

    def missing(self) -> str | None:
        return jericho_games.missing()

    def counts(self) -> Mapping[Split, int | None]:
        if reason := self.missing():
            raise UserError(reason)
        games = present()
        sizes = {game: len(stretches(game)) for game in games}
        return {
            "train": sum(sizes[game] for game in games if game not in TEST_GAMES),
            "test": sum(sizes[game] for game in games if game in TEST_GAMES),
            "paper": len(games),
        }

    def kinds(self) -> Sequence[str]:
        """The names of the games, in AgentBoard's order."""
        return GAMES

    def tasks(self, split: Split, *, kinds: Sequence[str], n: int, seed: int = 0) -> list[Task]:
        """Tasks taken from the kinds in turn; games without a story file are left out.

        Raises:
          UserError: For an unknown kind; where jericho is missing, or all story files of the
            kinds.
        """
        check_kinds(self.name, GAMES, kinds)
        if reason := self.missing():
            raise UserError(reason)
        games = [game for game in kinds if game in present()]
        if not games and kinds:
            story_file(kinds[0])  # says what is missing
        if split == "paper":
            streams = [map(paper_task, [game]) for game in games]
        else:
            wanted = [game for game in games if (game in TEST_GAMES) == (split == "test")]
            streams = [stretch_tasks(game, split, seed) for game in wanted]
        return list(itertools.islice(in_turn(streams), n))

    def prompt(self) -> Prompt:
        return jericho_text.PROMPT

    def action_key(self, action: str) -> str:
        return jericho_text.action_key(action)

    def create(self) -> JerichoEpisode:
        return JerichoEpisode()

    def demonstrate(self, task: Task) -> list[Demonstration]:
        """The walkthrough, cut to the step limit; from a game's beginning it seldom wins."""
        return demonstrate(task)
