"""A probe of environments: do the words of the last observation give the outcome away?

A logistic regression reads the set of words of the last observation of training trajectories and
predicts whether the task was solved. It is tested on tasks that it has not learned from. If it
succeeds, a reward model that scores after the last observation can choose well by reading the end
of an episode, without any knowledge of good actions.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

from agentrm_jax.core.records import Trajectory
from agentrm_jax.data.trees import TreeRecord
from agentrm_jax.evaluation.episodes import grouped
from agentrm_jax.evaluation.report_rows import ProbeRow

GIVES_AWAY = 0.9
"""The area under the curve from which on the last observation gives the outcome away.

It is the probability that a success is scored above a failure. At 0.9 a reader of words that knows
nothing of the task orders nine pairs of ten. This is as good as trained reward models are with the
last observation in view, so that their scores there do not show that they judge actions.
"""

FOLDS = 5
MOST_TRAJECTORIES = 5000
"""Trajectories of an environment that are read, evenly spaced; more change nothing but the time."""
MOST_WORDS = 300
"""Words that are told apart: the most frequent ones of the trajectories that are learned from."""
_LEAST = FOLDS  # successes and failures without which nothing can be learned
_PENALTY = 1.0  # of squared weights: a prior of unit variance
_WORD = re.compile(r"\w+")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """The end of a trajectory.

    Attributes:
      environment: The environment.
      task_id: The task.
      observation: The last observation.
      success: Whether the task was solved.
    """

    environment: str
    task_id: str
    observation: str
    success: bool


def ending_of(trajectory: Trajectory) -> Ending:
    """Returns the end of a finished trajectory."""
    return Ending(
        environment=trajectory.task.environment,
        task_id=trajectory.task.task_id,
        observation=trajectory.steps[-1].transition.observation,
        success=trajectory.success,
    )


def tree_endings(tree: TreeRecord) -> list[Ending]:
    """Returns the ends of the trajectories of a search tree: its terminal nodes, each once."""
    nodes = tree.nodes
    leaves = dict.fromkeys(backup.path[-1] for backup in tree.backups)
    return [
        Ending(
            environment=tree.task.environment,
            task_id=tree.task.task_id,
            observation=nodes[leaf].step.transition.observation,
            success=nodes[leaf].step.transition.success,
        )
        for leaf in leaves
        if leaf in nodes
    ]


def probe_rows(
    endings: Sequence[Ending],
    source: str,
    declared: Callable[[str], bool | None] = lambda environment: None,
) -> dict[str, ProbeRow]:
    """Returns the result of the probe for each environment.

    Args:
      endings: The ends of training trajectories.
      source: Where they come from: `trees` or `samples`.
      declared: Returns what an environment declares of its last observation
        (`envs.registry.end_reveals_outcome`).
    """
    return {
        environment: {**_probe_row(own, source), "declared": declared(environment)}
        for environment, own in grouped(endings, lambda ending: ending.environment)
    }


def gives_away(row: ProbeRow) -> bool:
    """Returns whether the last observation gives the outcome away, as declared or as measured."""
    return row["gives_away"] or row.get("declared") is True


def disagrees(row: ProbeRow) -> bool:
    """Returns whether an environment declares something else than what was measured."""
    declared = row.get("declared")
    return declared is not None and row["auc"] is not None and declared != row["gives_away"]


def _probe_row(endings: Sequence[Ending], source: str) -> ProbeRow:
    stride = -(-len(endings) // MOST_TRAJECTORIES)
    read = endings[::stride]
    solved = np.array([ending.success for ending in read], float)
    tasks = sorted({ending.task_id for ending in read})
    row: ProbeRow = {
        "source": source,
        "n": len(read),
        "n_tasks": len(tasks),
        "success_rate": float(solved.mean()),
        "accuracy": None,
        "majority": float(max(solved.mean(), 1 - solved.mean())),
        "auc": None,
        "gives_away": False,
    }
    if min(solved.sum(), (1 - solved).sum()) < _LEAST or len(tasks) < FOLDS:
        return row
    fold_of = {task_id: number % FOLDS for number, task_id in enumerate(tasks)}
    folds = np.array([fold_of[ending.task_id] for ending in read])
    predicted = predictions([ending.observation for ending in read], solved, folds)
    auc = area_under_curve(predicted, solved)
    row["accuracy"] = float(np.mean((predicted > 0.5) == (solved == 1)))
    row["auc"], row["gives_away"] = auc, auc >= GIVES_AWAY
    return row


def predictions(texts: Sequence[str], solved: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Returns the predicted probability of success of each text, learned from the other folds.

    Args:
      texts: [N] the last observations.
      solved: [N] 1 for a success, 0 for a failure.
      folds: [N] the fold of each text; texts of one task are in one fold.
    """
    words = [set(_WORD.findall(text.lower())) for text in texts]
    predicted = np.empty(len(texts))
    for fold in np.unique(folds):
        learned = folds != fold
        vocabulary = _vocabulary([words[i] for i in np.flatnonzero(learned)])
        present = np.array([[word in own for word in vocabulary] for own in words], float)
        present = np.concatenate([np.ones((len(texts), 1)), present], axis=1)
        weights = logistic_regression(present[learned], solved[learned])
        predicted[~learned] = _sigmoid(present[~learned] @ weights)
    return predicted


def _vocabulary(texts: Sequence[set[str]]) -> list[str]:
    """The most frequent words, equally frequent ones in the order of the alphabet."""
    counts: dict[str, int] = {}
    for words in texts:
        for word in words:
            counts[word] = counts.get(word, 0) + 1
    return sorted(counts, key=lambda word: (-counts[word], word))[:MOST_WORDS]


def logistic_regression(features: np.ndarray, solved: np.ndarray) -> np.ndarray:
    """Returns the weights that minimise the penalised cross-entropy, by Newton's method.

    The penalty is half of the squared weights, without that of the first column, the constant.

    Args:
      features: [N, D], the first column all 1.
      solved: [N] 1 for a success, 0 for a failure; both occur, or the constant has no limit.

    Returns:
      [D] weights.
    """
    penalty = np.full(features.shape[1], _PENALTY)
    penalty[0] = 0.0

    def loss(weights: np.ndarray) -> float:
        logits = features @ weights
        return float(np.logaddexp(0.0, logits).sum() - solved @ logits + penalty @ weights**2 / 2)

    weights = np.zeros(features.shape[1])
    for _ in range(50):
        chance = _sigmoid(features @ weights)
        gradient = features.T @ (chance - solved) + penalty * weights
        if np.abs(gradient).max() < 1e-8 * len(solved):
            break
        curvature = (features.T * (chance * (1 - chance))) @ features + np.diag(penalty)
        curvature[0, 0] += 1e-9  # the constant's own may vanish
        step = np.linalg.solve(curvature, -gradient)
        while np.abs(step).max() > 1e-12 and loss(weights + step) > loss(weights):
            step /= 2
        weights = weights + step
    return weights


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0.0, -logits))


def area_under_curve(scores: np.ndarray, solved: np.ndarray) -> float:
    """Returns the probability that a success has a higher score than a failure; equal ones half.

    Args:
      scores: [N] any numbers.
      solved: [N] 1 for a success, 0 for a failure; both occur.
    """
    ranks, successes = stats.rankdata(scores), solved == 1
    wins, losses = int(successes.sum()), int((~successes).sum())
    return float((ranks[successes].sum() - wins * (wins + 1) / 2) / (wins * losses))
