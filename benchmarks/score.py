"""Scores of candidates that share a context: the engine against encoding the whole sequences.

    python -m benchmarks.score [--tiny]
    python -m benchmarks.score --model 8b --dtype bfloat16    (on a machine with a GPU)

The context is encoded before the clock starts. Every round scores new candidates. The sides:
  ours   the engine: one prefill batch of the candidates; the context is in the prefix cache
  dense  our forward pass over the whole sequences, in one batch and one compiled program
  torch  transformers' LlamaForSequenceClassification over the whole sequences, two at a time (the
         fastest batch size here)

Exactness: the largest difference of the scores from ours.

With --model, only the engine is measured, as a fraction of the device's limits (see
`benchmarks.roofline`).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from agentrm_jax.model import llama
from agentrm_jax.model.config import LlamaConfig
from agentrm_jax.model.parameters import Params
from agentrm_jax.model.value import readout
from benchmarks import engines, measuring, models, roofline


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    n: int
    tokens: int
    context: int


def dense_scorer(params: Params, head: Params, config: LlamaConfig):
    """Returns a function from whole sequences [n, T] to scores [n]; it uses no cache."""

    @jax.jit
    def score(params: Params, head: Params, tokens: jax.Array) -> jax.Array:
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        hidden = llama.forward(params, config, tokens, positions, jnp.ones_like(tokens))
        return readout(head, hidden[:, -1])

    return lambda tokens: np.asarray(score(params, head, tokens))


def compare(
    params: Params, config: LlamaConfig, case: Case, *, rounds: int, threads: int
) -> dict[str, Any]:
    """Times all sides and compares their scores with ours."""
    from benchmarks.torch_models import Classifier

    head = models.make_head(config)
    rng = np.random.default_rng(0)
    context = models.draw_tokens(config, rng, case.context)
    candidates = models.draw_tokens(config, rng, rounds + 1, case.n, case.tokens)
    ours = engines.Candidates(params, head, config, context[None], case.n, case.tokens)
    dense, torch = dense_scorer(params, head, config), Classifier(config, params, head, threads)
    scores: dict[str, dict[int, np.ndarray]] = {"ours": {}, "dense": {}, "torch": {}}

    def whole(number: int) -> np.ndarray:
        before = np.broadcast_to(context, (case.n, case.context))
        return np.concatenate([before, candidates[number]], axis=1)

    def keep(name: str, number: int, found: np.ndarray) -> None:
        scores[name][number] = found

    sides = measuring.interleaved(
        {
            "ours": lambda i: keep("ours", i, ours(candidates[i][None])[0]),
            "dense": lambda i: keep("dense", i, dense(whole(i))),
            "torch": lambda i: keep("torch", i, torch.score(whole(i), 2)),
        },
        rounds,
    )
    measuring.table(f"{case.n} x {case.tokens} tokens after {case.context}", sides)
    own = sides["ours"].median.cpu

    def error(name: str) -> float:
        return max(float(np.abs(scores[name][i] - scores["ours"][i]).max()) for i in scores["ours"])

    return {
        "ratio_dense": sides["dense"].median.cpu / own,
        "ratio_torch": sides["torch"].median.cpu / own,
        "exactness": {
            "scores": case.n * (rounds + 1),
            "spread": float(np.std([*scores["ours"].values()])),
            "error_dense": error("dense"),
            "error_torch": error("torch"),
        },
        "case": dataclasses.asdict(case),
        "sides": {name: side.as_json() for name, side in sides.items()},
    }


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = measuring.parser("score", __doc__, rounds=3)
    roofline.add_options(parser)
    given = parser.parse_args(arguments)
    threads = measuring.use_threads(given.threads)
    if given.model is not None:
        return measuring.finish("score", roofline.score(given), threads)
    config = models.SHAPES["tiny" if given.tiny else "27m"]
    case = Case(n=4, tokens=16, context=64) if given.tiny else Case(n=25, tokens=48, context=1024)
    params = models.make_params(config)
    found = compare(params, config, case, rounds=given.rounds, threads=threads)
    print("  " + ", ".join(f"{k} {v:.1f}" for k, v in found.items() if k.startswith("ratio")))
    print("  " + ", ".join(f"{k} {v:.3g}" for k, v in found["exactness"].items()))
    return measuring.finish("score", found, threads)


if __name__ == "__main__":
    main()
