"""Random texts through everything that reads, keeps or shows text.

Observations, error texts, replies, actions and imported files are drawn from what broke programs
before: lone surrogates, control and bidirectional characters, NUL, tokens of chat formats in every
spelling, markup, JSON and format strings, and a few texts of ten million characters. They go
through play (the pool), exploration, the store, resume, import, scoring and the report. Counted:

- `tracebacks`: exceptions that are no one-line error;
- `forged_turns`: states whose tokens hold another number of control tokens than the same states
  with harmless texts;
- `invalid_texts`: texts of a stored tree that are no valid Unicode or longer than what is admitted;
- `other_trees`: trees that differ after they were cut off and resumed;
- `raw_characters`: control characters and scripts in the page.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import html.parser
import json
import pathlib
import random
import sys
import tempfile
import time
import traceback
import unittest.mock
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.protocols import EnvironmentFailure
from agentrm_jax.core.records import Step, Task, Trajectory
from agentrm_jax.core.text import MAX_CHARACTERS
from agentrm_jax.data.conversations import read_conversations
from agentrm_jax.data.render import Renderer
from agentrm_jax.data.tokenizer import Tokenizer, train_tokenizer
from agentrm_jax.data.trees import FILE, TreeRecord, TreeStore
from agentrm_jax.engine.config import EngineConfig
from agentrm_jax.engine.engine import Engine
from agentrm_jax.envs import given, registry
from agentrm_jax.envs.pool import EnvPool
from agentrm_jax.evaluation.episodes import Episode
from agentrm_jax.evaluation.report import SCRIPTS, ReportPage, write_report
from agentrm_jax.evaluation.results import comparisons, result_rows
from agentrm_jax.evaluation.searches import tree_search
from agentrm_jax.evaluation.tables import console_table
from agentrm_jax.evaluation.viewer import make_viewer, tree_answer
from agentrm_jax.model import parameters
from agentrm_jax.model.config import LlamaConfig
from agentrm_jax.model.value import readout
from agentrm_jax.reward.explicit import ExplicitScorer
from agentrm_jax.search.explore import Explorer, SearchConfig
from benchmarks.hostile_texts import Counts, Family, Speaker

MODEL = LlamaConfig(
    vocab_size=320, d_model=32, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=16, d_ff=48,
    tie_embeddings=True, max_positions=4096,
)  # fmt: skip
SIZES = EngineConfig(
    context=2048, decode_rows=8, extend_rows=4, extend_tokens=256, page_size=16,
    cache_tokens=32_768, decode_tokens=16, instruction_tokens=64,
)  # fmt: skip
SEARCH = SearchConfig(num_iterations=8, expansion_width=4, concurrency=32)
TREES = 32
"""Trees of a batch."""


def tasks_of(batch: int) -> list[Task]:
    return [
        Task(
            environment="fuzz", task_id=f"fuzz/{batch}/{i} \x1b[31m\u202e", kind="k\x07",
            split="train", problem=f"{batch * TREES + i:016x}", max_steps=6, spec={},
        )
        for i in range(TREES)
    ]  # fmt: skip


def make_scorer(tokenizer: Tokenizer) -> ExplicitScorer:
    rng = np.random.default_rng(0)
    trunk = jax.tree.map(
        lambda spec: jnp.float32(rng.standard_normal(spec.shape) * (spec.scale or 1.0)),
        parameters.describe(MODEL),
        is_leaf=lambda value: isinstance(value, parameters.ParamSpec),
    )
    head = {"kernel": jnp.float32(rng.standard_normal(MODEL.d_model)), "bias": jnp.float32(0.0)}
    engine = Engine(trunk, MODEL, SIZES, readout=readout, head=head)
    return ExplicitScorer(engine, Renderer(tokenizer, lambda task: None, SIZES.context))


class Fuzzer:
    """One batch after the other through all stages, in a folder."""

    def __init__(self, folder: pathlib.Path, seed: int, huge: float) -> None:
        self.folder, self.seed, self.huge = folder, seed, huge
        self.counts = Counts()
        self.tokenizer = train_tokenizer(["Action: go N", "You see a key."], MODEL.vocab_size)
        self._renderer = Renderer(self.tokenizer, lambda task: None, 10**9)
        self._scorer = make_scorer(self.tokenizer)
        self._families = unittest.mock.Mock(side_effect=lambda name: Family(self.counts, self.huge))

    def batch(self, number: int) -> None:
        """All stages of one batch; whatever they raise is counted."""
        trees: list[TreeRecord] = []

        def explore() -> None:
            trees.extend(self.explored(number))

        with (
            unittest.mock.patch.object(given, "load_family", self._families),
            unittest.mock.patch.object(registry, "load_family", self._families),
        ):
            self._guarded("play", lambda: self.play(number))
            self._guarded("explore", explore)
        self._guarded("render", lambda: self.rendered(trees))
        self._guarded("score", lambda: self.scored(trees, number))
        self._guarded("import", lambda: self.imported(number))
        self._guarded("report", lambda: self.reported(trees, number))

    def _guarded(self, stage: str, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception:
            self.counts.tracebacks += 1
            lines = traceback.format_exc().splitlines()
            print(stage, *lines[-4:], sep="\n", file=sys.stderr)

    def play(self, number: int) -> None:
        """Actions of every kind in the pool, as `envs play` sends them."""
        pool, rng = EnvPool(workers=0), random.Random(self.seed + number)
        for answer in pool.reset(tasks_of(number)[:8]):
            if isinstance(answer, EnvironmentFailure):
                self._check(answer.reason)
                continue
            handle, observation = answer
            self._check(observation)
            for _ in range(6):
                [step] = pool.step([(handle, self.counts.text(rng, self.huge))])
                if isinstance(step, EnvironmentFailure):
                    self._check(step.reason)
                    break
                self._check(step.observation)
                if step.done:
                    break
        pool.close()

    def _check(self, text: str) -> None:
        try:
            text.encode()
        except UnicodeEncodeError:
            self.counts.invalid_texts += 1
        self.counts.invalid_texts += len(text) > MAX_CHARACTERS + 100

    def explored(self, number: int) -> list[TreeRecord]:
        """Trees that were grown, cut off in the middle of the file, resumed, and read back."""
        folder = self.folder / str(number)
        self._explore(folder, number)
        whole = TreeStore.read(folder, finished=True)
        content = (folder / FILE).read_bytes()
        (folder / FILE).write_bytes(content[: random.Random(number).randrange(len(content))])
        self._explore(folder, number)
        again = TreeStore.read(folder, finished=True)
        self.counts.trees += len(whole)
        self.counts.other_trees += sum(again[name] != tree for name, tree in whole.items())
        self.counts.failed_candidates += sum(len(tree.failures) for tree in whole.values())
        for tree in again.values():
            self._check(tree.first_observation)
            for node in tree.nodes.values():
                for text in (node.step.reply, node.step.action, node.step.transition.observation):
                    self._check(text)
        (folder / FILE).unlink()
        return list(again.values())

    def _explore(self, folder: pathlib.Path, number: int) -> None:
        stored = TreeStore.read(folder)
        store, pool = TreeStore(folder), EnvPool(workers=0)
        policy = Speaker(self.counts, self.huge / 5)
        Explorer(policy, pool, store, SEARCH).run(tasks_of(number), stored)
        store.close()
        pool.close()

    def rendered(self, trees: Sequence[TreeRecord]) -> None:
        """Compares the control tokens of trajectories with those of harmless trajectories."""
        for tree in trees:
            for trajectory in filter(lambda state: state.done, tree.states()):
                if any(len(text) > 10_000 for text in texts_of(trajectory)):
                    continue
                self.counts.states_rendered += len(trajectory.steps)
                harmless, control = self._controls(harmlessly(trajectory), None)
                self.counts.forged_turns += self._controls(trajectory, control)[0] != harmless

    def _controls(
        self, trajectory: Trajectory, control: set[int] | None
    ) -> tuple[collections.Counter[int], set[int]]:
        tokens = np.concatenate(self._renderer.state(trajectory).segments).tolist()
        if control is None:
            control = set(tokens) - set(self.tokenizer.encode("x"))
        return collections.Counter(token for token in tokens if token in control), control

    def scored(self, trees: Sequence[TreeRecord], number: int) -> None:
        """Some states of each batch by a reward model."""
        rng = random.Random(number)
        states = [state for tree in trees for state in tree.states() if state.done]
        for state in rng.sample(states, min(8, len(states))):
            try:
                [[score]] = self._scorer.score([[state]])
            except UserError:  # an opening that is longer than the context
                self.counts.states_too_long += 1
                continue
            if not np.isfinite(score):
                raise ValueError(f"a score of {score}")
            self.counts.states_scored += 1

    def imported(self, number: int) -> None:
        """Conversations with such texts; what is refused is refused in one line."""
        rng = random.Random(self.seed + number)
        path = self.folder / "fuzz_items.json"
        for name in range(8):
            turns = [
                {
                    "from": "gpt" if k % 2 else "human",
                    "value": "Action: " * (k % 4 == 3) + self.counts.text(rng, self.huge),
                }
                for k in range(8)
            ]
            item = {"id": f"{name}{self.counts.text(rng)}", "conversations": turns}
            path.write_text(json.dumps([item]))
            try:
                [found] = read_conversations(path, "fuzz")
            except UserError as error:
                if not str(error).isprintable():
                    self.counts.raw_characters += 1
                continue
            self.counts.items_imported += 1
            for text in texts_of(found):
                self._check(text)

    def reported(self, trees: Sequence[TreeRecord], number: int) -> None:
        """The page of a run with such names, errors and trees; plots in every fifth."""
        rng = random.Random(self.seed + number)
        name = self.counts.text(rng)
        made = list(episodes_of(trees, name)) if number % 5 == 0 else []
        searches = [tree_search(trees[number % len(trees)])] if trees else []
        page = write_report(
            self.folder,
            {
                "results": result_rows(made),
                "comparisons": comparisons(made),
                "stages": [{"stage": "explore\x1b", "seconds": 1.0, "summary": {"x\u202e": name}}],
            },
            ReportPage(viewer=make_viewer(map(tree_answer, searches), searches)),
        )
        if made:
            from rich.console import Console

            Console(file=(self.folder / "table.txt").open("w")).print(
                console_table(result_rows(made))
            )
        self.counts.pages += 1
        text = page.read_bytes().decode()
        reader = _Reader()
        reader.feed(text)
        self.counts.raw_characters += (
            reader.running
            - len(SCRIPTS)
            + sum(
                (ord(character) < 32 and character not in "\n\t")
                or character in "\x7f\x9b\u202e\u2066"
                for character in text
            )
        )
        json.loads((self.folder / "report.json").read_text(), parse_constant=_refuse)


def _refuse(name: str) -> None:
    raise ValueError(f"{name} in report.json")


class _Reader(html.parser.HTMLParser):
    """Counts what would run."""

    def __init__(self) -> None:
        super().__init__()
        self.running = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        runs = tag == "script" and ("type", "application/json") not in attrs
        self.running += runs or any(name.startswith("on") for name, _ in attrs)


def texts_of(trajectory: Trajectory) -> Iterator[str]:
    yield trajectory.first_observation
    for step in trajectory.steps:
        yield from (step.reply, step.action, step.transition.observation)


def harmlessly(trajectory: Trajectory) -> Trajectory:
    """The trajectory with `x` in place of every text."""
    steps = tuple(
        Step(
            reply="x",
            action="x",
            transition=dataclasses.replace(step.transition, observation="x"),
        )
        for step in trajectory.steps
    )
    return dataclasses.replace(trajectory, first_observation="x", steps=steps)


def episodes_of(trees: Sequence[TreeRecord], name: str) -> Iterator[Episode]:
    for method, reward_model in (("greedy", None), ("best_of_n", name)):
        for tree in trees:
            yield Episode(
                task=tree.task,
                method=method,
                reward_model=reward_model,
                seed=0,
                outcome=0.5,
                success=0.0,
                policy_tokens=1,
                env_steps=1,
                wall_seconds=1.0,
                steps=1,
                error=tree.error or name,
            )


def fuzz(texts: int, seed: int = 0, huge: float = 1e-4) -> Counts:
    """Batches until this many texts were drawn."""
    with tempfile.TemporaryDirectory() as folder:
        fuzzer = Fuzzer(pathlib.Path(folder), seed, huge)
        number = 0
        while fuzzer.counts.texts < texts:
            fuzzer.batch(number)
            number += 1
            if sys.stderr.isatty():
                print(f"\r{fuzzer.counts.texts:,} texts", end="", file=sys.stderr)
    return fuzzer.counts


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fuzz_texts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tiny", action="store_true", help="3,000 texts")
    parser.add_argument("--texts", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    begun = time.monotonic()
    counts = fuzz(3_000 if given.tiny else given.texts, given.seed)
    found: dict[str, Any] = dataclasses.asdict(counts)
    for name, value in found.items():
        print(f"{name.replace('_', ' '):20} {value:>10,}")
    print(json.dumps({**found, "seconds": round(time.monotonic() - begun, 1)}))
    wrong = ("tracebacks", "forged_turns", "invalid_texts", "other_trees", "raw_characters")
    return int(any(found[name] for name in wrong))


if __name__ == "__main__":
    sys.exit(main())
