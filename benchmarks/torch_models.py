"""Our models in transformers, in the forms that someone who cares for speed would choose.

Needs torch (the extra `parity`); whoever imports this does it where it is needed.

Of the attention kinds that transformers has for CPUs, `sdpa` is the faster one (by 1.5 with 5
branches, by more with 20).
"""

from __future__ import annotations

import copy
import pathlib
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import transformers

from agentrm_jax.model import hugging_face
from agentrm_jax.model.config import LlamaConfig
from agentrm_jax.model.parameters import Params


@contextmanager
def _directory(config: LlamaConfig, params: Params) -> Iterator[pathlib.Path]:
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, message=".*past_key_values.*")
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model"
        hugging_face.save(path, config, params)
        yield path


class CausalModel:
    """`LlamaForCausalLM`. A prompt is [T] tokens; replies are [n, max_tokens]."""

    def __init__(self, config: LlamaConfig, params: Params, threads: int) -> None:
        with _directory(config, params) as path:
            self.model: Any = transformers.LlamaForCausalLM.from_pretrained(
                path, dtype=torch.float32, attn_implementation="sdpa"
            ).eval()
        torch.set_num_threads(threads)

    def log_probs(self, prompt: np.ndarray, replies: np.ndarray) -> np.ndarray:
        """Returns the log-probabilities of every token after the prompt [n, max_tokens, V]."""
        n = len(replies)
        tokens = np.concatenate([np.broadcast_to(prompt, (n, len(prompt))), replies[:, :-1]], 1)
        with torch.inference_mode():
            logits = self.model(
                torch.from_numpy(tokens).long(), logits_to_keep=replies.shape[1]
            ).logits
            return torch.log_softmax(logits, -1).numpy()

    def generate(
        self, prompt: np.ndarray, n: int, max_tokens: int, *, sample: bool = True
    ) -> np.ndarray:
        """Decodes by `generate`, as everyone does; it encodes the prompt n times."""
        tokens = torch.from_numpy(prompt)[None].long()
        with torch.inference_mode():
            out = self.model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=max_tokens,
                min_new_tokens=max_tokens,
                pad_token_id=0,
                **({"do_sample": True, "top_k": 0, "num_return_sequences": n} if sample else {}),
            )
        return out[:, len(prompt) :].numpy()

    def encode(self, prompt: np.ndarray) -> Any:
        """The cache of all but the prompt's last token."""
        with torch.inference_mode():
            tokens = torch.from_numpy(prompt)[None, :-1].long()
            return self.model(tokens, use_cache=True, logits_to_keep=1).past_key_values

    def from_growing_copy(self, encoded: Any, last: int, n: int, max_tokens: int) -> np.ndarray:
        """By hand, from a copy of the cache repeated n times (`DynamicCache`)."""
        with torch.inference_mode():
            cache = copy.deepcopy(encoded)
            cache.batch_repeat_interleave(n)
            return self._decode(cache, last, n, max_tokens)

    def from_fixed_copy(self, encoded: Any, last: int, n: int, max_tokens: int) -> np.ndarray:
        """Decodes with the copy in a cache that has room for the replies (`StaticCache`)."""
        with torch.inference_mode():
            length = encoded.get_seq_length() + max_tokens
            cache = transformers.StaticCache(config=self.model.config, max_cache_len=length)
            for number, layer in enumerate(encoded.layers):
                k, v = (x.expand(n, -1, -1, -1) for x in (layer.keys, layer.values))
                cache.update(k, v, number)
            return self._decode(cache, last, n, max_tokens)

    def _decode(self, cache: Any, last: int, n: int, max_tokens: int) -> np.ndarray:
        tokens = torch.full((n, 1), last)
        out = []
        for _ in range(max_tokens):
            logits = self.model(tokens, past_key_values=cache, use_cache=True).logits[:, -1]
            tokens = torch.multinomial(torch.softmax(logits, -1), 1)
            out.append(tokens)
        return torch.cat(out, 1).numpy()


class Classifier:
    """`LlamaForSequenceClassification` with one score."""

    def __init__(self, config: LlamaConfig, params: Params, head: Params, threads: int) -> None:
        with _directory(config, params) as path:
            self.model = transformers.LlamaForSequenceClassification.from_pretrained(
                path, num_labels=1, dtype=torch.float32, attn_implementation="sdpa", pad_token_id=0
            ).eval()
        with torch.no_grad():
            self.model.score.weight.copy_(torch.from_numpy(np.array(head["kernel"]))[None])
        torch.set_num_threads(threads)

    def score(self, tokens: np.ndarray, at_once: int) -> np.ndarray:
        """Scores [n] of sequences [n, T], some at a time."""
        with torch.inference_mode():
            batches = torch.from_numpy(tokens).long().split(at_once)
            return torch.cat([self.model(batch).logits[:, 0] for batch in batches]).numpy()

    def gradients(
        self, states: Sequence[np.ndarray], targets: Sequence[float]
    ) -> tuple[float, dict[str, np.ndarray]]:
        """Mean squared error over states [T], and the gradients of the embeddings and the head.

        `update` trains on these states from now on.
        """
        self._states = [torch.from_numpy(state)[None].long() for state in states]
        self._targets = targets
        self._optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, betas=(0.9, 0.95))
        loss = self._backward()
        weights: dict[str, Any] = {
            "embed": self.model.model.embed_tokens.weight,
            "head": self.model.score.weight,
        }
        found = {name: weight.grad.numpy().copy() for name, weight in weights.items()}
        found["head"] = found["head"][0]
        self._optimizer.zero_grad()
        return loss, found

    def update(self) -> None:
        """A forward and a backward pass for each state, and a step of AdamW."""
        self._backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()

    def _backward(self) -> float:
        total = 0.0
        for state, target in zip(self._states, self._targets, strict=True):
            loss = (self.model(state).logits[0, 0] - target) ** 2 / len(self._states)
            loss.backward()
            total += loss.item()
        return total
