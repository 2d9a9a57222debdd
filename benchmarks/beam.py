"""The beam step of several tasks: tokens a second, and the share of what the machine can do.

    python -m benchmarks.beam [--tiny]
    python -m benchmarks.beam --model 8b --dtype bfloat16 --context 1024

Every task has P beams, which share its prompt and have a piece of their own; n replies to each are
decoded, scored by a reward model of the same shape, and the best P kept. All prompts are encoded
before the clock starts. The sides:
  one program   decode, score and select as one compiled program (`engine.programs.select`)
  in parts      the scheduler, then the reward model's engine, then the choice on the host

Exactness: both keep the same replies, except for counted near-ties of the scores.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from agentrm_jax.engine import front
from agentrm_jax.engine.config import EngineConfig
from agentrm_jax.engine.engine import Engine
from agentrm_jax.engine.programs.sampling import Sampling
from agentrm_jax.engine.request import Reply, Request, TokenSequence
from agentrm_jax.engine.schedule.beams import Beams, step_beams
from agentrm_jax.engine.schedule.scheduler import Scheduler
from agentrm_jax.engine.schedule.stopping import Stopping
from agentrm_jax.model.config import LlamaConfig
from agentrm_jax.model.parameters import Params
from agentrm_jax.model.value import readout
from agentrm_jax.plan.work import NumberBytes, Work, decoding_token, reading
from benchmarks import ceilings, engines, measuring, models

NEAR = 1e-4
"""Scores that differ by less may be ordered either way."""
STOP = 3
"""Replies may end with it; they hardly do."""


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    tasks: int
    beam_width: int
    n: int
    max_tokens: int
    context: int
    own: int

    @property
    def rows(self) -> int:
        return self.tasks * self.beam_width * self.n


Choice = list[tuple[int, tuple[int, ...], float]]
"""What is kept of a task: the beam, the reply's tokens, the score; best first."""


class BeamSteps:
    """Policy and reward model, and one step of all tasks' beams on either side."""

    def __init__(self, params: Params, scorer: Params, config: LlamaConfig, case: Case) -> None:
        self.case = case
        rng = np.random.default_rng(0)
        prompts = models.draw_tokens(config, rng, case.tasks, case.context)
        self._sequences = [
            [
                TokenSequence(segments=[prompt, own])
                for own in models.draw_tokens(config, rng, case.beam_width, case.own)
            ]
            for prompt in prompts
        ]
        reply = engines.pages(case.max_tokens + 1)
        context = case.context + engines.pages(case.own) + reply
        sizes = EngineConfig(
            context=context,
            decode_rows=case.rows,
            decode_tokens=engines.pages(case.max_tokens),
            extend_rows=case.rows,
            extend_tokens=reply,
            extend_batch=case.rows * reply,
            siblings=case.n,
            page_size=engines.PAGE,
            cache_tokens=2 * case.rows * (context + 4 * engines.PAGE),
            max_segments=8,
            instruction_tokens=1,
        )
        self.sampling = Sampling(max_tokens=case.max_tokens)
        self.policy = Engine(params, config, dataclasses.replace(sizes, siblings=1))
        head = models.make_head(config)
        self.scorer = Engine(scorer, config, sizes, readout=readout, head=head)
        self._scheduler = Scheduler(self.policy, self.sampling, Stopping(tokens=(STOP,)), [case.n])
        front.score(self.scorer, [sequence for task in self._sequences for sequence in task])

    def requests(self, number: int) -> list[list[Request]]:
        """Returns the requests of each task, one for each beam."""
        return [
            [
                Request(
                    segments=sequence.segments, key=np.asarray([100 * b + p, number], np.uint32)
                )
                for p, sequence in enumerate(task)
            ]
            for b, task in enumerate(self._sequences)
        ]

    def one_program(self, number: int) -> list[Choice]:
        beams = [
            Beams(
                requests=requests,
                sequences=requests,
                states=range(len(requests)),
                finished=(),
            )
            for requests in self.requests(number)
        ]
        steps = step_beams(
            self.policy,
            self.scorer,
            beams,
            n=self.case.n,
            beam_width=self.case.beam_width,
            sampling=self.sampling,
            stops=(STOP,),
        )
        return [
            [(k.number, k.reply.tokens, k.score) for k in kept if k.reply is not None]
            for kept, _ in steps
        ]

    def in_parts(self, number: int) -> list[Choice]:
        return [best[: self.case.beam_width] for best in self.ranked(number)]

    def ranked(self, number: int) -> list[Choice]:
        """All different replies of each task, best first, by the scheduler and the scorer."""
        asked = self.requests(number)
        tickets = [[self._scheduler.submit(r, self.case.n) for r in task] for task in asked]
        found: dict[int, list[Reply]] = {}
        while len(found) < self.case.tasks * self.case.beam_width:
            found.update(self._scheduler.collect())
        flat = [
            (
                b,
                p,
                reply.tokens,
                [*asked[b][p].segments, np.asarray([*reply.tokens, STOP], np.int32)],
            )
            for b, own in enumerate(tickets)
            for p, ticket in enumerate(own)
            for reply in dict.fromkeys(found[ticket])
        ]
        scores = front.score(
            self.scorer, [TokenSequence(segments=segments) for *_, segments in flat]
        )
        out: list[Choice] = [[] for _ in asked]
        for (b, p, tokens, _), score in zip(flat, scores, strict=True):
            out[b].append((p, tokens, score))
        return [sorted(task, key=lambda found: -found[2]) for task in out]


def exactness(steps: BeamSteps, number: int) -> dict[str, Any]:
    """Whether both sides keep the same."""
    found = {"choices": 0, "equal": 0, "near_ties": 0, "unexplained": 0}
    error = 0.0
    together = steps.one_program(number)
    for kept, all_of_them in zip(together, steps.ranked(number), strict=True):
        scores = {(p, tokens): score for p, tokens, score in all_of_them}
        for at, (p, tokens, score) in enumerate(kept):
            found["choices"] += 1
            expected = all_of_them[at]
            own = scores.get((p, tokens))
            error = max(error, np.inf if own is None else abs(own - score))
            if (p, tokens) == expected[:2]:
                found["equal"] += 1
            else:
                near = own is not None and abs(own - expected[2]) < NEAR
                found["near_ties" if near else "unexplained"] += 1
    return {**found, "error": error}


def work(config: LlamaConfig, case: Case, number: NumberBytes) -> list[Work]:
    """The least work of a step, in parts that come one after another."""
    before = case.context + case.own
    shared_by = before / (case.context / (case.n * case.beam_width) + case.own / case.n)
    decoding = [
        decoding_token(config, case.rows, before, shared_by, t + 1, number)
        for t in range(case.max_tokens)
    ]
    tokens = case.max_tokens + 1
    return [
        *decoding,
        reading(config, case.rows, tokens, before, shared_by, number),
    ]


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = measuring.parser("beam", __doc__, rounds=3)
    parser.add_argument("--model", choices=sorted(models.SHAPES), help="default: 27m")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--tasks", type=int, default=8, help="stepped together")
    parser.add_argument("--beam-width", type=int, default=5, help="beams kept")
    parser.add_argument("--expansion-width", type=int, default=5, help="replies to each beam")
    parser.add_argument("--context", type=int, help="tokens of a task's prompt (default: 512)")
    parser.add_argument("--tokens", type=int, default=16, help="tokens of a reply")
    given = parser.parse_args(arguments)
    threads = measuring.use_threads(given.threads)
    name = given.model or ("tiny" if given.tiny else "27m")
    config, dtype = models.SHAPES[name], jnp.dtype(given.dtype)
    case = Case(
        tasks=given.tasks,
        beam_width=2 if given.tiny else given.beam_width,
        n=2 if given.tiny else given.expansion_width,
        max_tokens=given.tokens,
        context=given.context or (48 if given.tiny else 512),
        own=16 if given.tiny else 32,
    )
    steps = BeamSteps(
        models.make_params(config, dtype), models.make_params(config, dtype, seed=1), config, case
    )
    probes = ceilings.Probes(dtype, tiny=given.tiny)
    sides = {"one program": steps.one_program, "in parts": steps.in_parts, **probes.sides()}
    timed = measuring.interleaved(sides, given.rounds)
    measuring.table(f"{name}, {case}", timed)
    limits = probes.ceilings(timed, threads)
    least = sum(map(limits.least_seconds, work(config, case, NumberBytes.of(dtype))))
    taken = {side: limits.seconds(timed[side]) for side in ("one program", "in parts")}
    found = {
        "ratio_ceiling": least / taken["one program"],
        "ratio_in_parts": taken["in parts"] / taken["one program"],
        "tokens_per_second": case.rows * case.max_tokens / taken["one program"],
        "tokens_scored_per_second": case.rows * (case.max_tokens + 1) / taken["one program"],
    }
    print("  " + ", ".join(f"{k} {v:.4g}" for k, v in found.items()))
    agreement = exactness(steps, given.rounds + 1)
    print("  " + ", ".join(f"{k} {v:.3g}" for k, v in agreement.items()))
    found |= {
        "exactness": agreement,
        "ceilings": limits.as_json(),
        "model": name,
        "dtype": given.dtype,
        "case": dataclasses.asdict(case),
        "sides": {side: seconds.as_json() for side, seconds in timed.items()},
    }
    return measuring.finish("beam", found, threads)


if __name__ == "__main__":
    main()
