"""`agentrm serve`: a reward model, and the gateway, as an HTTP server."""

from __future__ import annotations

import argparse
import dataclasses

from agentrm_jax.cli.parser import Parser, whole_number

_DESCRIPTION = """\
Serves a reward model over HTTP, in the shapes that clients of vLLM, verl and OpenRLHF read:

  /classify /pooling     the score of a conversation, or of each of its steps
  /score /v1/score       the scores of several replies to one conversation
  /get_reward            OpenRLHF's remote reward model
  /v1/embeddings         the score as a vector of one number
  /v1/models /health /metrics

Conversations are messages, texts of the chat template, or token ids. Scores are those of
`agentrm score`; they are not squashed.

With --policy it is a gateway as well: /v1/chat/completions answers with the turn, of n that the
policy proposes, that the reward model scores highest. An agent that is written with the openai
package uses it by changing its base URL. Needs: pip install 'agentrm-jax[serve]'."""

_TEXTS = {
    "--name": ("NAME", "the reward model's name in answers (default: that of its folder)"),
    "--policy-model": ("NAME", "the policy's model (default: the first that its server lists)"),
    "--policy-key-env": ("NAME", "environment variable with the key of the policy's server"),
    "--api-key-env": ("NAME", "environment variable with the key that clients must send"),
    "--host": ("ADDRESS", "address to listen on (default: 127.0.0.1, this machine only)"),
}
_NUMBERS = {
    "--port": (0, 65_535, 8000, "port; 0 takes a free one"),
    "--max-waiting": (1, 1_000_000, 4096, "conversations that may wait; more get status 429"),
    "--max-body": (1, 1024, 16, "longest body of a request, in MiB"),
}


def add_served_model_arguments(parser: Parser) -> None:
    """Adds the reward model, the policy and the number of candidates."""
    parser.add_argument(
        "--reward-model",
        required=True,
        metavar="PATH",
        help="folder of a run, a model folder, or an exported model",
    )
    parser.add_argument(
        "--policy",
        default="",
        metavar="URL|PATH",
        help="address of an OpenAI-compatible server, folder of a run or model directory",
    )
    parser.add_argument(
        "-n",
        type=whole_number(1, 64),
        default=5,
        metavar="N",
        help="candidates for each turn (default: 5)",
    )


def add_arguments(parser: Parser) -> None:
    parser.description = _DESCRIPTION
    add_served_model_arguments(parser)
    for name, (metavar, text) in _TEXTS.items():
        parser.add_argument(name, default="", metavar=metavar, help=text)
    for name, (least, most, default, text) in _NUMBERS.items():
        kind, text = whole_number(least, most), f"{text} (default: {default})"
        parser.add_argument(name, type=kind, default=default, metavar="N", help=text)
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="configuration that says how states are rendered (default: that of the run); its keys "
        "can be set as well, for example --engine.context=4096",
    )


def run(given: argparse.Namespace) -> int:
    from agentrm_jax.serve.server import ServeConfig, serve

    names = [field.name for field in dataclasses.fields(ServeConfig)]
    serve(ServeConfig(**{name: getattr(given, name) for name in names}))
    return 0
