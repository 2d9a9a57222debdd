"""`agentrm chat`: an environment in the terminal, with the reward model's scores of each turn."""

from __future__ import annotations

import argparse

from agentrm_jax.cli import environments as envs
from agentrm_jax.cli.parser import Parser
from agentrm_jax.cli.serve import add_served_model_arguments
from agentrm_jax.runtime.console import read_line, say

_DESCRIPTION = """\
Plays an environment in the terminal, with the reward model's scores. Type an action, or with
--policy the number of one of its candidates; an empty line takes the best candidate, and ends the
episode if there is none. `q` ends it, too. With --auto the best candidate is always taken."""


def add_arguments(parser: Parser) -> None:
    parser.description = _DESCRIPTION
    envs.play_add_arguments(parser)
    add_served_model_arguments(parser)
    parser.add_argument("--auto", action="store_true", help="play by the best candidates alone")


def run(given: argparse.Namespace) -> int:
    from agentrm_jax.serve.chat import ChatConfig, chat

    family = envs.family_of(given.name, given.config)
    config = ChatConfig(
        reward_model=given.reward_model, policy=given.policy, n=given.n, auto=given.auto
    )
    score = chat(config, family, envs.chosen_task(family, given), say, read_line)
    say(f"{family.metric}: {score:.2f}")
    return 0
