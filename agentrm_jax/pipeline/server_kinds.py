"""Served models as kinds of a configuration: the policy that acts, and reward models.

What the probe of a server found is kept in the run's folder, in `servers.json`. A run that is
resumed with another model at the same address stops.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from typing import Any, ClassVar

from agentrm_jax.agent.server import ServerPolicy
from agentrm_jax.clients.client import Client
from agentrm_jax.clients.config import SPEED_KEYS, server_url
from agentrm_jax.clients.connection import Connection, ServedModelConfig, strict_keys
from agentrm_jax.core.protocols import Policy, Scorer
from agentrm_jax.data.tokenizer import load_tokenizer
from agentrm_jax.pipeline.acting import ActingPolicy
from agentrm_jax.pipeline.config import RunConfig
from agentrm_jax.pipeline.policy_kinds import PolicyKind, PolicyOptions
from agentrm_jax.pipeline.reward_kinds import RewardKind
from agentrm_jax.pipeline.server_records import record_server
from agentrm_jax.reward.server import ServedRewardConfig, ServerScorer


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerAgent(ServedModelConfig, PolicyKind):
    """A served model, asked by the API of OpenAI.

    Attributes:
      url: Address of the server, for example `http://127.0.0.1:8000`.
    """

    speed_keys: ClassVar[tuple[str, ...]] = SPEED_KEYS
    explores_without_trunk: ClassVar[bool] = True

    url: str

    def __post_init__(self) -> None:
        super().__post_init__()
        server_url(self.url)

    def open(self, options: PolicyOptions) -> Policy:
        """Probes the server and returns its policy."""
        strict = strict_keys(options.sampling)
        if strict not in self._connections:
            self._connections[strict] = Connection.open(self.url, self, strict)
        connection = self._connections[strict]
        if options.directory is not None:
            record_server(options.directory, "agent", connection.client.url, connection.facts)
        return ServerPolicy(connection, options.prompt_of, options.sampling, options.seed)

    @functools.cached_property
    def _connections(self) -> dict[tuple[str, ...], Connection]:
        """The probed server, by the sampling keys that were confirmed; once in each process."""
        return {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServedReward(ServedRewardConfig, RewardKind):
    """A served reward model.

    Attributes:
      url: Address of the server, for example `http://127.0.0.1:8000`.
      tokenizer: Folder with the reward model's tokenizer and chat template: conversations are then
        sent as token ids, and to `/get_reward` as the template's text.
    """

    speed_keys: ClassVar[tuple[str, ...]] = SPEED_KEYS

    url: str
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        server_url(self.url)

    def open(self, policy: ActingPolicy) -> Scorer:
        """Asks the server for the score of a short conversation and returns its scorer."""
        workspace = policy.workspace
        tokenizer = None
        if self.tokenizer is not None:
            tokenizer = load_tokenizer(pathlib.Path(self.tokenizer))
        scorer = ServerScorer(Client(self.url, self), self, workspace.prompts, tokenizer)
        name = _name_of(workspace.config, self)
        record_server(workspace.directory, name, server_url(self.url), scorer.facts)
        return scorer


def _name_of(config: RunConfig, kind: Any) -> str:
    return next(name for name, each in config.used_rewards if each is kind)
