"""A server as a process: models are opened, the port is bound, SIGTERM drains."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import sys
from collections.abc import Sequence

from agentrm_jax.clients.config import server_url
from agentrm_jax.clients.keys import read_key
from agentrm_jax.core.errors import UserError
from agentrm_jax.pipeline.model_folders import CONVERSATION
from agentrm_jax.pipeline.policies import ModelPolicy
from agentrm_jax.pipeline.reward_model import open_conversation_model
from agentrm_jax.serve.gateway import TurnPolicy

_LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """The settings of a server.

    Attributes:
      reward_model: A run, a model folder or an exported directory.
      name: The name of the reward model in answers; empty: that of its folder.
      config: A configuration that says how states are rendered, in place of the run's; or None.
      overrides: `--KEY=VALUE` of that configuration.
      policy: The policy of the gateway: the address of a server, a run or a model directory; empty:
        no gateway.
      policy_model: The name of the policy's model; empty: the first that its server lists.
      policy_key_env: The environment variable with the key of the policy's server.
      host: The address to listen on; empty: this machine only.
      port: The port; 0 takes a free one.
      api_key_env: The environment variable with the key that clients must send.
      max_waiting: Conversations that may wait.
      max_body: Longest body of a request, in MiB.
      n: Candidates of each turn of the gateway.
    """

    reward_model: str
    name: str = ""
    config: str | None = None
    overrides: Sequence[str] = ()
    policy: str = ""
    policy_model: str = ""
    policy_key_env: str = ""
    host: str = ""
    port: int = 8000
    api_key_env: str = ""
    max_waiting: int = 4096
    max_body: int = 16
    n: int = 5


def serve(config: ServeConfig) -> None:
    """Serves a reward model until SIGTERM or Ctrl-C; open requests are answered before the end.

    Args:
      config: The settings.

    Raises:
      UserError: A package is missing, a model cannot be read, the port is taken, or the variable of
        a key is empty.
    """
    try:
        import uvicorn

        from agentrm_jax.serve.app import Limits, Service, create_app
        from agentrm_jax.serve.scoring import ConversationScorer
    except ModuleNotFoundError as error:
        raise missing_package(error) from None
    host = config.host or _LOOPBACK[0]
    key = read_key(config.api_key_env, "--api-key-env")
    listening = _bound(host, config.port)
    with listening:
        policy = None
        if config.policy:
            policy = open_policy(config.policy, config.policy_model, config.policy_key_env)
        model, prompts = open_conversation_model(
            config.reward_model, config.config, config.overrides
        )
        scorer = ConversationScorer(model, prompts)
        scorer.warm_up()
        limits = Limits(
            waiting=config.max_waiting, body_bytes=config.max_body << 20, candidates=config.n
        )
        service = Service(scorer, config.name or _name(config.reward_model), limits)
        app = create_app(service, policy, key)
        if host not in _LOOPBACK and not key:
            print(
                "agentrm: warning: anybody who reaches this address can use the server; "
                "--api-key-env NAME asks for a key",
                file=sys.stderr,
            )
        # "warning" has a line for each request that is none: strangers could fill the log with them
        settings = uvicorn.Config(app, log_level="error", access_log=False)
        listening.listen(settings.backlog)
        address, port = listening.getsockname()[:2]
        shown = f"[{address}]" if ":" in address else address
        server = uvicorn.Server(settings)

        def end(number: int, frame: object) -> None:
            """Handles SIGTERM before uvicorn does; it raises it again after its clean end."""
            server.should_exit = True

        before = signal.signal(signal.SIGTERM, end)
        try:
            print(f"listening on http://{shown}:{port}", flush=True)
            server.run(sockets=[listening])
        finally:
            signal.signal(signal.SIGTERM, before)


def open_policy(policy: str, model: str = "", key_env: str = "") -> TurnPolicy:
    """Returns a policy for the gateway.

    Args:
      policy: The address of a server, a run or a model directory.
      model: The name of its model; empty: the first that its server lists, or its folder's name.
      key_env: The environment variable with the key of its server; empty sends none.

    Raises:
      UserError: It cannot be opened, or the variable is empty.
    """
    key = read_key(key_env, "--policy-key-env")
    if "://" not in policy:
        from agentrm_jax.serve.policy_model import PolicyModel

        return PolicyModel(
            ModelPolicy.load(policy, prompts={CONVERSATION: None}),
            model or f"{_name(policy)}-policy",
        )
    url = server_url(policy, "--policy")
    try:
        from agentrm_jax.serve.policy_server import PolicyServer
    except ModuleNotFoundError as error:
        raise missing_package(error) from None
    return PolicyServer(url, model=model, key=key)


def missing_package(error: ModuleNotFoundError) -> UserError:
    """Returns the error that names the extra of a package."""
    return UserError(f"agentrm serve needs {error.name}: pip install 'agentrm-jax[serve]'")


def _name(path: str) -> str:
    """The name of a model: that of its folder."""
    return os.path.basename(os.path.abspath(path))


def _bound(host: str, port: int) -> socket.socket:
    """A socket that is bound, but does not listen yet.

    Raises:
      UserError: The address is unknown or the port is taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UserError(f"--host {host}: {error.strerror}") from None
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise UserError(f"--port {port}: cannot listen on {host} ({error.strerror})") from None
    return bound
