"""A tiny agent with a tokenizer of its own, and states to ask it about; for several folders."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from agentrm_jax.agent.agent import Agent
from agentrm_jax.core.protocols import Prompt
from agentrm_jax.core.records import Step, Task, Trajectory, Transition
from agentrm_jax.data.tokenizer import Tokenizer, train_tokenizer
from agentrm_jax.engine.engine import Engine, EngineConfig
from agentrm_jax.engine.sampling import Sampling
from agentrm_jax.model import parameters
from agentrm_jax.model.config import LlamaConfig

# The same shapes as in the engine's tests, so that programs are compiled once for both.
CONFIG = LlamaConfig(
    vocab_size=320, d_model=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16, d_ff=48,
    tie_embeddings=True, max_positions=512,
)  # fmt: skip
SIZES = EngineConfig(
    context=256, decode_rows=8, extend_rows=4, extend_tokens=16, page_size=4, cache_tokens=4096
)
SAMPLING = Sampling(temperature=1.0, max_tokens=10)
PROMPT = Prompt(instruction="Move about.", example=())
TEXTS = ("Thought: the key is left.\nAction: turn left", "You see a key, a door and a ball.")


@functools.cache
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, CONFIG.vocab_size)


def drawn(rng: np.random.Generator):
    """Parameters of the tiny model, with weights that give attention something to say."""

    def draw(shape, scale):
        return np.ones(shape) if scale is None else 2 * scale * rng.standard_normal(shape)

    return jax.tree.map(
        lambda spec: jnp.float32(draw(spec.shape, spec.scale)),
        parameters.describe(CONFIG),
        is_leaf=lambda value: isinstance(value, parameters.ParamSpec),
    )


@functools.cache
def weights(seed: int):
    params = drawn(np.random.default_rng(seed))
    stop = tokenizer().chat.stop  # made likelier, so that some replies end and some do not
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
