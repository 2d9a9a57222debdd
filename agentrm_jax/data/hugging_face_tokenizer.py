"""The tokenizer and chat format of a Hugging Face directory, and their comparison with its own."""

from __future__ import annotations

import dataclasses
import pathlib
import string
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.json_values import parse_json
from agentrm_jax.core.text import first_line
from agentrm_jax.data import tokenizer_json
from agentrm_jax.data.chat import ChatFormat, ChatTokenizer, Frame
from agentrm_jax.data.chat_template import Parse, read_template
from agentrm_jax.data.probes import PROBES, turn_tokens

_ADVICE = "use a model whose template puts special tokens around turns"


class HuggingFace(NamedTuple):
    """The content of a tokenizer's directory.

    Attributes:
      tokenizer: The `tokenizers.Tokenizer`.
      chat: Its chat format.
      pad_id: A padding token that ends no state.
      templates: Of each probe conversation the template's tokens for its first 1, 2, ... turns;
        None if the template has no such text.
    """

    tokenizer: Any
    chat: ChatFormat
    pad_id: int
    templates: Mapping[str, Sequence[list[int] | None]]


def read_hugging_face(directory: pathlib.Path) -> HuggingFace:
    """Reads the tokenizer that transformers makes of a directory, and its chat template.

    Raises:
      UserError: There is no tokenizer or no template, or one that cannot be reproduced.
    """
    original, template, variables, declared_pad = _from_transformers(directory)
    plain = tokenizer_json.prepared(original)
    read = read_template(directory, template, variables, _parser(plain))
    chat = read.chat
    templates = {
        name: [
            None if text is None else plain.encode(text, add_special_tokens=False).ids
            for text in texts
        ]
        for name, texts in read.probes.items()
    }
    frames = (chat.begin, chat.assistant_open, chat.assistant_close, chat.closing)
    used = frozenset(part for frame in frames for part in frame if isinstance(part, int))
    tokenizer = tokenizer_json.with_special(plain, used)
    specials = {i for i, t in tokenizer.get_added_tokens_decoder().items() if t.special}
    ends = _ends_of_text(directory, specials) - {chat.stop_token}
    chat = dataclasses.replace(chat, ends=tuple(sorted(ends)))
    pad_id = _pad_token(directory, chat, specials, declared_pad)
    return HuggingFace(tokenizer, chat, pad_id, templates)


def _from_transformers(directory: pathlib.Path) -> tuple[Any, str, dict[str, Any], int | None]:
    """The tokenizer, the template, the special tokens that it may name, the padding token."""
    from transformers import AutoTokenizer

    try:
        found = AutoTokenizer.from_pretrained(
            directory, trust_remote_code=False, local_files_only=True
        )
        original = found.backend_tokenizer
    except Exception as error:  # depends on the tokenizer's class
        line = first_line(error)
        raise UserError(f"{directory}: not a Hugging Face tokenizer ({line})") from None
    if getattr(found, "split_special_tokens", False):
        raise UserError(
            f"{directory / 'tokenizer_config.json'}: split_special_tokens must be false: the chat "
            "template's own tokens would be split"
        )
    if not found.chat_template:
        raise UserError(f"{directory}: the tokenizer has no chat template; use a chat model")
    try:
        template = found.get_chat_template()
    except Exception as error:  # several templates, none of them the default
        line = first_line(error)
        raise UserError(f"{directory}: the tokenizer has no default template ({line})") from None
    variables = {
        name: list(map(str, value)) if isinstance(value, list | tuple) else str(value)
        for name, value in found.special_tokens_map.items()
    }
    return original, template, variables, found.pad_token_id


def _parser(tokenizer: Any) -> Parse:
    """Cuts a template's text at the tokens that it writes, special ones and other markers."""
    added = tokenizer.get_added_tokens_decoder()

    def marks(token: int, text: str) -> bool:
        if token not in added or text.strip() != added[token].content.strip():
            return False
        name = added[token].content.strip()
        if name in tokenizer_json.REASONING or not name:
            return False
        return added[token].special or not (name[0].isalnum() or name[-1].isalnum())

    def parse(text: str) -> Frame:
        encoded = tokenizer.encode(text, add_special_tokens=False)
        parts: list[int | str] = []
        at = 0
        for token, (start, end) in zip(encoded.ids, encoded.offsets, strict=True):
            if not marks(token, text[start:end]):
                continue
            if start > at:
                parts.append(text[at:start])
            parts.append(token)
            at = end
        return (*parts, text[at:]) if at < len(text) else tuple(parts)

    return parse


def _ends_of_text(directory: pathlib.Path, specials: set[int]) -> frozenset[int]:
    """The tokens at which transformers stops: those of `generation_config.json`, and those of
    `config.json` that are special tokens (others are defaults of an architecture)."""
    found: set[int] = set()
    for name, allowed in (("generation_config.json", None), ("config.json", specials)):
        path = directory / name
        if not path.exists():
            continue
        try:
            contents = parse_json(path.read_bytes())
        except ValueError as error:
            raise UserError(f"{path}: {first_line(error)}") from None
        ids = contents.get("eos_token_id") if isinstance(contents, dict) else None
        ids = ids if isinstance(ids, list) else [ids]
        if any(type(i) is not int and i is not None for i in ids):
            raise UserError(f"{path}: eos_token_id must be a token id or a list of them")
        found |= {i for i in ids if i is not None and i >= 0 and (allowed is None or i in allowed)}
    return frozenset(found)


def _pad_token(
    directory: pathlib.Path, chat: ChatFormat, specials: set[int], declared: int | None
) -> int:
    """A padding token that no state ends with: readers look for the last token before padding.

    Llama-3 declares none, and some chat models declare the token that ends a turn.
    """
    frames = (chat.begin, chat.assistant_open, chat.assistant_close, chat.closing)
    used = {part for frame in frames for part in frame}
    for token in (declared, *sorted(specials)):
        if token is not None and token not in used:
            return token
    if chat.begin and isinstance(chat.begin[0], int):
        begin = chat.begin[0]
        if begin not in (chat.stop_token, chat.assistant_open[-1]):
            return begin
    raise UserError(f"{directory}: the tokenizer has no special token that could pad")


def check_tokens(directory: pathlib.Path, tokenizer: ChatTokenizer, found: HuggingFace) -> None:
    """Compares our tokens of the probe conversations with the template's.

    Raises:
      UserError: They differ.
    """
    difference = next(differences(tokenizer, found.templates), None)
    if difference is not None:
        raise UserError(
            f"{directory}: the chat template cannot be reproduced token for token ({difference}); "
            f"{_ADVICE}"
        )
    start = _merging_reply(tokenizer, found.tokenizer)
    if start is not None:
        raise UserError(
            f"{directory}: the chat template cannot be reproduced token for token (the beginning "
            f"of a reply, for example {start!r}, merges with the text before it); {_ADVICE}"
        )


def differences(
    tokenizer: ChatTokenizer, templates: Mapping[str, Sequence[list[int] | None]]
) -> Iterator[str]:
    """Yields the places where our tokens of the probe conversations differ from the template's.

    After a reply, the template's text after the stop token is left out; a template that
    treats the last reply's reasoning apart is compared at the turns of the user.
    """
    for name, turns in PROBES.items():
        for count, theirs in enumerate(templates[name], 1):
            replied = not count % 2
            if theirs is None or (replied and tokenizer.chat.drops_reasoning):
                continue
            ours = turn_tokens(tokenizer, turns[:count])
            if ours != (theirs[: len(ours)] if replied else theirs):
                at = next(
                    (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b),
                    min(len(ours), len(theirs)),
                )
                window = slice(max(at - 1, 0), at + 4)
                yield (
                    f"conversation {name!r}, turn {count}: ours {ours[window]} at token "
                    f"{window.start}, template {theirs[window]}"
                )


def _merging_reply(tokenizer: ChatTokenizer, vocabulary: Any) -> str | None:
    """The beginning of a reply, a letter or digit first, that merges with the text before it: the
    tokens of a state would not be a prefix of those that the template gives with the reply.

    Args:
      vocabulary: The `tokenizers.Tokenizer`.
    """
    chat = tokenizer.chat
    ids = [i for i, part in enumerate(chat.assistant_open) if isinstance(part, int)]
    before = chat.assistant_open[ids[-1]] if ids else chat.stop_token
    text = "".join(map(str, chat.assistant_open[ids[-1] + 1 if ids else 0 :]))
    head = tokenizer.encode(text, int(before))
    if not head:
        return None
    starts = dict.fromkeys([*string.ascii_letters, *string.digits])
    for token in _tokens_across(vocabulary, head[-1]):
        for cut in range(1, len(token)):
            rest = token[cut:].removeprefix(chat.reply_before)
            if rest[:1].isalnum() and text.endswith(token[:cut]):
                starts[rest] = None
    for start in list(starts)[:2000]:
        whole = tokenizer.encode(f"{text}{chat.reply_before}{start} on", int(before))
        if whole[: len(head)] != head:
            return start
    return None


def _tokens_across(vocabulary: Any, last: int) -> Iterator[str]:
    """The texts of tokens that hold the last character of a token, and more after it."""
    character = vocabulary.id_to_token(last)[-1]
    for name, token in sorted(vocabulary.get_vocab(with_added_tokens=False).items()):
        if character in name[:-1]:
            yield name.replace("▁", " ") if "▁" in name else vocabulary.decode([token])
