"""Training sequences: trajectories and labelled trees as tokens with loss weights and targets.

A policy has a loss at the tokens of replies, a reward model at the ends of actions and states.
`data.tree_sequences` makes one sequence of a whole tree.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import Prompt
from agentrm_jax.core.records import Task, Trajectory
from agentrm_jax.data.chat import (
    ChatTokenizer,
    Rendered,
    first_steps,
    render,
)
from agentrm_jax.data.states import Branch, LabelledTree


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TokenSequence:
    """One sequence of T tokens: a conversation, or a tree with its nodes in preorder.

    Attributes:
      tokens: [T] int32.
      weights: [T] float32, the weight of each token in the loss.
      targets: [T] float32, the target of each token.
      positions: [T] int32, of a tree: the number of tokens before each token on its path.
      subtree_ends: [T] int32, of a tree: the index after the last token of the node's subtree.
      siblings: [T] int32, of labelled trees: a number that the ends of siblings share, also across
        the sequences of one call; even after the observation, odd after the action (`end_numbers`).
        0 at all other tokens.
      predicted: [T] bool, of labelled trees: the tokens of the observations that follow the actions
        of labelled states; a token that several sequences share is marked in one of them.
    """

    tokens: np.ndarray
    weights: np.ndarray
    targets: np.ndarray
    positions: np.ndarray | None = None
    subtree_ends: np.ndarray | None = None
    siblings: np.ndarray | None = None
    predicted: np.ndarray | None = None


def end_numbers(first_family: int, parent: int) -> tuple[int, int]:
    """Returns `TokenSequence.siblings` at both ends of a step: after the observation, the action.

    Args:
      first_family: Number of the family of the root's children, at least 1: families of other trees
        have other numbers.
      parent: The node that the step leaves.
    """
    family = first_family + parent
    return 2 * family, 2 * family + 1


def sft_sequences(
    tokenizer: ChatTokenizer,
    prompt_of: Callable[[Task], Prompt | None],
    trajectories: Iterable[Trajectory],
    length: int,
    *,
    refused: bool = True,
) -> tuple[list[TokenSequence], int]:
    """Returns trajectories with weight 1 on the tokens of replies, for training a policy.

    Args:
      tokenizer: The model's tokenizer.
      prompt_of: The prompt of a task, None for none.
      trajectories: The trajectories.
      length: Most tokens of a sequence. A longer trajectory becomes several sequences (`_windows`);
        an observation that alone is too long loses its middle.
      refused: Whether replies whose action the environment refused have weight 1 too, not 0.

    Returns:
      The sequences with a weight, and the number of truncated steps: replies that alone are longer
      than `length`.

    Raises:
      UserError: An opening (prompt and first observation) is longer than `length`.
    """
    sequences, truncated = [], 0
    for trajectory in trajectories:
        prompt = prompt_of(trajectory.task)
        rendered, _ = render(tokenizer, prompt, trajectory, length, all_steps=True)
        _check_opening(rendered, length, trajectory.task)
        weights = np.zeros(len(rendered.tokens), np.float32)
        turns = zip(rendered.reply_spans, trajectory.steps, strict=True)
        learned = [span for span, step in turns if refused or step.transition.valid]
        weights[_within(learned)] = 1.0
        windows, lost = _windows(rendered, weights, np.zeros_like(weights), length)
        sequences += windows
        shortened = {i for i, (begin, end) in enumerate(rendered.reply_spans) if begin == end}
        truncated += len(shortened.union(lost))
    return sequences, truncated


def outcome_sequences(
    tokenizer: ChatTokenizer,
    prompt_of: Callable[[Task], Prompt | None],
    trajectories: Iterable[Trajectory],
    length: int,
) -> tuple[list[TokenSequence], int]:
    """Returns trajectories with weight 1 on the tokens of replies and the outcome as first target.

    Args:
      tokenizer: The model's tokenizer.
      prompt_of: The prompt of a task, None for none.
      trajectories: The trajectories.
      length: Most tokens of a sequence.

    Returns:
      One sequence for each trajectory, and the number of truncated steps: the oldest ones of
      trajectories that are longer than `length`.

    Raises:
      UserError: An opening (prompt and first observation) is longer than `length`.
    """
    sequences, truncated = [], 0
    for trajectory in trajectories:
        rendered, removed = render(tokenizer, prompt_of(trajectory.task), trajectory, length)
        _check_opening(rendered, length, trajectory.task)
        weights, targets = (np.zeros(len(rendered.tokens), np.float32) for _ in range(2))
        weights[_within(rendered.reply_spans)] = 1.0
        targets[0] = trajectory.outcome
        sequences.append(TokenSequence(tokens=rendered.tokens, weights=weights, targets=targets))
        truncated += removed
    return sequences, truncated


def pair_sequences(
    tokenizer: ChatTokenizer,
    prompt_of: Callable[[Task], Prompt | None],
    pairs: Iterable[tuple[Trajectory, Trajectory]],
    length: int,
) -> tuple[list[TokenSequence], int]:
    """Returns pairs of a task's trajectories, the better one first, as trees of two branches.

    The replies of the better trajectory have weight 1, those of the other -1, so that the weighted
    sum is the difference of both. Each branch begins with the opening's last token, because its
    first reply token is predicted from there.

    Args:
      tokenizer: The model's tokenizer.
      prompt_of: The prompt of a task, None for none.
      pairs: The pairs.
      length: Most tokens of a sequence.

    Returns:
      One sequence for each pair, and the number of truncated steps: the oldest ones of pairs that
      are longer than `length`.

    Raises:
      UserError: An opening (prompt and first observation) is longer than `length`.
    """
    sequences, truncated = [], 0
    for pair in pairs:
        task = pair[0].task
        # Each branch gets half of the tokens after the opening.
        start = dataclasses.replace(pair[0], steps=())
        opening, _ = render(tokenizer, prompt_of(task), start, length)
        _check_opening(opening, length, task)
        root = len(opening.tokens) - 1
        limit = root + (length - root) // 2
        branches = [
            render(tokenizer, prompt_of(task), side, limit, opening_limit=length) for side in pair
        ]
        sequences.append(_fork([rendered for rendered, _ in branches], root))
        truncated += sum(removed for _, removed in branches)
    return sequences, truncated


def _fork(branches: Sequence[Rendered], root: int) -> TokenSequence:
    """Returns two conversations that share their first `root` tokens as one tree."""
    rest = [branch.tokens[root:] for branch in branches]
    tokens = np.concatenate([branches[0].tokens[:root], *rest])
    middle, size = root + len(rest[0]), len(tokens)
    weights = np.zeros(size, np.float32)
    for branch, shift, sign in zip(branches, (0, middle - root), (1.0, -1.0), strict=True):
        weights[_within(branch.reply_spans) + shift] = sign
    positions = np.concatenate([np.arange(middle), root + np.arange(len(rest[1]))])
    subtree_ends = np.repeat([size, middle, size], [root, *map(len, rest)])
    return TokenSequence(
        tokens=tokens,
        weights=weights,
        targets=np.zeros(size, np.float32),
        positions=positions.astype(np.int32),
        subtree_ends=subtree_ends.astype(np.int32),
    )


def _within(spans: Iterable[tuple[int, int]]) -> np.ndarray:
    """Returns all indices in spans [start, end)."""
    return np.concatenate([np.arange(0), *(np.arange(*span) for span in spans)])


def value_sequences(
    tokenizer: ChatTokenizer,
    prompt_of: Callable[[Task], Prompt | None],
    trees: Iterable[LabelledTree],
    length: int,
) -> tuple[list[TokenSequence], int]:
    """Returns the branches of labelled trees, one by one, with labels at both ends of each step.

    A step ends with the action and with the environment's answer. A beam may score candidates at
    either end, so both are trained. The root has one end only.

    Args:
      tokenizer: The model's tokenizer.
      prompt_of: The prompt of a task, None for none.
      trees: Labelled trees.
      length: Most tokens of a sequence. A longer branch becomes several sequences (`_windows`).

    Returns:
      The sequences that hold a label, and the number of labels that are in no sequence because
      their step alone is longer than `length`.

    Raises:
      UserError: An opening (prompt and first observation) is longer than `length`.
    """
    sequences: list[TokenSequence] = []
    truncated, first_family = 0, 1
    for tree in trees:
        prompt = prompt_of(tree.task)
        for branch in tree.branches():
            windows, lost = branch_sequences(tokenizer, prompt, tree, branch, length, first_family)
            sequences += windows
            truncated += lost
        first_family += len(tree.parents)
    return sequences, truncated


def branch_sequences(
    tokenizer: ChatTokenizer,
    prompt: Prompt | None,
    tree: LabelledTree,
    branch: Branch,
    length: int,
    first_family: int,
) -> tuple[list[TokenSequence], int]:
    """Returns the windows of one branch, and how many of its labels do not fit.

    Args:
      tokenizer: The model's tokenizer.
      prompt: The prompt of the task, None for none.
      tree: The labelled tree.
      branch: The branch.
      length: Most tokens of a sequence.
      first_family: See `end_numbers`.
    """
    leaf = tree.state(branch.nodes[-1])
    rendered, _ = render(tokenizer, prompt, leaf, length, all_steps=True)
    _check_opening(rendered, length, tree.task)
    weights, targets = (np.zeros(len(rendered.tokens), np.float32) for _ in range(2))
    siblings = np.zeros(len(rendered.tokens), np.int32)
    predicted = np.zeros(len(rendered.tokens), bool)
    for depth, (node, weight) in enumerate(zip(branch.nodes, branch.weights, strict=True)):
        ends = [rendered.state_ends[depth]]
        if depth:
            ends.append(rendered.action_ends[depth - 1])
            siblings[ends] = end_numbers(first_family, tree.parents[node])
            predicted[ends[1] + 1 : ends[0] + 1] = weight > 0
        targets[ends], weights[ends] = tree.values[node], weight
    windows, lost = _windows(rendered, weights, targets, length, siblings, predicted)
    return windows, sum(branch.weights[step + 1] > 0 for step in lost)


def _windows(
    rendered: Rendered,
    weights: np.ndarray,
    targets: np.ndarray,
    length: int,
    siblings: np.ndarray | None = None,
    predicted: np.ndarray | None = None,
) -> tuple[list[TokenSequence], list[int]]:
    """Cuts a rendered trajectory into sequences of at most `length` tokens.

    States that keep the same steps at test time (`chat.first_steps`) share a sequence: the opening,
    earlier steps for context, and the steps that are new in it. Each weight is in one sequence.

    Returns:
      The sequences that have a weight, and the numbers of the steps that alone are too long.
    """
    begins = [end + 1 for end in rendered.state_ends]  # begins[i]: first token of step i
    firsts = first_steps(np.diff(begins).tolist(), length - begins[0])
    sequences: list[TokenSequence] = []
    for first in dict.fromkeys(firsts):
        states = [state for state, kept in enumerate(firsts) if kept == first]
        indices = np.r_[0 : begins[0], begins[first] : begins[states[-1]]]
        first_new = begins[states[0] - 1] if states[0] else 0  # earlier ones are context
        is_new = indices >= first_new
        held = weights[indices] * is_new
        if held.any():
            sequences.append(
                TokenSequence(
                    tokens=rendered.tokens[indices],
                    weights=held,
                    targets=targets[indices],
                    siblings=None if siblings is None else siblings[indices],
                    predicted=None if predicted is None else predicted[indices] & is_new,
                )
            )
    return sequences, [i for i in range(len(begins) - 1) if firsts[i + 1] == i + 1]


def _check_opening(rendered: Rendered, length: int, task: Task) -> None:
    opening = rendered.state_ends[0] + 1
    if opening > length:
        raise UserError(
            f"must be at least {opening} for the opening of task {task.task_id}",
            field="length",
            value=length,
        )
