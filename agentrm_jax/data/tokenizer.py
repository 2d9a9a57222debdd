"""Tokenizers: trained from nothing on expert text, or read from a Hugging Face directory."""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from agentrm_jax.core.errors import UserError
from agentrm_jax.data.chat import ChatFormat
from agentrm_jax.data.chat_template import chat_of_template, template_of

PAD, BEGIN, USER, ASSISTANT, END = "<|pad|>", "<|begin|>", "<|user|>", "<|assistant|>", "<|end|>"
_SPECIALS = (PAD, BEGIN, USER, ASSISTANT, END)
_FILE, _CHAT_FILE = "tokenizer.json", "chat.json"


class Tokenizer:
    """Text to tokens and back, with the tokens around turns.

    Special tokens that occur in a text are encoded as plain text: an observation that contains
    `<|end|>` cannot end a turn.
    """

    def __init__(self, tokenizer: Any, chat: ChatFormat, pad_id: int) -> None:
        tokenizer.encode_special_tokens = True  # specials in text are split
        tokenizer.no_truncation()  # a saved file may carry a limit that cuts texts silently
        tokenizer.no_padding()
        self._tokenizer, self.chat, self.pad_id = tokenizer, chat, pad_id

    @property
    def vocab_size(self) -> int:
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    def fingerprint(self) -> str:
        """Short hash of everything that decides the tokens."""
        text = self._tokenizer.to_str() + json.dumps(_chat_json(self.chat), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def save(self, directory: pathlib.Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / _FILE).write_text(self._tokenizer.to_str(), encoding="utf-8")
        chat = {**_chat_json(self.chat), "pad_id": self.pad_id}
        (directory / _CHAT_FILE).write_text(json.dumps(chat, indent=1), encoding="utf-8")

    def export(self, directory: pathlib.Path) -> None:
        """As `save`, and with what transformers needs to render chats in the same tokens."""
        self.save(directory)
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "chat_template": template_of(self.chat, self.decode),
            "pad_token": self._tokenizer.id_to_token(self.pad_id),
            "eos_token": self._tokenizer.id_to_token(self.chat.stop),
            "clean_up_tokenization_spaces": False,
        }
        path = directory / "tokenizer_config.json"
        path.write_text(json.dumps(settings, indent=1, ensure_ascii=False), encoding="utf-8")


def _chat_json(chat: ChatFormat) -> dict[str, list[int]]:
    names = ("begin", "user_open", "user_close", "assistant_open", "assistant_close")
    return {name: list(getattr(chat, name)) for name in names}


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level byte-pair tokenizer for these texts; byte-identical when repeated.

    Merges never cross word boundaries and every digit stands alone: a model can then copy a name
    from one place to another as the same tokens.

    Raises:
      UserError: `vocab_size` leaves no room for the 256 bytes and the special tokens.
    """
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    smallest = len(_SPECIALS) + len(pre_tokenizers.ByteLevel.alphabet())
    if vocab_size < smallest:
        raise UserError(f"model.vocab_size: must be at least {smallest}, not {vocab_size}")
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(_SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    pad, begin, user, assistant, end = range(len(_SPECIALS))  # the trainer puts them first
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
        chat, pad_id = chat_of_template(directory, tokenizer)
        return Tokenizer(tokenizer, chat, pad_id)
    try:
        stored = json.loads(chat_path.read_text(encoding="utf-8"))
        pad_id = stored.pop("pad_id")
        chat = ChatFormat(**{name: tuple(ids) for name, ids in stored.items()})
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{chat_path}: not a chat format ({error})") from None
    return Tokenizer(tokenizer, chat, pad_id)
