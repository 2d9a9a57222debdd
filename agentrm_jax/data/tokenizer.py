"""Tokenizers: trained from nothing on expert text, or read from a Hugging Face directory."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.json_values import parse_json
from agentrm_jax.core.text import admit_text, first_line
from agentrm_jax.data.chat import ChatFormat, Frame, tokens_of
from agentrm_jax.data.chat_template import template_of
from agentrm_jax.data.hugging_face_tokenizer import check_tokens, read_hugging_face
from agentrm_jax.data.tokenizer_json import (
    control_tokens,
    inside_text,
    swallowing,
    without_added_tokens_around,
)

PAD, BEGIN, USER, ASSISTANT, END = "<|pad|>", "<|begin|>", "<|user|>", "<|assistant|>", "<|end|>"
_SPECIALS = (PAD, BEGIN, USER, ASSISTANT, END)
_FILE, _CHAT_FILE = "tokenizer.json", "chat.json"
_FRAMES = ("begin", "user_open", "user_close", "assistant_open", "assistant_close")
# Blanks that a token with `rstrip` or `lstrip` takes with it: White_Space of Unicode.
_BLANKS = (
    "".join(
        map(chr, (*range(9, 14), 32, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029))
    )
    + "\u202f\u205f\u3000"
)


class Tokenizer:
    """Text to tokens and back, with the tokens around turns.

    Special tokens that occur in a text are encoded as plain text: an observation that contains
    `<|end|>` cannot end a turn.

    Attributes:
      chat: What stands around turns.
      pad_id: The padding token.
      control: Tokens that are never part of a reply or encoded from text.
      foreign: Whether the chat format was found from a template of others.
    """

    def __init__(
        self,
        tokenizer: Any,
        chat: ChatFormat,
        pad_id: int,
        *,
        apart: bool = False,
        foreign: bool = False,
    ) -> None:
        tokenizer.encode_special_tokens = True  # specials in text are split
        tokenizer.no_truncation()  # a saved file may carry a limit that cuts texts silently
        tokenizer.no_padding()
        self._tokenizer, self.chat, self.pad_id, self.foreign = tokenizer, chat, pad_id, foreign
        # What was saved before text was encoded with its surroundings is read as it was.
        self._apart, self._inside = apart, tokenizer if apart else inside_text(tokenizer)
        self.control = control_tokens(tokenizer) | {chat.stop_token}
        names = filter(None, map(tokenizer.id_to_token, sorted(self.control)))
        self._names = re.compile("|".join(map(re.escape, names)) or r"(?!)")
        self._takes_left, self._takes_right = swallowing(tokenizer)

    @property
    def vocab_size(self) -> int:
        """One more than the largest id: how many rows an embedding needs."""
        return 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)

    @property
    def chat_tokens(self) -> frozenset[int]:
        """The tokens of the chat format: those around turns, padding and ends of text."""
        frames = (getattr(self.chat, name) for name in (*_FRAMES, "closing"))
        parts = (part for frame in frames for part in frame if isinstance(part, int))
        return frozenset((self.pad_id, *self.chat.ends, *parts))

    @property
    def stops(self) -> tuple[int, ...]:
        """The tokens that end a reply, the chat's first: ends of text, and every other token that
        is not text."""
        others = {*self.chat.ends, *self.control} - {self.chat.stop_token}
        return self.chat.stop_token, *sorted(others)

    def encode(self, text: str, before: int | None = None, after: int | None = None) -> list[int]:
        """Returns the tokens of a text, which stands between two control tokens.

        Args:
          text: Lone surrogates in it become U+FFFD.
          before: The token before it; None at the beginning of a conversation.
          after: The token after it, if one is known.
        """
        text = admit_text(text)
        if before in self._takes_right:
            text = text.lstrip(_BLANKS)
        if after in self._takes_left:
            text = text.rstrip(_BLANKS)
        tokenizer = self._tokenizer if before is None else self._inside
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        if self.control.isdisjoint(ids):
            return ids
        return self._encode_in_parts(text)

    def _encode_in_parts(self, text: str) -> list[int]:
        """A text in which the name of a control token becomes that token, which some vocabularies
        do without being asked: names are cut, and what still is control is left out."""
        cuts = [0, *(found.start() + 1 for found in self._names.finditer(text)), len(text)]
        parts = (text[start:end] for start, end in itertools.pairwise(cuts))
        tokens = (self._inside.encode(part, add_special_tokens=False).ids for part in parts)
        return [token for ids in tokens for token in ids if token not in self.control]

    def encode_marked(self, text: str) -> list[int]:
        """Returns the tokens of a conversation that a chat template has written.

        The names of control tokens in the text become these tokens, so the text must come from the
        template, not from an environment or a model.

        Args:
          text: For example `<|user|>Guess.<|assistant|>5<|end|>`.
        """
        parts: list[int | str] = []
        start = 0
        for found in self._names.finditer(text):
            parts += [text[start : found.start()], self._tokenizer.token_to_id(found[0])]
            start = found.end()
        return tokens_of(self, [part for part in (*parts, text[start:]) if part != ""])

    def has_marks(self, text: str) -> bool:
        """Returns whether a text holds the name of a control token."""
        return self._names.search(text) is not None

    def decode(self, ids: Sequence[int | str]) -> str:
        """Returns the text of tokens; the texts among the parts of a frame stay as they are."""
        texts = []
        for is_text, group in itertools.groupby(ids, key=lambda part: isinstance(part, str)):
            parts: list[Any] = list(group)
            texts.append(
                "".join(parts)
                if is_text
                else self._tokenizer.decode(parts, skip_special_tokens=False)
            )
        return "".join(texts)

    def fingerprint(self) -> str:
        """Returns a short hash of everything that decides the tokens."""
        text = without_added_tokens_around(self._tokenizer) + json.dumps(
            _chat_json(self.chat), sort_keys=True
        )
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def save(self, directory: pathlib.Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / _FILE).write_text(self._tokenizer.to_str(), encoding="utf-8")
        chat = {**_chat_json(self.chat), "pad_id": self.pad_id}
        if not self._apart:
            chat["version"] = 2
        (directory / _CHAT_FILE).write_text(json.dumps(chat, indent=1), encoding="utf-8")

    def export(self, directory: pathlib.Path) -> None:
        """Saves the tokenizer with the files that transformers needs to render the same tokens.

        The tokenizer adds no token around a text: the template writes them all.
        """
        self.save(directory)
        plain = without_added_tokens_around(self._tokenizer)
        (directory / _FILE).write_text(plain, encoding="utf-8")
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "chat_template": template_of(self.chat, self._frame_text),
            "pad_token": self._tokenizer.id_to_token(self.pad_id),
            "eos_token": self._tokenizer.id_to_token(self.chat.stop_token),
            "clean_up_tokenization_spaces": False,
        }
        path = directory / "tokenizer_config.json"
        path.write_text(json.dumps(settings, indent=1, ensure_ascii=False), encoding="utf-8")

    def _frame_text(self, frame: Frame) -> str:
        """The text of a frame; decoders may put blanks around control tokens, their names not."""
        named = [
            self._tokenizer.id_to_token(part) if part in self.control else part for part in frame
        ]
        return self.decode(named)


def _chat_json(chat: ChatFormat) -> dict[str, Any]:
    """A chat format as JSON, without the keys that have their default."""
    fields = {field.name: field.default for field in dataclasses.fields(chat)}
    values = {name: getattr(chat, name) for name in fields}
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in values.items()
        if name in _FRAMES or value != fields[name]
    }


def _chat_of_json(values: dict[str, Any]) -> ChatFormat:
    """Raises ValueError or TypeError if it is not a chat format."""
    found: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    chat = ChatFormat(**found)
    for name in (*_FRAMES, "closing"):
        parts = getattr(chat, name)
        if type(parts) is not tuple or not all(_is_id(part) or type(part) is str for part in parts):
            raise ValueError(f"{name} is not a list of ids and texts")
    for name in ("user_strip", "reply_strip"):
        sides = getattr(chat, name)
        if len(sides) != 2 or not all(side is None or type(side) is str for side in sides):
            raise ValueError(f"{name} is not two texts")
    for name in ("reply_before", "reply_after", "between_users", "date"):
        if type(getattr(chat, name)) is not str:
            raise ValueError(f"{name} is not a text")
    if not all(map(_is_id, chat.ends)) or type(chat.drops_reasoning) is not bool:
        raise ValueError("ends is not a list of ids, or drops_reasoning not true or false")
    if not chat.assistant_close or not _is_id(chat.assistant_close[0]):
        raise ValueError("assistant_close does not begin with a token")
    return chat


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 31


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


def load_vocabulary(directory: pathlib.Path) -> dict[str, int]:
    """Returns the ids of all tokens of a model directory, which needs no chat template.

    Raises:
      UserError: No tokenizer there.
    """
    return _read_tokenizer(directory).get_vocab(with_added_tokens=True)


def _read_tokenizer(directory: pathlib.Path) -> Any:
    import tokenizers

    path = directory / _FILE
    if not path.exists():
        raise UserError(f"{path}: not found; a model directory holds its tokenizer")
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise UserError(f"{path}: not a tokenizer ({first_line(error)})") from None


def load_tokenizer(directory: pathlib.Path) -> Tokenizer:
    """Reads a saved tokenizer, or the one of a Hugging Face chat model.

    Raises:
      UserError: No tokenizer there, or a chat template that cannot be reproduced.
    """
    tokenizer = _read_tokenizer(directory)
    chat_path = directory / _CHAT_FILE
    if not chat_path.exists():
        return _load_hugging_face(directory)
    try:
        stored = parse_json(chat_path.read_bytes())
        pad_id, version = stored.pop("pad_id"), stored.pop("version", 1)
        chat = _chat_of_json(stored)
        if not _is_id(pad_id) or version not in (1, 2):
            raise ValueError("pad_id is not an id, or the version is neither 1 nor 2")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{chat_path}: not a chat format ({first_line(error)})") from None
    return Tokenizer(tokenizer, chat, pad_id, apart=version == 1)


def _load_hugging_face(directory: pathlib.Path) -> Tokenizer:
    try:
        found = read_hugging_face(directory)
        tokenizer = Tokenizer(found.tokenizer, found.chat, found.pad_id, foreign=True)
        check_tokens(directory, tokenizer, found)
    except UserError:
        raise
    except Exception as error:  # the library raises plain Exception, for example without [UNK]
        raise UserError(f"{directory}: the tokenizer fails ({first_line(error)})") from None
    return tokenizer
