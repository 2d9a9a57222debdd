"""Branches behind one prompt: ours against transformers.

    python -m benchmarks.decode [--tiny]
    python -m benchmarks.decode --model 8b --dtype bfloat16    (on a GPU)

n replies of fixed length, sampled at temperature 1. The prompt is encoded before the clock starts,
except for `generate`, which does it itself. The sides of transformers:
  generate      generate(num_return_sequences=n)
  growing copy  the prompt's DynamicCache, encoded once, copied and repeated for the branches
  fixed copy    the same in a StaticCache, which needs no copy at every token
`ratio_copied` is against the better of the two copies. Ours decodes a multiple of eight rows: 5
branches cost about what 8 do.

Exactness: greedy replies are equal except for counted near-ties of the logits, and transformers
agrees on the log-probabilities of what we sampled.

With --model: the decoder alone, at several numbers of rows, as a share of what the device could do
(see `benchmarks.roofline`).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from agentrm_jax.model.config import LlamaConfig
from agentrm_jax.model.parameters import Params
from benchmarks import engines, measuring, models, roofline

NEAR = 1e-3
"""Two log-probabilities that differ by less may be ordered either way."""


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    n: int
    max_tokens: int
    prompt: int

    @property
    def name(self) -> str:
        return f"{self.n}x{self.max_tokens}"


CASES = (Case(5, 16, 512), Case(20, 32, 1024))
TINY = (Case(3, 16, 48),)


def compare(
    params: Params, config: LlamaConfig, case: Case, *, rounds: int, threads: int, prompts: int = 4
) -> dict[str, Any]:
    """Times a case on all sides, and checks that they agree."""
    from benchmarks.torch_models import CausalModel

    rng = np.random.default_rng(case.prompt)
    tokens = models.draw_tokens(config, rng, prompts, case.prompt)
    rows = -(-case.n // 8) * 8
    engine = engines.decoding_engine(params, config, tokens, rows, case.max_tokens)
    ours = engines.Branches(engine, tokens[:1], case.n, case.max_tokens)
    theirs = CausalModel(config, params, threads)
    prompt, last = tokens[0], int(tokens[0, -1])
    encoded = theirs.encode(prompt)
    sides = measuring.interleaved(
        {
            "ours": ours,
            "generate": lambda _: theirs.generate(prompt, case.n, case.max_tokens),
            "growing copy": lambda _: theirs.from_growing_copy(
                encoded, last, case.n, case.max_tokens
            ),
            "fixed copy": lambda _: theirs.from_fixed_copy(encoded, last, case.n, case.max_tokens),
        },
        rounds,
    )
    measuring.table(f"{case.name} behind {case.prompt} tokens", sides)
    ratios = {name: side.median.cpu / sides["ours"].median.cpu for name, side in sides.items()}
    greedy = engines.Branches(engine, tokens[:1], case.n, case.max_tokens, temperature=0.0)
    return {
        "case": case.name,
        "prompt": case.prompt,
        "rows": ours.rows,
        "ratio_generate": ratios["generate"],
        "ratio_copied": min(ratios["growing copy"], ratios["fixed copy"]),
        "ratio_growing_copy": ratios["growing copy"],
        "ratio_fixed_copy": ratios["fixed copy"],
        "exactness": exactness(ours, greedy, theirs, tokens, case.max_tokens),
        "sides": {name: side.as_json() for name, side in sides.items()},
    }


def exactness(
    ours: engines.Branches,
    greedy: engines.Branches,
    theirs: Any,
    prompts: np.ndarray,
    max_tokens: int,
) -> dict[str, Any]:
    """Returns the differences of our replies and log-probabilities from those of transformers."""
    found = {"greedy_replies": 0, "greedy_equal": 0, "near_ties": 0, "unexplained": 0}
    error = 0.0
    for prompt in prompts:
        expected = theirs.generate(prompt, 1, max_tokens, sample=False)
        log_probs = theirs.log_probs(prompt, expected)[0]
        [replies] = greedy(0, prompt[None])
        for reply in replies:
            found["greedy_replies"] += 1
            found[_difference(np.asarray(reply.tokens), expected[0], log_probs)] += 1
        [replies] = ours(0, prompt[None])
        sampled = np.asarray([reply.tokens for reply in replies])
        wanted = np.take_along_axis(theirs.log_probs(prompt, sampled), sampled[..., None], -1)
        error = max(error, float(np.abs(wanted[..., 0] - [r.log_probs for r in replies]).max()))
    return {**found, "log_prob_error": error}


def _difference(reply: np.ndarray, expected: np.ndarray, log_probs: np.ndarray) -> str:
    """Returns the kind of the first difference between two greedy replies."""
    different = np.flatnonzero(reply != expected)
    if not len(different):
        return "greedy_equal"
    at = different[0]
    gap = log_probs[at, expected[at]] - log_probs[at, reply[at]]
    return "near_ties" if gap < NEAR else "unexplained"


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = measuring.parser("decode", __doc__, rounds=5)
    roofline.add_options(parser)
    given = parser.parse_args(arguments)
    threads = measuring.use_threads(given.threads)
    if given.model is not None:
        return measuring.finish("decode", roofline.decode(given), threads)
    config = models.SHAPES["tiny" if given.tiny else "27m"]
    params = models.make_params(config)
    cases = [
        compare(params, config, case, rounds=given.rounds, threads=threads)
        for case in (TINY if given.tiny else CASES)
    ]
    found = {
        f"{key}_{case['case']}": case[key]
        for case in cases
        for key in ("ratio_generate", "ratio_copied")
    }
    for case in cases:
        print(f"  {case['case']}: ", *(f"{k} {v:.2f}" for k, v in case.items() if "ratio" in k))
        print("   ", ", ".join(f"{k} {v:.3g}" for k, v in case["exactness"].items()))
    for key in ("ratio_generate", "ratio_copied"):
        found[key] = min(case[key] for case in cases)
    return measuring.finish("decode", {**found, "cases": cases}, threads)


if __name__ == "__main__":
    main()
