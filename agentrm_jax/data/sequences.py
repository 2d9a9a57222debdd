"""What a model is trained on: trajectories, paths and trees as sequences of tokens.

Trajectories render to tokens once, and a loss weight stands at each token that teaches something: a
reply's for the policy, the ends of actions and states for a reward model. What paths of a tree
share needs to be read once: a tree is its nodes in preorder, each of which sees its own path.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import Prompt
from agentrm_jax.core.records import Task, Trajectory
from agentrm_jax.data.chat import ChatTokenizer, Rendered, first_steps, render
from agentrm_jax.data.states import LabelledPath


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TokenSequence:
    """One sequence: tokens int32 [T], and for each token a loss weight and a target float32 [T].

    Attributes:
      positions: [T] int32, where the sequence is a tree with its nodes in preorder: how many tokens
        come before each on its path.
      until: [T] int32: where the subtree of its node ends.
    """

    tokens: np.ndarray
    weights: np.ndarray
    targets: np.ndarray
    positions: np.ndarray | None = None
    until: np.ndarray | None = None


def sft_sequences(
    tokenizer: ChatTokenizer,
    prompt_of: Callable[[Task], Prompt | None],
    trajectories: Iterable[Trajectory],
    length: int,
) -> tuple[list[TokenSequence], int]:
    """Trajectories with weight 1 on the tokens of replies: what the policy learns to say.

    One that is longer than `length` becomes several sequences; see `_windows`.

    Returns:
      The sequences with anything to learn, and how many replies are longer than `length`
      themselves and were left out. (Observations that are too long lose their middle.)
    """
    sequences, left_out = [], 0
    for trajectory in trajectories:
        prompt = prompt_of(trajectory.task)
        rendered, _ = render(tokenizer, prompt, trajectory, length, all_steps=True)
        _check_opening(rendered, length, trajectory.task)
        weights = np.zeros(len(rendered.tokens), np.float32)
        weights[_within(rendered.reply_spans)] = 1.0
        cut, lost = _windows(rendered, weights, np.zeros_like(weights), length)
        sequences += cut
        unread = {i for i, (begin, end) in enumerate(rendered.reply_spans) if begin == end}
        left_out += len(unread.union(lost))
    return sequences, left_out


def outcome_sequences(
    tokenizer: ChatTokenizer,
    prompt_of: Callable[[Task], Prompt | None],
    trajectories: Iterable[Trajectory],
    length: int,
) -> tuple[list[TokenSequence], int]:
    """Whole trajectories with weight 1 on the tokens of replies; the first target is the outcome.

    Returns:
      One sequence for each trajectory, and how many of their oldest steps did not fit.
    """
    sequences, left_out = [], 0
    for trajectory in trajectories:
        rendered, dropped = render(tokenizer, prompt_of(trajectory.task), trajectory, length)
        _check_opening(rendered, length, trajectory.task)
        weights, targets = (np.zeros(len(rendered.tokens), np.float32) for _ in range(2))
        weights[_within(rendered.reply_spans)] = 1.0
        targets[0] = trajectory.outcome
        sequences.append(TokenSequence(tokens=rendered.tokens, weights=weights, targets=targets))
        left_out += dropped
    return sequences, left_out


def pair_sequences(
    tokenizer: ChatTokenizer,
    prompt_of: Callable[[Task], Prompt | None],
    pairs: Iterable[tuple[Trajectory, Trajectory]],
    length: int,
) -> tuple[list[TokenSequence], int]:
    """Pairs of a task's trajectories, the better one first, as trees of two branches.

    The replies of the better one have weight 1, those of the other -1, so that one sum is the
    difference of both. Each branch begins with the opening's last token: its first reply token is
    predicted from there.

    Returns:
      One sequence for each pair, and how many of the oldest steps did not fit.
    """
    sequences, left_out = [], 0
    for pair in pairs:
        task = pair[0].task
        # Half of what the opening leaves for each.
        start = dataclasses.replace(pair[0], steps=())
        opening, _ = render(tokenizer, prompt_of(task), start, length)
        _check_opening(opening, length, task)
        root = len(opening.tokens) - 1
        limit = root + (length - root) // 2
        branches = [
            render(tokenizer, prompt_of(task), side, limit, opening_limit=length) for side in pair
        ]
        sequences.append(_fork([rendered for rendered, _ in branches], root))
        left_out += sum(dropped for _, dropped in branches)
    return sequences, left_out


def _fork(branches: Sequence[Rendered], root: int) -> TokenSequence:
    """Two conversations that share their first `root` tokens."""
    rest = [branch.tokens[root:] for branch in branches]
    tokens = np.concatenate([branches[0].tokens[:root], *rest])
    middle, size = root + len(rest[0]), len(tokens)
    weights = np.zeros(size, np.float32)
    for branch, shift, sign in zip(branches, (0, middle - root), (1.0, -1.0), strict=True):
        weights[_within(branch.reply_spans) + shift] = sign
    positions = np.concatenate([np.arange(middle), root + np.arange(len(rest[1]))])
    until = np.repeat([size, middle, size], [root, *map(len, rest)])
    return TokenSequence(
        tokens=tokens,
        weights=weights,
        targets=np.zeros(size, np.float32),
        positions=positions.astype(np.int32),
        until=until.astype(np.int32),
    )


def _within(spans: Iterable[tuple[int, int]]) -> np.ndarray:
    """All indices in spans [start, end)."""
    return np.concatenate([np.arange(0), *(np.arange(*span) for span in spans)])


def value_sequences(
    tokenizer: ChatTokenizer,
    prompt_of: Callable[[Task], Prompt | None],
    paths: Iterable[LabelledPath],
    length: int,
) -> tuple[list[TokenSequence], int]:
    """Paths with their labels at both ends of each step: after the action, and after the answer.

    A beam may score candidates before or after the environment answers; both ends are trained, so
    that both are familiar. The root has its state's end only. A path that is longer than `length`
    becomes several sequences; see `_windows`.

    Returns:
      The sequences with a label, and how many labels were left out with steps that are longer than
      `length` themselves.
    """
    sequences, left_out = [], 0
    for path in paths:
        task = path.trajectory.task
        rendered, _ = render(tokenizer, prompt_of(task), path.trajectory, length, all_steps=True)
        _check_opening(rendered, length, task)
        weights, targets = _labels(rendered, path)
        cut, lost = _windows(rendered, weights, targets, length)
        sequences += cut
        left_out += sum(path.weights[step + 1] > 0 for step in lost)
    return sequences, left_out


def _to_the_last_label(path: LabelledPath) -> LabelledPath:
    """What comes behind it teaches nothing."""
    labelled = [state for state, weight in enumerate(path.weights) if weight > 0]
    end = 1 + max(labelled, default=0)
    trajectory = dataclasses.replace(path.trajectory, steps=path.trajectory.steps[: end - 1])
    return LabelledPath(
        trajectory=trajectory,
        node_ids=path.node_ids[:end],
        values=path.values[:end],
        visit_counts=path.visit_counts[:end],
        weights=path.weights[:end],
    )


def _labels(rendered: Rendered, path: LabelledPath) -> tuple[np.ndarray, np.ndarray]:
    """The loss weight and target of each token of a path."""
    weights = np.zeros(len(rendered.tokens), np.float32)
    targets = np.zeros_like(weights)
    for state, (value, weight) in enumerate(zip(path.values, path.weights, strict=True)):
        ends = [rendered.state_ends[state]]
        if state:
            ends.append(rendered.action_ends[state - 1])
        targets[ends], weights[ends] = value, weight
    return weights, targets


def tree_sequences(
    tokenizer: ChatTokenizer,
    prompt_of: Callable[[Task], Prompt | None],
    paths: Iterable[LabelledPath],
    length: int,
) -> tuple[list[TokenSequence], int]:
    """The same labels with the paths of a task as one tree: what they share is read once.

    A tree that is longer than `length` becomes several, each of some paths. Paths that are longer
    themselves stay what `value_sequences` makes of them.

    Returns:
      As `value_sequences`.
    """
    long: list[LabelledPath] = []
    trees: dict[str, list[_Branch]] = {}
    for path in (_to_the_last_label(path) for path in paths if path.num_labels):
        rendered, _ = render(tokenizer, prompt_of(path.trajectory.task), path.trajectory)
        if len(rendered.tokens) > length:
            long.append(path)
        else:
            branch = _Branch(rendered, path)
            trees.setdefault(path.trajectory.task.task_id, []).append(branch)
    sequences, left_out = value_sequences(tokenizer, prompt_of, long, length)
    for own in trees.values():
        sequences += [_tree(part) for part in _parts(_in_preorder(own), length)]
    return sequences, left_out


class _Branch:
    """A path cut into the tokens of its nodes, with their labels."""

    def __init__(self, rendered: Rendered, path: LabelledPath) -> None:
        self.nodes = path.node_ids
        ends = [0, *(end + 1 for end in rendered.state_ends)]
        self.spans = [slice(*span) for span in itertools.pairwise(ends)]
        self.tokens = rendered.tokens
        self.weights, self.targets = _labels(rendered, path)

    def shared(self, other: _Branch) -> int:
        """How many nodes both begin with."""
        pairs = zip(self.nodes, other.nodes, strict=False)
        return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))

    def tokens_behind(self, nodes: int) -> int:
        """How many tokens follow the first nodes."""
        return len(self.tokens) - (self.spans[nodes - 1].stop if nodes else 0)


def _in_preorder(branches: Sequence[_Branch]) -> list[_Branch]:
    """So that those through a node follow one another; nodes in the order in which they come."""
    rank: dict[int, int] = {}
    for node in itertools.chain.from_iterable(branch.nodes for branch in branches):
        rank.setdefault(node, len(rank))
    return sorted(branches, key=lambda branch: [rank[node] for node in branch.nodes])


def _parts(branches: Sequence[_Branch], length: int) -> Iterator[list[_Branch]]:
    """As many neighbours together as make a tree of at most `length` tokens."""
    part: list[_Branch] = []
    taken = 0
    for branch in branches:
        added = branch.tokens_behind(branch.shared(part[-1]) if part else 0)
        if taken + added > length:
            yield part
            part, taken, added = [], 0, len(branch.tokens)
        part.append(branch)
        taken += added
    yield part


def _tree(branches: Sequence[_Branch]) -> TokenSequence:
    """Branches in preorder as one sequence. Each label stands on one of them."""
    places: list[slice] = []  # of the current branch's nodes
    size = 0
    ends: list[tuple[slice, int]] = []
    kept: list[tuple[_Branch, int, list[slice]]] = []
    for i, branch in enumerate(branches):
        shared = branch.shared(branches[i - 1]) if i else 0
        ends += [(place, size) for place in places[shared:]]
        places = places[:shared]
        for span in branch.spans[shared:]:
            places.append(slice(size, size + span.stop - span.start))
            size = places[-1].stop
        kept.append((branch, shared, places))
    ends += [(place, size) for place in places]
    tokens, positions, until = (np.zeros(size, np.int32) for _ in range(3))
    weights, targets = (np.zeros(size, np.float32) for _ in range(2))
    for branch, shared, places in kept:
        for node, (place, span) in enumerate(zip(places, branch.spans, strict=True)):
            weights[place] += branch.weights[span]
            if node >= shared:
                tokens[place], targets[place] = branch.tokens[span], branch.targets[span]
                positions[place] = np.arange(span.start, span.stop)
    for place, end in ends:
        until[place] = end
    return TokenSequence(
        tokens=tokens, weights=weights, targets=targets, positions=positions, until=until
    )


def _windows(
    rendered: Rendered, weights: np.ndarray, targets: np.ndarray, length: int
) -> tuple[list[TokenSequence], list[int]]:
    """A rendered trajectory as sequences of at most `length` tokens, each weight in one of them.

    States that keep the same steps at test time (`chat.first_steps`) share a sequence: the opening,
    earlier steps for context, and the steps that are new in it.

    Returns:
      The sequences that have a weight, and the numbers of steps that are too long for any.
    """
    ends = [end + 1 for end in rendered.state_ends]  # ends[i]: where step i begins
    firsts = first_steps(np.diff(ends).tolist(), length - ends[0])
    sequences: list[TokenSequence] = []
    for first in dict.fromkeys(firsts):
        own = [state for state, kept in enumerate(firsts) if kept == first]
        at = np.r_[0 : ends[0], ends[first] : ends[own[-1]]]
        new = ends[own[0] - 1] if own[0] else 0  # where what no earlier sequence holds begins
        held = weights[at] * (at >= new)
        if held.any():
            sequences.append(
                TokenSequence(tokens=rendered.tokens[at], weights=held, targets=targets[at])
            )
    return sequences, [i for i in range(len(ends) - 1) if firsts[i + 1] == i + 1]


def _check_opening(rendered: Rendered, length: int, task: Task) -> None:
    opening = rendered.state_ends[0] + 1
    if opening > length:
        raise UserError(
            f"must be at least {opening} for the opening of task {task.task_id}",
            field="length",
            value=length,
        )
