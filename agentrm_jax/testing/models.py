"""A tiny language model with random parameters: policies and reward models that need no training.

Two layers of width 32 and a tokenizer of 320 tokens: programs compile in seconds on a CPU.
"""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from agentrm_jax.agent.agent import Agent
from agentrm_jax.core.records import Prompt, Step, Task, Trajectory, Transition
from agentrm_jax.data.render import Renderer
from agentrm_jax.data.tokenizer import Tokenizer, train_tokenizer
from agentrm_jax.engine.config import EngineConfig
from agentrm_jax.engine.engine import Engine
from agentrm_jax.engine.programs.sampling import Sampling
from agentrm_jax.model import llama, parameters
from agentrm_jax.model.config import LlamaConfig
from agentrm_jax.model.value import Readout
from agentrm_jax.pipeline import models
from agentrm_jax.pipeline.model_folders import write_prompts
from agentrm_jax.pipeline.models import Model
from agentrm_jax.pipeline.reward_model import RewardModel
from agentrm_jax.runtime.run_paths import MODEL
from agentrm_jax.testing.guess import GUESS_PROMPT

CONFIG = LlamaConfig(
    vocab_size=320, d_model=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16, d_ff=48,
    tie_embeddings=True, max_positions=512,
)  # fmt: skip
SIZES = EngineConfig(
    context=256,
    decode_rows=8,
    extend_rows=4,
    extend_tokens=16,
    page_size=4,
    cache_tokens=4096,
    decode_tokens=4,
    instruction_tokens=64,
)
SAMPLING = Sampling(temperature=1.0, max_tokens=10)
PROMPT = Prompt(instruction="Move about.", example=())
TEXTS = ("Thought: the key is left.\nAction: turn left", "You see a key, a door and a ball.")
GUESS_PROMPTS: Mapping[str, Prompt | None] = {"guess": GUESS_PROMPT}


def tiny_model(seed: int = 0, *, reward: bool = False) -> Model:
    """Returns a tiny model with random parameters and a trained tokenizer.

    Args:
      seed: Seed of the parameters.
      reward: Whether it has a value head, with random parameters, in place of a language model's.

    Returns:
      A model with `params`, `config` and `tokenizer`.
    """
    params = weights(seed)
    if reward:
        kernel = np.random.default_rng(seed).standard_normal(CONFIG.d_model) / CONFIG.d_model
        head = {"kernel": jnp.float32(kernel), "bias": jnp.float32(0.5)}
        params = {"trunk": params, "value_head": head}
    return Model(params=params, config=CONFIG, tokenizer=tokenizer())


def tiny_policy(
    engine: Engine | None = None, sampling: Sampling = SAMPLING, seed: int = 0
) -> Agent:
    """Returns a policy of `tiny_model`, which replies with random text to any task.

    Args:
      engine: An engine of the model, to share its compiled programs; None makes one.
      sampling: Parameters of sampling; default: temperature 1 and 10 tokens.
      seed: Seed of the replies.

    Returns:
      The policy. It reads one short instruction before every task.
    """
    engine = engine or Engine(weights(0), CONFIG, SIZES)
    return Agent(engine, tokenizer(), lambda task: PROMPT, sampling, seed)


def tiny_reward_model(seed: int = 0) -> RewardModel:
    """Returns a reward model with random parameters, which scores the states of any task.

    Args:
      seed: Seed of the parameters.

    Returns:
      The reward model. It reads one short instruction before every task.
    """
    model = tiny_model(seed, reward=True)
    engine = Engine(
        llama.unstacked(model.params["trunk"]),
        CONFIG,
        SIZES,
        readout=Readout(model.head),
        head=model.params["value_head"],
    )
    return RewardModel(engine, Renderer(model.tokenizer, lambda task: PROMPT, SIZES.context))


def write_tiny_policy(
    folder: str | os.PathLike[str],
    prompts: Mapping[str, Prompt | None] = GUESS_PROMPTS,
    *,
    seed: int = 0,
) -> pathlib.Path:
    """Writes a folder with `tiny_model`, which `arm.ModelPolicy.load` reads.

    Args:
      folder: The folder.
      prompts: Prompts by environment; None as a value: the model reads no prompt there.
      seed: Seed of the parameters.

    Returns:
      The folder.
    """
    return _written(pathlib.Path(folder), "policy", tiny_model(seed), prompts)


def write_tiny_reward_model(
    folder: str | os.PathLike[str],
    prompts: Mapping[str, Prompt | None] = GUESS_PROMPTS,
    *,
    seed: int = 0,
) -> pathlib.Path:
    """Writes a folder with a reward model, which `arm.RewardModel.load` reads.

    Args:
      folder: The folder.
      prompts: Prompts by environment; None as a value: the model reads no prompt there.
      seed: Seed of the parameters.

    Returns:
      The folder.
    """
    return _written(pathlib.Path(folder), "reward", tiny_model(seed, reward=True), prompts)


def tiny_state(number: int, num_steps: int) -> Trajectory:
    """Returns a state of an environment that does not exist, as a question to a policy or scorer.

    Args:
      number: Number of the task; states with equal numbers have equal beginnings.
      num_steps: Number of steps.

    Returns:
      The state.
    """
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


@functools.cache
def tokenizer() -> Tokenizer:
    """Returns the tokenizer of `tiny_model`."""
    return train_tokenizer(TEXTS, CONFIG.vocab_size)


@functools.cache
def weights(seed: int) -> Any:
    """Returns the parameters of `tiny_model`, in whose replies the stop token is not rare."""
    params = drawn(np.random.default_rng(seed))
    stop = tokenizer().chat.stop_token  # made likelier, so that some replies end and some do not
    return {**params, "embed": params["embed"].at[stop].multiply(2.5)}


def drawn(rng: np.random.Generator) -> Any:
    """Returns random parameters of `CONFIG`, larger than a new model's, so that attention matters.

    Args:
      rng: Draws them.
    """

    def draw(shape: tuple[int, ...], scale: float | None) -> np.ndarray:
        return np.ones(shape) if scale is None else 2 * scale * rng.standard_normal(shape)

    return jax.tree.map(
        lambda spec: jnp.float32(draw(spec.shape, spec.scale)),
        parameters.describe(CONFIG),
        is_leaf=lambda value: isinstance(value, parameters.ParamSpec),
    )


def _written(
    folder: pathlib.Path, kind: str, model: Model, prompts: Mapping[str, Prompt | None]
) -> pathlib.Path:
    folder.mkdir(parents=True, exist_ok=True)
    models.save(folder / MODEL, kind, model)
    write_prompts(folder, prompts)
    return folder
