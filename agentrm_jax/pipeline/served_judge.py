"""The served judge of a run."""

from __future__ import annotations

from agentrm_jax.agent.server import ServerPolicy
from agentrm_jax.clients.connection import Connection
from agentrm_jax.engine.programs.sampling import Sampling
from agentrm_jax.pipeline.server_records import record_server
from agentrm_jax.pipeline.workspace import Workspace
from agentrm_jax.reward.judge import JudgeScorer

_FRAME_TOKENS = 64
"""Room for the chat template around a question, whose tokens only the server knows."""


def served_judge(workspace: Workspace) -> JudgeScorer:
    """Returns the judge whose server `judge.policy` names.

    Without `judge.server.tokenizer` three characters count as one token, which is more tokens than
    text has: questions stay short enough.

    Args:
      workspace: The run.

    Raises:
      UserError: The server cannot be used.
    """
    config = workspace.config.judge
    assert config.policy is not None  # the caller has looked
    connection = Connection.open(config.policy, config.server)
    record_server(workspace.directory, "judge", connection.client.url, connection.facts)
    sampling = Sampling(temperature=0.0, max_tokens=config.max_tokens)
    policy = ServerPolicy(connection, lambda task: None, sampling, workspace.config.seed)
    known, tokenizer = connection.known_context, connection.tokenizer
    context = known or workspace.config.engine.context

    def count(text: str) -> int:
        return -(-len(text) // 3) if tokenizer is None else len(tokenizer.encode(text))

    limit = context - config.max_tokens - _FRAME_TOKENS
    return JudgeScorer(policy, count, limit=limit, most=config.most)
