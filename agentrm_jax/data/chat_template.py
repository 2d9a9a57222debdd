"""The chat format of a Hugging Face model: found by rendering marked turns with its template, and
written as a template."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from agentrm_jax.core.errors import UserError
from agentrm_jax.data.chat import ChatFormat

_MARKS = tuple(f"TURN{i}" for i in range(5))


def chat_of_template(directory: pathlib.Path, tokenizer: Any) -> tuple[ChatFormat, int]:
    """What a model's chat template puts around turns, and its padding token.

    Args:
      directory: Holds the template (`tokenizer_config.json`).
      tokenizer: The `tokenizers.Tokenizer` of the directory.

    Raises:
      UserError: There is no template, or one under which a state is not a prefix of its
        continuations.
    """
    first, to_assistant, to_user, declared_pad = _probe(directory)
    specials = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}

    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer.encode(text, add_special_tokens=False).ids)

    # What a template writes between two turns belongs to the turn before it: observations and
    # replies are then framed alike, wherever the template itself would draw the line.
    chat = ChatFormat(
        begin=ids(first),
        user_open=(),
        user_close=(),
        assistant_open=ids(to_assistant),
        assistant_close=ids(to_user),
    )
    if not chat.assistant_open or not set(chat.assistant_close[:1]) <= specials:
        raise UserError(f"{directory}: the chat template ends a reply without a special token")
    return chat, _pad_token(directory, chat, specials, declared_pad)


def template_of(chat: ChatFormat, decode: Callable[[Sequence[int]], str]) -> str:
    """A chat template that puts the same text around turns.

    Behind a last reply it puts the stop token alone, as where the value of an action is read.
    """

    def text(ids: Sequence[int]) -> str:
        return json.dumps(decode(ids), ensure_ascii=False)

    user = f"{text(chat.user_open)} + message['content'] + {text(chat.user_close)}"
    reply = f"{text(chat.assistant_open)} + message['content'] + {text((chat.stop,))}"
    return (
        f"{{{{ {text(chat.begin)} }}}}{{% for message in messages %}}"
        f"{{% if message['role'] == 'user' %}}{{{{ {user} }}}}"
        f"{{% elif message['role'] == 'assistant' %}}{{{{ {reply} }}}}"
        f"{{% if not loop.last %}}{{{{ {text(chat.assistant_close[1:])} }}}}{{% endif %}}"
        "{% else %}{{ raise_exception('turns are of user or assistant') }}{% endif %}{% endfor %}"
        f"{{% if add_generation_prompt %}}{{{{ {text(chat.assistant_open)} }}}}{{% endif %}}"
    )


def _probe(directory: pathlib.Path) -> tuple[str, str, str, int | None]:
    """The text before the first turn, before a reply and after it, and the declared pad token."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            directory, trust_remote_code=False, local_files_only=True
        )
    except Exception as error:  # depends on the tokenizer's class
        raise UserError(f"{directory}: not a Hugging Face tokenizer ({_line(error)})") from None
    if not tokenizer.chat_template:
        raise UserError(f"{directory}: the tokenizer has no chat template; use a chat model")
    roles = ("user", "assistant")
    turns = [{"role": roles[i % 2], "content": mark} for i, mark in enumerate(_MARKS)]

    def text(count: int, reply: bool) -> str:
        # Some templates print the date, which would change the tokens from day to day.
        return tokenizer.apply_chat_template(
            turns[:count], tokenize=False, add_generation_prompt=reply, date_string="26 Jul 2024"
        )

    try:
        whole, asked = text(5, False), [text(1, True), text(3, True)]
    except Exception as error:  # a template may raise what it likes
        raise UserError(f"{directory}: the chat template fails ({_line(error)})") from None
    gaps, rest = [], whole
    for mark in _MARKS:
        before, found, rest = rest.partition(mark)
        if not found:
            raise UserError(f"{directory}: the chat template changes or drops turns")
        gaps.append(before)
    first, to_assistant, to_user = gaps[:3]
    begun = first + _MARKS[0] + to_assistant
    answered = begun + _MARKS[1] + to_user + _MARKS[2] + to_assistant
    if gaps[3:] != [to_assistant, to_user] or asked != [begun, answered]:
        raise UserError(
            f"{directory}: the chat template is not append-only, a state would not be a prefix"
        )
    return first, to_assistant, to_user, tokenizer.pad_token_id


def _pad_token(
    directory: pathlib.Path, chat: ChatFormat, specials: set[int], declared: int | None
) -> int:
    """A padding token that no state ends with: readers look for the last token before padding.

    Llama-3 declares none, and some chat models declare the token that ends a turn.
    """
    used = {token for piece in dataclasses.astuple(chat) for token in piece}
    for token in (declared, *sorted(specials)):
        if token is not None and token not in used:
            return token
    if chat.begin and chat.begin[0] not in (chat.stop, chat.assistant_open[-1]):
        return chat.begin[0]
    raise UserError(f"{directory}: the tokenizer has no special token that could pad")


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
