"""A tiny agent with a tokenizer of its own, and states to ask it about; for several folders."""

from __future__ import annotations

import functools

import numpy as np
from tiny_model import CONFIG, SAMPLING, SIZES, drawn

from agentrm_jax.agent.agent import Agent
from agentrm_jax.core.protocols import Prompt
from agentrm_jax.core.records import Step, Task, Trajectory, Transition
from agentrm_jax.data.tokenizer import Tokenizer, train_tokenizer
from agentrm_jax.engine.engine import Engine
from agentrm_jax.engine.programs.sampling import Sampling

PROMPT = Prompt(instruction="Move about.", example=())
TEXTS = ("Thought: the key is left.\nAction: turn left", "You see a key, a door and a ball.")


@functools.cache
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, CONFIG.vocab_size)


@functools.cache
def weights(seed: int):
    params = drawn(np.random.default_rng(seed))
    stop = tokenizer().chat.stop_token  # made likelier, so that some replies end and some do not
    return {**params, "embed": params["embed"].at[stop].multiply(2.5)}


def make_agent(engine: Engine | None = None, sampling: Sampling = SAMPLING, seed: int = 0) -> Agent:
    engine = engine or Engine(weights(0), CONFIG, SIZES)
    return Agent(engine, tokenizer(), lambda task: PROMPT, sampling, seed)


def state(number: int, num_steps: int) -> Trajectory:
    task = Task(
        environment="toy", task_id=f"toy/{number}", kind="easy", split="train",
        problem=f"{number:016x}", max_steps=30, spec={},
    )  # fmt: skip
    steps = tuple(
        Step(
            reply=f"Action: turn {i}", action=f"turn {i}",
            transition=Transition(
                observation=f"You see {'a key, ' * (i % 3)}{number}.", reward=0.0, done=False,
                success=False,
            ),
        )
        for i in range(num_steps)
    )  # fmt: skip
    return Trajectory(task=task, first_observation=f"Goal: {number}.", steps=steps)
