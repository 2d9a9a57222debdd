"""Servers: a reward model behind HTTP, and one policy behind several engines.

    python -m benchmarks.servers [--tiny] [--parts scoring trees] [--load SECONDS]

scoring: `agentrm serve` against transformers behind FastAPI. Both servers run in this process, hold
the same random model and take vLLM's `/classify` with token ids. A request is one context with 25
candidate replies, and each request brings new candidates:
  cold     the context is new as well
  warm     the context was scored before, as in the next turn of an agent
  single   one candidate after a known context: latency of one request at a time, p50 and p99
The sides:
  ours     `agentrm serve`
  torch    transformers' LlamaForSequenceClassification over every whole conversation, two at a
           time, which is its fastest here
Exactness: the largest difference of the scores.

trees: one policy (`--model`, a Hugging Face directory) explores BabyAI tasks behind
  ours           our engine, in float32
  llama.cpp      `--llama-server PROGRAM --gguf FILE`: a slot for each turn that is decoded at the
                 same time, prompt cache on, the turns of an expansion in one request
  transformers   `--transformers PROGRAM`: `transformers serve` in float32; it explores the first
                 `--slow-trees` of the same tasks
  NAME           `--server NAME=URL`: one that runs already
in turn, every round with new tasks, which are the same for all of them: trees an hour, tokens that
were read and decoded for a tree (read ones without those of a prefix cache). `cpu` adds up this
process and that of the server.

`--load` asks our server with 64 clients for some seconds: errors, requests a second, and the growth
of the process's memory in the second half.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import pathlib
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import uvicorn
from fastapi import FastAPI, Request

from agentrm_jax.data.tokenizer import train_tokenizer
from agentrm_jax.model.config import LlamaConfig
from agentrm_jax.model.parameters import Params
from agentrm_jax.pipeline import models as stored_models
from agentrm_jax.pipeline.models import Model
from agentrm_jax.pipeline.reward_model import open_conversation_model
from agentrm_jax.serve.app import Limits, Service, create_app
from agentrm_jax.serve.scoring import ConversationScorer
from benchmarks import measuring, models, served_trees

PARTS = ("scoring", "trees")
CLIENTS = 64
ASSISTANT, END = 3, 4  # of a trained tokenizer: before and after a reply
CONTROL = 5  # ids below are control tokens


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """Sizes of a request: n candidates of `tokens` tokens after `context` tokens."""

    n: int
    tokens: int
    context: int
    singles: int


class Requests:
    """Draws request bodies; the same numbers give the same bodies."""

    def __init__(self, config: LlamaConfig, case: Case) -> None:
        self.config, self.case = config, case

    def body(self, context: int, number: int, n: int) -> dict[str, Any]:
        """n candidates, drawn by `number`, after a context that is drawn by `context`."""
        before = [*self._tokens(0, context, self.case.context - 1).tolist(), ASSISTANT]
        replies = self._tokens(1 + number, context, n, self.case.tokens - 1)
        return {"input": [[*before, *reply.tolist(), END] for reply in replies]}

    def _tokens(self, first: int, second: int, *shape: int) -> np.ndarray:
        rng = np.random.default_rng((first, second))
        return rng.integers(CONTROL, self.config.vocab_size, shape)


@contextlib.contextmanager
def running(app: Any) -> Iterator[httpx.Client]:
    """Serves an application on a free port, in a thread."""
    bound = socket.create_server(("127.0.0.1", 0), backlog=256)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{bound.getsockname()[1]}"
    try:
        limits = httpx.Limits(max_connections=CLIENTS)
        with httpx.Client(base_url=url, timeout=600.0, limits=limits, trust_env=False) as client:
            client.get("/health").raise_for_status()
            yield client
    finally:
        server.should_exit = True
        thread.join()
        bound.close()


def our_app(folder: pathlib.Path, params: Params, head: Params, config: LlamaConfig) -> Any:
    """The application of `agentrm serve`, compiled."""
    tokenizer = train_tokenizer(["Action: open the door."], 320)
    model = Model(params={"trunk": params, "value_head": head}, config=config, tokenizer=tokenizer)
    stored_models.save(folder / "model", "reward", model)
    scorer = ConversationScorer(*open_conversation_model(folder / "model"))
    scorer.warm_up()
    return create_app(Service(scorer, "reward", Limits()))


def torch_app(params: Params, head: Params, config: LlamaConfig, threads: int) -> FastAPI:
    """transformers behind FastAPI; conversations of a request have equal lengths."""
    from benchmarks.torch_models import Classifier

    classifier, app, lock = Classifier(config, params, head, threads), FastAPI(), asyncio.Lock()

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    async def classify(request: Request) -> dict[str, Any]:
        ids = np.asarray((await request.json())["input"], np.int32)
        async with lock:
            scores = await asyncio.to_thread(classifier.score, ids, 2)
        return {"data": [{"index": i, "probs": [float(v)]} for i, v in enumerate(scores)]}

    # The annotation is a name of this module, which FastAPI reads there.
    app.add_api_route("/classify", classify, methods=["POST"])
    return app


def scores_of(client: httpx.Client, body: dict[str, Any]) -> np.ndarray:
    """The scores of a request."""
    response = client.post("/classify", json=body)
    response.raise_for_status()
    return np.asarray([entry["probs"][-1] for entry in response.json()["data"]])


def compare(clients: dict[str, httpx.Client], requests: Requests, rounds: int) -> dict[str, Any]:
    """Times requests of both servers, and checks that they agree."""
    case, scores = requests.case, {name: {} for name in clients}

    def ask(name: str, kind: str, context: int, number: int) -> None:
        scores[name][kind, number] = scores_of(
            clients[name], requests.body(context, number, case.n)
        )

    found: dict[str, Any] = {}
    for kind in ("cold", "warm"):
        sides = measuring.interleaved(
            {
                name: lambda i, name=name: ask(name, kind, i + 1 if kind == "cold" else 0, i)  # noqa: B023
                for name in clients
            },
            rounds,
        )
        title = f"{kind}: {case.n} x {case.tokens} tokens after {case.context}"
        measuring.table(title, sides)
        ours, torch = sides["ours"].median.wall, sides["torch"].median.wall
        found[f"ratio_{kind}"] = torch / ours
        found[f"conversations_per_second_{kind}"] = {"ours": case.n / ours, "torch": case.n / torch}
        found[f"sides_{kind}"] = {name: side.as_json() for name, side in sides.items()}
    errors = [np.abs(scores["ours"][key] - scores["torch"][key]).max() for key in scores["ours"]]
    found["exactness"] = {
        "scores": case.n * len(errors),
        "spread": float(np.std([*scores["ours"].values()])),
        "error_torch": float(max(errors)),
    }
    return found


def latencies(client: httpx.Client, requests: Requests) -> dict[str, float]:
    """Seconds of single requests, one at a time: quantiles."""
    seconds = []
    for number in range(requests.case.singles + 2):
        body = requests.body(0, 10_000 + number, 1)
        began = time.perf_counter()
        scores_of(client, body)
        seconds.append(time.perf_counter() - began)
    p50, p99 = np.quantile(seconds[2:], [0.5, 0.99])  # without the first, which warm up
    return {"p50": float(p50), "p99": float(p99), "requests": requests.case.singles}


def load(client: httpx.Client, requests: Requests, seconds: float) -> dict[str, Any]:
    """Asks with many clients at once, each for its own agent's next turns."""
    began, done, errors = time.monotonic(), [0] * CLIENTS, [0] * CLIENTS

    def agent(number: int) -> None:
        while time.monotonic() - began < seconds:
            turn = done[number] + errors[number]
            body = requests.body(1000 * number + turn // 8, 20_000 + turn, 1)
            try:
                scores_of(client, body)
                done[number] += 1
            except httpx.HTTPError:
                errors[number] += 1

    threads = [threading.Thread(target=agent, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    memory = []
    while any(thread.is_alive() for thread in threads):
        memory.append(_resident_bytes())
        time.sleep(min(1.0, seconds / 20))
    elapsed = time.monotonic() - began
    half = memory[len(memory) // 2 :]
    return {
        "clients": CLIENTS,
        "seconds": elapsed,
        "requests": sum(done),
        "requests_per_second": sum(done) / elapsed,
        "errors": sum(errors),
        "resident_mib": memory[-1] / 2**20,
        "growth_mib_in_second_half": (half[-1] - half[0]) / 2**20,
    }


def _resident_bytes() -> int:
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def scoring(given: argparse.Namespace, threads: int) -> dict[str, Any]:
    """Compares the two servers, and puts ours under load if that is asked for."""
    config = models.SHAPES["tiny" if given.tiny else "27m"]
    case = Case(n=25, tokens=48, context=1024, singles=given.singles)
    if given.tiny:
        case = Case(n=4, tokens=16, context=64, singles=5)
    params, head = models.make_params(config), models.make_head(config)
    requests, found = Requests(config, case), {}
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        apps = {"ours": our_app(folder, params, head, config)}
        if "scoring" in given.parts:
            apps = {"torch": torch_app(params, head, config, threads), **apps}
        clients = {name: stack.enter_context(running(app)) for name, app in apps.items()}
        if "scoring" in given.parts:
            found = compare(clients, requests, given.rounds)
            found["single"] = {
                name: latencies(client, requests) for name, client in clients.items()
            }
            for name, side in found["single"].items():
                print(f"single, {name}: p50 {side['p50']:.4f} s, p99 {side['p99']:.4f} s")
        if given.load:
            found["load"] = load(clients["ours"], requests, given.load)
            print(f"load: {found['load']}")
    return {**found, "case": dataclasses.asdict(case)}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = measuring.parser("servers", __doc__, rounds=5, threads=0)
    parser.add_argument(
        "--parts", nargs="*", choices=PARTS, default=["scoring"], help="what is compared"
    )
    parser.add_argument(
        "--load", type=float, default=0.0, metavar="SECONDS", help="length of the load test"
    )
    parser.add_argument("--singles", type=int, default=50, help="single requests of each side")
    served_trees.add_options(parser)
    given = parser.parse_args(arguments)
    if given.llama_server and not given.gguf:
        parser.error("--llama-server needs --gguf FILE")
    if given.transformers and not given.model:
        parser.error("--transformers needs --model DIRECTORY")
    if "trees" in given.parts and not (given.model or given.tiny):
        parser.error("--parts trees needs --model DIRECTORY, or --tiny")
    threads = measuring.use_threads(given.threads)
    found: dict[str, Any] = {}
    if "scoring" in given.parts or given.load:
        found |= scoring(given, threads)
    if "trees" in given.parts:
        found |= served_trees.measure(given, threads)
    print("  " + ", ".join(f"{k} {v:.1f}" for k, v in found.items() if k.startswith("ratio")))
    return measuring.finish("servers", found, threads)


if __name__ == "__main__":
    main()
