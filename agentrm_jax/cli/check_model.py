"""`agentrm check-model PATH`: a table that compares how a model is read with transformers."""

from __future__ import annotations

import argparse
import pathlib

from rich.console import Console
from rich.table import Table
from rich.text import Text

from agentrm_jax.cli.parser import Parser
from agentrm_jax.core.text import printable
from agentrm_jax.runtime.run_paths import POLICY_MODEL

_DESCRIPTION = f"""\
Compares a model with transformers and prints a table. PATH is a Hugging Face directory, or a model
folder of a run (RUN/{POLICY_MODEL}).

  template        whether the chat template can be read: append-only, ended by a special token
  tokens          our tokens of probe conversations and those of apply_chat_template, at each
                  turn
  export          the same comparison with the directory that `agentrm export` would write
  special tokens  in texts they are encoded as plain text, so that no observation can forge a
                  turn
  replies end at  the tokens that end a reply, and whether transformers stops at the same
                  tokens
  embedding       whether the largest token id is within it
  value read at   of a reward model, the last token that is read before a score
  logits          ours and those of transformers, if torch is installed (both in float32: the
                  model is in memory twice; --no-logits skips this check)

The exit status is 1 if something differs, 2 if the model cannot be read at all."""

_COLOURS = {"ok": "green", "differs": "red", "skipped": "yellow"}


def add_arguments(parser: Parser) -> None:
    parser.description = _DESCRIPTION
    parser.add_argument("path", metavar="PATH", type=pathlib.Path, help="folder of a model")
    parser.add_argument("--no-logits", action="store_true", help="compare tokens only")


def run(given: argparse.Namespace) -> int:
    from agentrm_jax.pipeline.check_model import check_model

    checks = list(check_model(given.path, logits=not given.no_logits))
    table = Table(title=Text(printable(str(given.path))))
    for name in ("check", "result", "found"):
        table.add_column(name, overflow="fold")
    for check in checks:
        outcome = Text(check.outcome, style=_COLOURS[check.outcome])
        table.add_row(check.name, outcome, Text(printable(check.detail)))
    Console().print(table)
    count = {outcome: sum(check.outcome == outcome for check in checks) for outcome in _COLOURS}
    print(f"{given.path}: {count['ok']} ok, {count['differs']} differ, {count['skipped']} skipped")
    return int(count["differs"] > 0)
