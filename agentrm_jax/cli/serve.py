"""`agentrm serve`: a reward model, and the gateway, as an HTTP server."""

from __future__ import annotations

import argparse

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


def add_arguments(parser: Parser) -> None:
    parser.description = _DESCRIPTION
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
        "--policy-model",
        default="",
        metavar="NAME",
        help="the policy's model (default: the first that its server lists)",
    )
    parser.add_argument(
        "--policy-key-env",
        default="",
        metavar="VARIABLE",
        help="environment variable with the key of the policy's server",
    )
    parser.add_argument(
        "-n",
        type=whole_number(1, 64),
        default=5,
        metavar="N",
        help="candidates for each turn of the gateway (default: 5)",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address (default: this machine only)")
    parser.add_argument("--port", type=whole_number(0, 65_535), default=8000, help="default: 8000")
    parser.add_argument(
        "--api-key-env",
        default="",
        metavar="VARIABLE",
        help="environment variable with the key that clients must send",
    )
    parser.add_argument(
        "--max-waiting",
        type=whole_number(1, 1_000_000),
        default=4096,
        metavar="N",
        help="conversations that may wait; more get status 429 (default: 4096)",
    )
    parser.add_argument(
        "--max-body",
        type=whole_number(1, 1024),
        default=16,
        metavar="MIB",
        help="longest body of a request (default: 16)",
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="configuration that says how states are rendered (default: that of the run); its keys "
        "can be set as well, for example --engine.context=4096",
    )


def run(given: argparse.Namespace) -> int:
    from agentrm_jax.serve.server import ServeConfig, serve

    serve(
        ServeConfig(
            reward_model=given.reward_model,
            config=given.config,
            overrides=given.overrides,
            policy=given.policy,
            policy_model=given.policy_model,
            policy_key_env=given.policy_key_env,
            host=given.host,
            port=given.port,
            api_key_env=given.api_key_env,
            waiting=given.max_waiting,
            body_mib=given.max_body,
            candidates=given.n,
        )
    )
    return 0
