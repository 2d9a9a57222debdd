"""Tokenizers: trained from nothing on expert text, or read from a Hugging Face directory."""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Iterable
from typing import Any

from agentrm_jax.core.errors import UserError
from agentrm_jax.data.chat import ChatFormat

PAD, BEGIN, USER, ASSISTANT, END = "<|pad|>", "<|begin|>", "<|user|>", "<|assistant|>", "<|end|>"
_FILE, _CHAT_FILE = "tokenizer.json", "chat.json"


class Tokenizer:
    """Text to tokens and back, with the tokens around turns.

    Special tokens that occur in a text are encoded as plain text: an observation that contains
    `<|end|>` cannot end a turn.
    """

    def __init__(self, tokenizer: Any, chat: ChatFormat, pad_id: int) -> None:
        tokenizer.encode_special_tokens = True  # specials in text are split
        self._tokenizer, self.chat, self.pad_id = tokenizer, chat, pad_id

    @property
    def vocab_size(self) -> int:
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    def fingerprint(self) -> str:
        """Short hash of everything that decides the tokens."""
        text = self._tokenizer.to_str() + json.dumps(_chat_json(self.chat), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def save(self, directory: pathlib.Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / _FILE).write_text(self._tokenizer.to_str())
        chat = {**_chat_json(self.chat), "pad_id": self.pad_id}
        (directory / _CHAT_FILE).write_text(json.dumps(chat, indent=1))


def _chat_json(chat: ChatFormat) -> dict[str, list[int]]:
    names = ("begin", "user_open", "user_close", "assistant_open", "assistant_close")
    return {name: list(getattr(chat, name)) for name in names}


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level byte-pair tokenizer for these texts; byte-identical when repeated.

    Merges never cross word boundaries and every digit stands alone: a model can then copy a name
    from one place to another as the same tokens.
    """
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    specials = [PAD, BEGIN, USER, ASSISTANT, END]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=specials,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    pad, begin, user, assistant, end = (tokenizer.token_to_id(name) for name in specials)
    chat = ChatFormat(
        begin=(begin,),
        user_open=(user,),
        user_close=(),
        assistant_open=(assistant,),
        assistant_close=(end,),
    )
    return Tokenizer(tokenizer, chat, pad)


def load_tokenizer(directory: pathlib.Path) -> Tokenizer:
    """A saved tokenizer, or the one of a Hugging Face chat model.

    Raises:
      UserError: No tokenizer there, or a chat template that is not append-only.
    """
    import tokenizers

    path = directory / _FILE
    if not path.exists():
        raise UserError(f"{path}: not found; a model directory has its tokenizer beside it")
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise UserError(f"{path}: not a tokenizer ({error})") from None
    chat_path = directory / _CHAT_FILE
    if not chat_path.exists():
        chat, pad_id = _chat_of_template(directory)
        return Tokenizer(tokenizer, chat, pad_id)
    try:
        stored = json.loads(chat_path.read_text())
        pad_id = stored.pop("pad_id")
        chat = ChatFormat(**{name: tuple(ids) for name, ids in stored.items()})
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{chat_path}: not a chat format ({error})") from None
    return Tokenizer(tokenizer, chat, pad_id)


def _chat_of_template(directory: pathlib.Path) -> tuple[ChatFormat, int]:
    """What a Hugging Face chat template puts around turns, found by rendering marked turns."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    if not tokenizer.chat_template:
        raise UserError(f"{directory}: the tokenizer has no chat template; use a chat model")
    marks = [f"TURN{i}" for i in range(6)]
    roles = ("user", "assistant")
    turns = [{"role": roles[i % 2], "content": mark} for i, mark in enumerate(marks)]

    def text(count: int, reply: bool) -> str:
        return tokenizer.apply_chat_template(
            turns[:count], tokenize=False, add_generation_prompt=reply
        )

    gaps, rest = [], text(5, False)
    for mark in marks[:5]:
        before, found, rest = rest.partition(mark)
        if not found:
            raise UserError(f"{directory}: the chat template changes or drops turns")
        gaps.append(before)
    first, to_assistant, to_user = gaps[:3]
    asked = [first + marks[0] + to_assistant]
    asked.append(asked[0] + marks[1] + to_user + marks[2] + to_assistant)
    if gaps[3:] != [to_assistant, to_user] or asked != [text(1, True), text(3, True)]:
        raise UserError(
            f"{directory}: the chat template is not append-only, a state would not be a prefix"
        )

    def ids(piece: str) -> tuple[int, ...]:
        return tuple(tokenizer.encode(piece, add_special_tokens=False))

    close = ids(to_user)
    stops = [i for i in close if i in set(tokenizer.all_special_ids)]
    if not stops or close[0] != stops[0]:
        raise UserError(f"{directory}: the chat template ends a reply without a special token")
    chat = ChatFormat(
        begin=ids(first),
        user_open=(),
        user_close=(),
        assistant_open=ids(to_assistant),
        assistant_close=close,
    )
    pad = tokenizer.pad_token_id
    return chat, chat.stop if pad is None else pad
