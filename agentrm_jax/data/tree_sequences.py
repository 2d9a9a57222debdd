"""Labelled trees as sequences in which each node is read once.

A tree is one sequence, its nodes in preorder; each token attends to the tokens of its own path
only.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from agentrm_jax.core.protocols import Prompt
from agentrm_jax.core.records import Task
from agentrm_jax.data.chat import (
    ChatTokenizer,
    observation_tokens,
    opening_tokens,
    reply_tokens,
)
from agentrm_jax.data.sequences import TokenSequence, branch_sequences, end_numbers
from agentrm_jax.data.states import Branch, LabelledTree


def tree_sequences(
    tokenizer: ChatTokenizer,
    prompt_of: Callable[[Task], Prompt | None],
    trees: Iterable[LabelledTree],
    length: int,
) -> tuple[list[TokenSequence], int]:
    """Returns labelled trees as sequences in which each node is read once.

    The labels equal the labels of `value_sequences`. A tree that is longer than `length` becomes
    several sequences, each of some branches. A branch that is longer itself becomes what
    `value_sequences` makes of it.

    Args:
      tokenizer: The model's tokenizer.
      prompt_of: The prompt of a task, None for none.
      trees: Labelled trees.
      length: Most tokens of a sequence.

    Returns:
      As `value_sequences`: first the sequences of branches that are too long, then of trees.

    Raises:
      UserError: As `value_sequences`.
    """
    windows: list[TokenSequence] = []
    packed: list[TokenSequence] = []
    truncated, first_family = 0, 1
    for tree in trees:
        prompt = prompt_of(tree.task)
        nodes = _NodeTokens(tokenizer, prompt, tree)
        fitting: list[Branch] = []
        for branch in (branch.to_last_label() for branch in tree.branches()):
            if nodes.count(branch.nodes) <= length:
                fitting.append(branch)
                continue
            more, lost = branch_sequences(tokenizer, prompt, tree, branch, length, first_family)
            windows += more
            truncated += lost
        packed += [
            _tree_sequence(tree, nodes, group, first_family)
            for group in _groups(_in_preorder(fitting), nodes, length)
        ]
        first_family += len(tree.parents)
    return [*windows, *packed], truncated


class _NodeTokens:
    """The tokens of each node of a tree: of the root the opening, of another one its step."""

    def __init__(self, tokenizer: ChatTokenizer, prompt: Prompt | None, tree: LabelledTree) -> None:
        self._tokenizer, self._prompt, self._tree = tokenizer, prompt, tree
        self._rendered: dict[int, tuple[list[int], list[int]]] = {}

    def rendered(self, node: int) -> tuple[list[int], list[int]]:
        """Returns a node's tokens, and the indices among them at which its label stands."""
        if node not in self._rendered:
            if node == 0:
                first = self._tree.first_observation
                tokens, ends = opening_tokens(self._tokenizer, self._prompt, first), [-1]
            else:
                step = self._tree.steps[node - 1]
                reply = reply_tokens(self._tokenizer, step.reply, step.token_ids)
                answer = observation_tokens(self._tokenizer, step.transition.observation)
                tokens, ends = [*reply, *answer], [-1, len(reply) - 1]
            self._rendered[node] = tokens, [end % len(tokens) for end in ends]
        return self._rendered[node]

    def count(self, nodes: Iterable[int]) -> int:
        """Returns how many tokens some nodes have together."""
        return sum(len(self.rendered(node)[0]) for node in nodes)


def _in_preorder(branches: Sequence[Branch]) -> list[Branch]:
    """Sorts branches: those of one node are consecutive, and siblings keep their order."""
    rank: dict[int, int] = {}
    for node in itertools.chain.from_iterable(branch.nodes for branch in branches):
        rank.setdefault(node, len(rank))
    return sorted(branches, key=lambda branch: [rank[node] for node in branch.nodes])


def _groups(branches: Sequence[Branch], nodes: _NodeTokens, length: int) -> Iterator[list[Branch]]:
    """Groups neighbouring branches, as many as make a tree of at most `length` tokens."""
    group: list[Branch] = []
    size = 0
    for branch in branches:
        before = set(group[-1].nodes) if group else set()
        added = nodes.count(node for node in branch.nodes if node not in before)
        if size + added > length:
            yield group
            group, size, added = [], 0, nodes.count(branch.nodes)
        group.append(branch)
        size += added
    if group:
        yield group


def _tree_sequence(
    tree: LabelledTree, nodes: _NodeTokens, branches: Sequence[Branch], first_family: int
) -> TokenSequence:
    """Returns branches in preorder as one sequence."""
    weight_of: dict[int, float] = {}
    for branch in branches:
        for node, weight in zip(branch.nodes, branch.weights, strict=True):
            weight_of[node] = max(weight, weight_of.get(node, 0.0))
    order = list(weight_of)  # by first appearance, which is preorder
    sizes = [nodes.count([node]) for node in order]
    starts = dict(zip(order, np.cumsum([0, *sizes]).tolist(), strict=False))
    ends = {node: starts[node] + size for node, size in zip(order, sizes, strict=True)}
    depths = {0: 0}  # tokens before the node on its path
    for node in order[1:]:
        parent = tree.parents[node]
        depths[node] = depths[parent] + nodes.count([parent])
    for node in reversed(order[1:]):
        parent = tree.parents[node]
        ends[parent] = max(ends[parent], ends[node])
    weights, targets = (np.zeros(sum(sizes), np.float32) for _ in range(2))
    siblings, predicted = np.zeros(sum(sizes), np.int32), np.zeros(sum(sizes), bool)
    for node in order:
        indices = [starts[node] + index for index in nodes.rendered(node)[1]]
        weights[indices], targets[indices] = weight_of[node], tree.values[node]
        if node:
            siblings[indices] = end_numbers(first_family, tree.parents[node])
            predicted[indices[1] + 1 : indices[0] + 1] = weight_of[node] > 0
    shift = np.repeat([depths[node] - starts[node] for node in order], sizes)
    return TokenSequence(
        tokens=np.concatenate([np.asarray(nodes.rendered(n)[0], np.int32) for n in order]),
        weights=weights,
        targets=targets,
        positions=(np.arange(len(shift)) + shift).astype(np.int32),
        subtree_ends=np.repeat([ends[node] for node in order], sizes).astype(np.int32),
        siblings=siblings,
        predicted=predicted,
    )
