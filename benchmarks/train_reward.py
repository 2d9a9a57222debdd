"""An update of a reward model: whole trajectories and whole trees against one sequence per state.

    python -m benchmarks.train_reward [--tiny]

A state is the conversation after a step: a prompt of 256 tokens, then steps of 60 + 80 tokens
(reply and observation). There are two cases. The first is a trajectory with 8 states. The second is
a tree with 32 states, as after 40 iterations: five rollouts that branch at depths 0, 1, 2 and 3.
Every side makes the same update (forward pass, backward pass, AdamW) from the same states:
  ours           every token once: one row for the whole trajectory or tree
  states         one row for each state, padded to the longest state, in micro-batches
  states packed  several states in a row that is as long as the longest state
  torch          transformers' LlamaForSequenceClassification and torch's AdamW in a plain loop over
                 the states, one at a time, without padding

The result is CPU-seconds per state, on one thread. Exactness: loss and gradients before the first
update, compared with ours. The error is the largest difference of a parameter's gradient, relative
to the size of the gradient (for torch: embeddings and head only).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from agentrm_jax.core.records import Step, Task, Transition
from agentrm_jax.data.chat import ChatFormat
from agentrm_jax.data.packing import PackedRows, only_labelled, pack
from agentrm_jax.data.sequences import TokenSequence, value_sequences
from agentrm_jax.data.states import LabelledTree
from agentrm_jax.data.tree_sequences import tree_sequences
from agentrm_jax.model.config import LlamaConfig
from agentrm_jax.plan.work import training_flops
from agentrm_jax.runtime.sharding import MeshConfig, make_mesh, named_sharding
from agentrm_jax.train import explicit
from agentrm_jax.train.optimizer import OptimizerConfig, make_optimizer
from agentrm_jax.train.step import make_state, make_train_step, state_shardings
from benchmarks import ceilings, measuring, models

TREE = ((0, 10), (1, 7), (3, 6), (0, 5), (2, 4))
"""Rollouts: the depth at which each branches off the first one, and the nodes that it adds."""


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """Rollouts as in `TREE`, and the tokens of the prompt, of a reply and of an observation."""

    rollouts: Sequence[tuple[int, int]]
    opening: int
    reply: int
    observation: int

    @property
    def states(self) -> int:
        return sum(added for _, added in self.rollouts)


class Numbers:
    """A tokenizer of texts that are token ids. No text uses 0: torch pads with it."""

    chat = ChatFormat(
        begin=(5,), user_open=(1,), user_close=(2,), assistant_open=(3,), assistant_close=(4,)
    )

    control = frozenset(range(1, 6))

    def encode(self, text: str, before: int | None = None, after: int | None = None) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))


def labelled_tree(config: LlamaConfig, case: Case) -> LabelledTree:
    """Returns the case's tree with random tokens and values; the root has no label."""
    rng = np.random.default_rng(0)

    def text(tokens: int) -> str:
        return " ".join(map(str, rng.integers(8, config.vocab_size, tokens)))

    def step() -> Step:  # rendering adds the stop token, and three tokens to an observation
        transition = Transition(
            observation=text(case.observation - 3), reward=0.0, done=False, success=False
        )
        return Step(reply=text(case.reply - 1), action="", transition=transition)

    task = Task(
        environment="numbers", task_id="numbers/0", kind="", split="train", problem="",
        max_steps=16, spec={},
    )  # fmt: skip
    first = text(case.opening - 4)
    values = rng.random(case.states + 1)
    trunk: list[int] = []
    parents, steps = [-1], []
    for depth, added in case.rollouts:
        nodes = [0, *trunk[:depth]]
        for _ in range(added):
            parents.append(nodes[-1])
            steps.append(step())
            nodes.append(len(steps))
        trunk = trunk or nodes[1:]
    return LabelledTree(
        task=task,
        first_observation=first,
        parents=tuple(parents),
        steps=tuple(steps),
        values=tuple(values.tolist()),
        visit_counts=(1,) * len(values),
        weights=(0.0, *[1.0] * len(steps)),
    )


def whole(tree: LabelledTree) -> TokenSequence:
    """Returns the tree as one sequence, with a label at the last token of each state."""
    [sequence], _ = tree_sequences(Numbers(), lambda task: None, [tree], 1_000_000)
    ends = sequence.tokens == Numbers.chat.assistant_open[-1]
    return dataclasses.replace(sequence, weights=sequence.weights * ends)


def single_states(tree: LabelledTree) -> list[TokenSequence]:
    """Returns one sequence for each state, with a label at its last token."""
    found = []
    branches, _ = value_sequences(Numbers(), lambda task: None, [tree], 1_000_000)
    for rendered in branches:
        ends = np.flatnonzero(rendered.tokens == Numbers.chat.assistant_open[-1])
        for end in ends[rendered.weights[ends] > 0]:
            weights = np.zeros(end + 1, np.float32)
            weights[end] = 1.0
            found.append(
                TokenSequence(
                    tokens=rendered.tokens[: end + 1],
                    weights=weights,
                    targets=rendered.targets[: end + 1],
                )
            )
    return found


class Ours:
    """Updates from packed rows, `micro_batch` rows at a time."""

    def __init__(
        self, params: Any, config: LlamaConfig, rows: PackedRows, micro_batch: int = 1
    ) -> None:
        mesh = make_mesh(MeshConfig(), jax.devices()[:1])
        self._loss = explicit.make_loss(config)
        batch = rows.take(np.arange(len(rows)))
        self._batch = jax.device_put(batch, named_sharding(mesh, ("batch", "length")))
        self._rows = len(rows)
        own = jax.tree.map(jnp.copy, params)  # the first update donates them
        optimizer = make_optimizer(OptimizerConfig(schedule="constant"), 100)
        placed = state_shardings(own, optimizer, mesh)
        parts = len(rows) // micro_batch
        self._step = make_train_step(self._loss, optimizer, placed, mesh, parts)
        self._state = make_state(own, optimizer, mesh)

    def gradients(self, params: Any) -> tuple[float, Any]:
        """Returns the mean loss and its gradient."""
        loss_of = jax.jit(jax.value_and_grad(self._loss, has_aux=True))
        rows = [jax.tree.map(lambda x, r=r: x[r : r + 1], self._batch) for r in range(self._rows)]
        loss, weight, total = 0.0, 0.0, None
        for row in rows:  # all rows together may not fit into memory
            (own, sums), grads = loss_of(params, row)
            loss, weight = loss + float(own), weight + float(sums["weight"])
            total = grads if total is None else jax.tree.map(jnp.add, total, grads)
        return loss / weight, jax.tree.map(lambda g: np.asarray(g) / weight, total)

    def __call__(self, number: int) -> None:
        self._state, sums = self._step(self._state, self._batch, None)
        jax.block_until_ready(sums)


def one_each(states: Sequence[TokenSequence], multiple: int) -> PackedRows:
    """Returns one row for each state, and empty rows up to a multiple of `multiple`."""
    longest = max(len(state.tokens) for state in states)
    rows = [only_labelled(pack([state], longest)).take(np.arange(1)) for state in states]
    rows += [{name: np.zeros_like(value) for name, value in rows[0].items()}] * (
        -len(rows) % multiple
    )
    return PackedRows(**{name: np.concatenate([row[name] for row in rows]) for name in rows[0]})


def largest_error(a: Mapping[str, Any], b: Mapping[str, Any]) -> float:
    """Returns the largest difference of a parameter's gradient, relative to its size."""
    errors = jax.tree.map(lambda x, y: np.linalg.norm(x - y) / np.linalg.norm(y), a, b)
    return float(max(jax.tree.leaves(errors)))


def compare(config: LlamaConfig, case: Case, *, rounds: int, threads: int) -> dict[str, Any]:
    """Times all sides on one case."""
    from benchmarks.torch_models import Classifier

    trunk, head = models.make_params(config), models.make_head(config)
    params = {"trunk": trunk, "value_head": head}
    tree = labelled_tree(config, case)
    sequence, states = whole(tree), single_states(tree)
    assert len(states) == case.states
    padded = one_each(states, 4)
    rows = {
        "ours": only_labelled(pack([sequence], len(sequence.tokens))),
        "states": padded,
        "states packed": only_labelled(pack(states, padded.tokens.shape[1])),
    }
    ours = {
        name: Ours(params, config, own, 4 if name == "states" else 1) for name, own in rows.items()
    }
    torch = Classifier(config, trunk, head, threads)
    found = {name: side.gradients(params) for name, side in ours.items()}
    loss, grads = found["ours"]
    torch_loss, torch_grads = torch.gradients(
        [state.tokens for state in states], [float(state.targets[-1]) for state in states]
    )
    some = {"embed": grads["trunk"]["embed"], "head": grads["value_head"]["kernel"]}
    exactness = {
        "loss": loss,
        "error_states": largest_error(found["states"][1], grads),
        "error_states_packed": largest_error(found["states packed"][1], grads),
        "error_loss_torch": abs(torch_loss - loss),
        "error_torch": largest_error(torch_grads, some),
    }
    probes = ceilings.Probes(np.float32, tiny=config.d_model < 100)
    sides: dict[str, Callable[[int], Any]] = {
        **ours,
        "torch": lambda _: torch.update(),
        **probes.sides(),
    }
    timed = measuring.interleaved(sides, rounds)
    measuring.table(f"{case.states} states, {len(sequence.tokens)} tokens", timed)
    own = timed["ours"].median.cpu
    limits = probes.ceilings(timed, threads)
    work = training_flops(config, 1, len(sequence.tokens), logits=False, outputs=case.states)
    return {
        **{
            f"ratio_{name.replace(' ', '_')}": timed[name].median.cpu / own
            for name in ("states", "states packed", "torch")
        },
        "cpu_seconds_per_state": own / case.states,
        "tokens_per_second": len(sequence.tokens) / limits.seconds(timed["ours"]),
        "mfu": work / limits.flops / limits.seconds(timed["ours"]),
        "tokens": {
            "ours": len(sequence.tokens),
            "states": sum(len(state.tokens) for state in states),
            "states padded": padded.tokens.size,
        },
        "exactness": exactness,
        "sides": {name: side.as_json() for name, side in timed.items()},
    }


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = measuring.parser("train_reward", __doc__, rounds=2)
    given = parser.parse_args(arguments)
    threads = measuring.use_threads(given.threads)
    config = models.SHAPES["tiny" if given.tiny else "27m"]
    sizes = {"opening": 256, "reply": 60, "observation": 80}
    cases = {"trajectories": ((0, 8),), "trees": TREE}
    if given.tiny:
        sizes = {"opening": 16, "reply": 6, "observation": 8}
    found: dict[str, Any] = {}
    for name, rollouts in cases.items():
        case = Case(rollouts=rollouts, **sizes)
        found[name] = compare(config, case, rounds=given.rounds, threads=threads)
        for key in ("tokens", "exactness"):
            print("  " + ", ".join(f"{k} {v:.4g}" for k, v in found[name][key].items()))
    ratios = {
        f"ratio_{prefix}{name}": row[f"ratio_{side}"]
        for name, row in found.items()
        for prefix, side in (("", "states"), ("packed_", "states_packed"), ("hf_", "torch"))
    }
    ratios["ratio_hf"] = min(row["ratio_torch"] for row in found.values())
    return measuring.finish("train_reward", {**ratios, **found}, threads)


if __name__ == "__main__":
    main()
