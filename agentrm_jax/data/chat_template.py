"""The chat format of a Hugging Face model: found by rendering marked turns with its template,
compared with the template token for token, and written as a template."""

from __future__ import annotations

import itertools
import json
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from agentrm_jax.core.errors import UserError
from agentrm_jax.data.chat import ChatFormat, Frame, Strip, stripped
from agentrm_jax.data.probes import PROBES, messages_of
from agentrm_jax.data.template_process import DAY, TemplateError, render_template

_MARKS = tuple(f"TURN{i}" for i in range(5))
_REASONING = "REASON"
_BLANKS = ("\n \t", " \n\t")
_STRIPPED = ("", None, "\n", " ", " \n")
"""What templates remove from the ends of a turn; see `chat.Strip`."""


class Template(NamedTuple):
    """The texts of a template for marked turns and for the probe conversations.

    Attributes:
      chat: The format that was found.
      probes: Of each probe conversation the text of its first 1, 2, ... turns; None if the
        template has no such text.
    """

    chat: ChatFormat
    probes: Mapping[str, Sequence[str | None]]


Parse = Callable[[str], Frame]
"""A template's text as the ids of its control tokens and the text between them."""


def read_template(
    directory: pathlib.Path, template: str, variables: Mapping[str, Any], parse: Parse
) -> Template:
    """Finds what a chat template puts around turns.

    Args:
      directory: Named in errors.
      template: The template's source.
      variables: The special tokens that it may name.
      parse: Cuts a text at control tokens.

    Raises:
      UserError: The template fails, takes too long, or a state under it is not a prefix of its
        continuations.
    """
    texts = _render(directory, template, variables)
    chat = _frames(directory, texts, parse)
    probes = {
        name: [
            texts("probe", name, count)
            if count % 2 and all(map(str.strip, turns[:count]))  # empty turns may be refused
            else texts.maybe(("probe", name, count))
            for count in range(1, len(turns) + 1)
        ]
        for name, turns in PROBES.items()
    }
    return Template(chat, probes)


class _Texts(NamedTuple):
    """The rendered chats under the names with which they were asked for."""

    directory: pathlib.Path
    found: Mapping[tuple[Any, ...], str | TemplateError]
    dated: bool

    def maybe(self, name: tuple[Any, ...]) -> str | None:
        text = self.found[name]
        return None if isinstance(text, TemplateError) else text

    def __call__(self, *name: Any) -> str:
        text = self.found[name]
        if isinstance(text, TemplateError):
            raise UserError(f"{self.directory}: the chat template fails ({text})")
        return text


def _render(directory: pathlib.Path, template: str, variables: Mapping[str, Any]) -> _Texts:
    """Renders all that is looked at, in one process."""
    chats: dict[tuple[Any, ...], list[str]] = {}
    for count in range(1, len(_MARKS) + 1):
        chats["marks", count] = list(_MARKS[:count])
    chats["whole",] = list(_MARKS)
    for blanks in _BLANKS:
        chats["blanks", blanks] = [blanks + mark + blanks for mark in _MARKS]
    for thought in _thoughts(template):
        chats["reasoning", thought] = [_MARKS[0], thought, _MARKS[2]]
    for name, turns in PROBES.items():
        for count in range(1, len(turns) + 1):
            chats["probe", name, count] = list(turns[:count])
    whole = {("whole",), *(("blanks", blanks) for blanks in _BLANKS)}
    asked = [
        (messages_of(turns), bool(len(turns) % 2) and name not in whole)
        for name, turns in chats.items()
    ]
    # Some templates take the day from whoever renders them.
    day = {"date_string": "26 Jul 2024", **variables}
    try:
        texts, asked_for_date = render_template(template, day, asked)
    except TemplateError as error:
        raise UserError(f"{directory}: the chat template {error}") from None
    dated = asked_for_date or "date_string" in template
    return _Texts(directory, dict(zip(chats, texts, strict=True)), dated)


def _frames(directory: pathlib.Path, texts: _Texts, parse: Parse) -> ChatFormat:
    """The text around turns, from the marked ones."""

    def refused(what: str) -> UserError:
        return UserError(f"{directory}: the chat template {what}")

    gaps = _gaps(texts("whole"))
    if gaps is None:
        raise refused("changes or drops turns")
    first, to_reply, to_user = gaps[:3]
    opening = texts("marks", 1).removeprefix(first + _MARKS[0])
    if gaps[3:5] != [to_reply, to_user] or not _continues(texts, first, to_reply, to_user):
        raise refused("is not append-only, a state would not be a prefix")
    before = to_reply.removeprefix(opening)
    if not to_reply.startswith(opening) or before.strip():
        raise refused("begins a reply differently when one is asked for: it is not append-only")
    if not opening.strip():
        raise refused("puts nothing between a turn of the user and a reply")
    after, close = _split_at_stop(parse, to_user)
    if close is None or after.strip():
        raise refused("ends a reply without a special token")
    strips = _strips(texts, gaps)
    if strips is None:
        raise refused("changes the blanks around turns; only removing them is supported")
    begun = first + _MARKS[0] + to_reply
    rewrites = _rewrites_reasoning(texts, begun, to_user + _MARKS[2] + opening, strips[1])
    closing = _closing(texts, begun, after, parse, rewrites)
    if closing is not None and closing[:1] != close[:1]:
        raise refused("renders the last reply differently: it is not append-only")
    return ChatFormat(
        begin=parse(first),
        # What a template writes between two turns belongs to the turn before it: observations and
        # replies are then framed alike, wherever the template itself would draw the line.
        user_open=(),
        user_close=(),
        assistant_open=parse(opening),
        assistant_close=close,
        reply_before=before,
        reply_after=after,
        user_strip=strips[0],
        reply_strip=strips[1],
        between_users="\n",
        closing=closing[1:] if closing is not None else (),
        date=DAY if texts.dated else "",
        drops_reasoning=rewrites,
    )


def _thoughts(template: str) -> list[str]:
    """Replies with reasoning before a mark, between the markers that are common and between those
    that the template names."""
    literals = re.findall(r"""'([^'\n]{2,40})'|"([^"\n]{2,40})\"""", template)
    closing = dict.fromkeys(["</think>", *(a or b for a, b in literals)])
    return [
        f"{name.replace('/', '').replace('end', 'begin')}\n{_REASONING}\n{name}\n\n{_MARKS[1]}"
        for name in list(closing)[:60]
    ]


def _rewrites_reasoning(texts: _Texts, before: str, after: str, strip: Strip) -> bool:
    """Whether the template changes a reply with reasoning when another turn follows."""
    thoughts = [name[1] for name in texts.found if name[0] == "reasoning"]
    return any(
        texts.maybe(("reasoning", thought)) not in (None, before + stripped(thought, strip) + after)
        for thought in thoughts
    )


def _closing(texts: _Texts, begun: str, after: str, parse: Parse, rewrites: bool) -> Frame | None:
    """The text after the last reply of a conversation, from the stop token on.

    Empty if the reply is rendered differently there; None if the template renders no conversation
    that a reply ends.
    """
    ended = texts.maybe(("marks", 2))
    if ended is None:
        return None
    before, _, end = ended.rpartition(_MARKS[1])
    # Some write empty reasoning before the last reply alone.
    return parse(end.removeprefix(after)) if before == begun or rewrites else ()


def _gaps(text: str) -> list[str] | None:
    """The text before, between and after the marks, if each is there once and in order."""
    gaps, rest = [], text
    for mark in _MARKS:
        before, found, rest = rest.partition(mark)
        if not found:
            return None
        gaps.append(before)
    return [*gaps, rest] if "TURN" not in rest else None


def _continues(texts: _Texts, first: str, to_reply: str, to_user: str) -> bool:
    """Whether the text that asks for each reply begins the text of the whole conversation."""
    whole = first
    opening = texts("marks", 1).removeprefix(first + _MARKS[0])
    for count, mark in enumerate(_MARKS, 1):
        whole += mark
        if count % 2 and texts("marks", count) != whole + opening:
            return False
        whole += to_reply if count % 2 else to_user
    return True


def _split_at_stop(parse: Parse, to_user: str) -> tuple[str, Frame | None]:
    """The text between a reply and the token that ends it, and all from that token on."""
    parts = parse(to_user)
    after = str(parts[0]) if parts and isinstance(parts[0], str) else ""
    close = parts[1:] if after else parts
    return after, close or None


def _strips(texts: _Texts, plain: Sequence[str]) -> tuple[Strip, Strip] | None:
    """The blanks that a template removes from the ends of turns; None if it changes them."""
    found = [_gaps(texts("blanks", blanks)) for blanks in _BLANKS]
    pairs: list[Strip] = [(left, right) for left in _STRIPPED for right in _STRIPPED]
    for user, reply in itertools.product(pairs, repeat=2):
        if all(
            gaps is not None and gaps == _blank_gaps(plain, blanks, user, reply)
            for blanks, gaps in zip(_BLANKS, found, strict=True)
        ):
            return user, reply
    return None


def _blank_gaps(plain: Sequence[str], blanks: str, user: Strip, reply: Strip) -> list[str]:
    """The gaps between marks that stand between blanks."""
    gaps = list(plain)
    for i in range(len(_MARKS)):
        left, right = reply if i % 2 else user
        gaps[i] += blanks.lstrip(left)
        gaps[i + 1] = blanks.rstrip(right) + gaps[i + 1]
    return gaps


def template_of(chat: ChatFormat, text_of: Callable[[Frame], str]) -> str:
    """Returns a chat template that puts the same text around turns.

    After a last reply it puts the stop token alone, where the value of an action is read.

    Args:
      text_of: The text of a frame.
    """

    def text(frame: Frame) -> str:
        return json.dumps(text_of(frame), ensure_ascii=False)

    def content(strip: Strip) -> str:
        sides = (
            f".{side}strip({'' if characters is None else json.dumps(characters)})"
            for side, characters in zip("lr", strip, strict=True)
            if characters != ""
        )
        return "message['content']" + "".join(sides)

    user = f"{text(chat.user_open)} + {content(chat.user_strip)} + {text(chat.user_close)}"
    reply = (
        f"{text((*chat.assistant_open, chat.reply_before))} + {content(chat.reply_strip)} + "
        f"{text((chat.reply_after, chat.stop_token))}"
    )
    between = json.dumps(chat.between_users)
    joined = f"{{% if loop.previtem and loop.previtem['role'] == 'user' %}}{{{{ {between} }}}}"
    joined = f"{joined}{{% endif %}}" if chat.between_users else ""
    return (
        f"{{{{ {text(chat.begin)} }}}}{{% for message in messages %}}"
        f"{{% if message['role'] == 'user' %}}{joined}{{{{ {user} }}}}"
        f"{{% elif message['role'] == 'assistant' %}}{{{{ {reply} }}}}"
        f"{{% if not loop.last %}}{{{{ {text(chat.assistant_close[1:])} }}}}{{% endif %}}"
        "{% else %}{{ raise_exception('turns are of user or assistant') }}{% endif %}{% endfor %}"
        f"{{% if add_generation_prompt %}}{{{{ {text(chat.assistant_open)} }}}}{{% endif %}}"
    )
