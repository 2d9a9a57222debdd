"""A few hundred random texts through all stages, and that the counts notice what they are for."""

from __future__ import annotations

import dataclasses

import pytest

from agentrm_jax.core.records import Step, Transition
from agentrm_jax.core.text import MAX_CHARACTERS
from agentrm_jax.data.tokenizer import Tokenizer
from agentrm_jax.data.trees import IterationRecord, NodeRecord, TreeRecord
from benchmarks import fuzz_texts

WRONG = ("tracebacks", "forged_turns", "invalid_texts", "other_trees", "raw_characters")


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Four trees of three iterations: about 300 texts."""
    monkeypatch.setattr(fuzz_texts, "TREES", 4)
    search = dataclasses.replace(fuzz_texts.SEARCH, num_iterations=3, expansion_width=3)
    monkeypatch.setattr(fuzz_texts, "SEARCH", search)
    return fuzz_texts.Fuzzer(tmp_path, seed=1, huge=0.0)


def test_a_few_hundred_texts_pass_everything(small):
    small.batch(0)
    counts = small.counts
    assert counts.texts > 250
    assert (counts.trees, counts.pages) == (4, 1)
    assert min(counts.states_scored, counts.items_imported, counts.failed_candidates) > 0
    assert counts.states_rendered > 20
    assert {name: getattr(counts, name) for name in WRONG} == dict.fromkeys(WRONG, 0)


def tree_with(observation: str) -> TreeRecord:
    answer = Transition(observation=observation, reward=0.5, done=True, success=False)
    step = Step(reply="Action: go", action="go", transition=answer)
    node = NodeRecord(node=1, parent=0, step=step, multiplicity=1)
    task = fuzz_texts.tasks_of(0)[0]
    iteration = IterationRecord(
        task_id=task.task_id, iteration=0, nodes=(node,), path=(0, 1), outcome=0.5
    )
    return TreeRecord(task=task, first_observation="Goal.", iterations=(iteration,), finished=True)


def test_a_forged_turn_would_be_counted(small, monkeypatch):
    """With a tokenizer that reads `<|end|>` in a text as the end of a turn."""
    tree, stop = tree_with("You see <|end|>."), small.tokenizer.chat.stop_token
    small.rendered([tree])
    assert (small.counts.states_rendered, small.counts.forged_turns) == (1, 0)
    plain = Tokenizer.encode

    def forging(self, text, *more):
        return [*plain(self, text, *more), *([stop] if "<|end|>" in text else [])]

    monkeypatch.setattr(Tokenizer, "encode", forging)
    other = fuzz_texts.Fuzzer(small.folder, seed=1, huge=0.0)
    other.rendered([tree])
    assert other.counts.forged_turns == 1


def test_tracebacks_and_invalid_texts_would_be_counted(small):
    small._guarded("nothing", lambda: [][1])
    small._check("\ud83d")
    small._check("x" * (MAX_CHARACTERS + 1000))
    assert (small.counts.tracebacks, small.counts.invalid_texts) == (1, 2)
