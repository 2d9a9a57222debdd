"""Small trajectories, random ones, and tokenizers to render them with."""

from __future__ import annotations

import functools

from hypothesis import strategies as st

from agentrm_jax.core.protocols import Prompt
from agentrm_jax.core.records import Step, Task, Trajectory, Transition
from agentrm_jax.data.tokenizer import Tokenizer, train_tokenizer

PROMPT = Prompt(instruction="Move about.", example=("You see a key.", "Action: take key", "Done."))

TEXTS = (
    "Thought: the red key is to the left.\nAction: turn left",
    "Action: go to red key 1",
    "There is a red key 1 right in front of you 3 steps away.",
    "You are carrying a blue ball 12.",
)


def task(number: int = 0) -> Task:
    return Task(
        environment="toy", task_id=f"toy/{number}", kind="easy", split="train",
        problem=f"{number:016x}", max_steps=9, spec={"number": number},
    )  # fmt: skip


def step(
    reply: str, observation: str, *, reward: float = 0.0, done: bool = False,
    token_ids: tuple[int, ...] = (), log_probs: tuple[float, ...] = (),
) -> Step:  # fmt: skip
    return Step(
        reply=reply, action=reply.removeprefix("Action: "), token_ids=token_ids,
        log_probs=log_probs,
        transition=Transition(observation=observation, reward=reward, done=done, success=done),
    )  # fmt: skip


def trajectory(num_steps: int, number: int = 0) -> Trajectory:
    """Steps that are all different and of different lengths; the last one ends it."""
    steps = tuple(
        step(
            f"Action: go {'on ' * (i % 3)}{i}", f"You see {'a key, ' * (i % 4)}{number}.",
            reward=float(i == num_steps - 1), done=i == num_steps - 1,
        )
        for i in range(num_steps)
    )  # fmt: skip
    return Trajectory(task=task(number), first_observation=f"Goal: {number}.", steps=steps)


@functools.cache
def word_tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, 320)


# Everything but lone surrogates, which no encoding can carry.
any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
hostile_text = st.one_of(
    any_text,
    st.lists(
        st.sampled_from(
            ["<|end|>", "<|user|>", "<|assistant|>", "<|pad|>", "<|begin|>", "a ", "\n"]
        )
    ).map("".join),
)


@st.composite
def trajectories(draw: st.DrawFn) -> Trajectory:
    """Some steps written by an expert, some sampled, some sampled as another tokenizer's tokens."""
    ids = st.lists(st.integers(5, 300), max_size=5).map(tuple)
    written = hostile_text.map(lambda reply: (reply, ()))
    sampled = ids.map(lambda ids: (word_tokenizer().decode(ids), ids))
    replies = st.one_of(written, sampled, st.tuples(hostile_text, ids))
    steps = draw(
        st.lists(
            st.builds(
                lambda reply, observation: step(reply[0], observation, token_ids=reply[1]),
                replies, hostile_text,
            ),
            max_size=5,
        )
    )  # fmt: skip
    return Trajectory(task=task(), first_observation=draw(hostile_text), steps=tuple(steps))
