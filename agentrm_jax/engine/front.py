"""The two functions of the engine: `generate` replies and `score` sequences."""

from __future__ import annotations

from collections.abc import Sequence

from agentrm_jax.engine.engine import Engine
from agentrm_jax.engine.programs.sampling import Sampling
from agentrm_jax.engine.request import Reply, Request, TokenSequence
from agentrm_jax.engine.schedule.scheduler import Scheduler
from agentrm_jax.engine.schedule.stopping import Stopping


def generate(
    engine: Engine, requests: Sequence[Request], *, n: int, sampling: Sampling, stop: int
) -> list[list[Reply]]:
    """Samples n replies to each request.

    Args:
      engine: The model.
      requests: Any number of sequences to continue.
      n: The number of replies to each.
      sampling: How tokens are sampled.
      stop: The token that ends a reply.

    Returns:
      The replies to each request, in the order of the requests.

    Raises:
      UserError: A sequence and its reply are longer than the context, or the cache is too small.
    """
    scheduler = Scheduler(engine, sampling, Stopping(tokens=(stop,)), [n])
    # A batch costs as much as its longest sequence.
    order = sorted(range(len(requests)), key=lambda i: requests[i].length)
    index = {scheduler.submit(requests[i], n): i for i in order}
    replies: dict[int, list[Reply]] = {}
    while len(replies) < len(requests):
        replies.update((index[ticket], done) for ticket, done in scheduler.collect())
    return [replies[i] for i in range(len(requests))]


def score(engine: Engine, sequences: Sequence[TokenSequence]) -> list[float]:
    """Returns the model's readout at the last token of each sequence.

    Args:
      engine: A model with a readout.
      sequences: Any number of sequences; equal ones are read once.

    Raises:
      UserError: The cache is too small for one of the sequences.
    """
    leaves = [engine.cache.find(sequence) for sequence in sequences]
    unread = [[leaf] for leaf in dict.fromkeys(leaves) if leaf.readout is None]
    for first, end in engine.prefill.batches(unread, len(unread)):
        engine.prefill.run([leaf for [leaf] in unread[first:end]])
    return [leaf.score for leaf in leaves]
