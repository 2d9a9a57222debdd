"""The action of a reply: one parser for everything that a model or an imported file says.

The prompts ask for `Thought: ...` and `Action: ...` on lines of their own. Models also write the
label in bold, in capitals, as a heading, with a full-width colon, on the line of the thought, or
with the action on the next line. All of these are read here, the strictest form first, so that a
thought that mentions an action never wins over a line that is one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

_SENTENCE_ENDS = ".!?;。！？…"  # noqa: RUF001
_COLON = r"[:：]"  # noqa: RUF001
_BLANK = r"[ \t\r\f\v\u00a0\u3000\ufeff\u200b-\u200f\u2060\u202a-\u202e\u2066-\u2069]"
_PLAIN = re.compile(r"^[ \t]*Action:", re.MULTILINE)
_MARKED = re.compile(
    rf"^(?P<lead>(?:[>#+\-•]|\*(?=[ \t])|{_BLANK}){{0,32}}(?:\d{{1,3}}[.)][ \t]?)?)"
    rf"(?P<open>[*_`]{{0,3}})"
    rf"[Aa](?i:ction){_BLANK}{{0,4}}\d{{0,4}}{_BLANK}{{0,4}}"
    rf"(?P<close>[*_`]{{0,3}}){_BLANK}{{0,4}}(?:{_COLON}|(?P<heading>{_BLANK}{{0,8}}$))",
    re.MULTILINE,
)
_OTHER_LABEL = re.compile(
    rf"(?:[>#*_`+\-•]|{_BLANK}){{0,32}}(?i:thought|observation|action(?:{_BLANK}?input)?)"
    rf"{_BLANK}{{0,4}}\d{{0,4}}[*_`]{{0,3}}{_BLANK}{{0,4}}{_COLON}"
)
_TAG = re.compile(r"<(/?)action>", re.IGNORECASE)
_IN_LINE = re.compile(
    rf"(?:\s|(?<=[{_SENTENCE_ENDS}]))(?P<open>[*_`]{{0,3}})"
    rf"(?:Action|ACTION)(?P<close>[*_`]{{0,3}}){_BLANK}?{_COLON}"
)
_NEXT_TURN = re.compile(rf"\s[*_]{{0,3}}(?i:observation|thought)[*_]{{0,3}}{_BLANK}?{_COLON}")
_REASONING = re.compile(r"\A(?:\s*<think>.*?|(?:.*?\n)?[ \t]*)</think>", re.DOTALL)
_DETERMINERS = re.compile(
    r"(?i:an?|any|another|each|every|its|my|next|no|one|our|some|that|the|their|this|which|your)"
)
_INPUT_LABEL = re.compile(rf"\s*[*_`]{{0,3}}(?i:action{_BLANK}?input)[*_`]{{0,3}}\s*{_COLON}[*_]*")
_INPUT_AT_END = re.compile(rf"(?i:action{_BLANK}?input){_BLANK}*{_COLON}{_BLANK}*$")
_INPUT_OPENS = re.compile(rf"(?i:action{_BLANK}?input){_BLANK}*{_COLON}{_BLANK}*\{{")
_OPENING = re.compile(r"\s*(?:`{1,3}(?:[A-Za-z]+\s|\s*))?(?=\{)")
_NO_WITH = re.compile(
    rf"\A([\w.]+)(?:{_BLANK}*[,;]{_BLANK}*|{_BLANK}+)(?i:action input):{_BLANK}*(?=\{{)"
)
_FENCE = re.compile(r"```[A-Za-z]*")
_DECODER = json.JSONDecoder()


def parse_action(reply: str) -> str:
    """Returns the action of a reply, empty if it has none.

    The environment answers an empty action as an invalid one, so that the agent sees its mistake
    and pays a step for it. In this order, the first form that gives an action is taken:

    1. a line that begins with `Action:`;
    2. a line that begins with the label in another spelling: `**Action:**`, `ACTION:`, `- Action:`,
       `### Action`, `Action 1:`, a full-width colon;
    3. `<action>...</action>`;
    4. `Action:` within a line, after the thought.

    The action is the rest of the line or, if that is blank, the next line that is not. Backticks,
    code fences and bold around the whole action are removed. The JSON of a tool call may follow on
    later lines, also after a label `Action Input:` of its own. A reasoning block `<think>` at the
    beginning is not looked into.
    """
    reply = reply.replace("\r\n", "\n").replace("\r", "\n")
    if found := _REASONING.match(reply):
        reply = reply[found.end() :]
    for start, marks in _labels(reply):
        if action := _action_at(reply, start, marks):
            return action
    return _tagged(reply) or _action_within_a_line(reply)


def _labels(reply: str) -> Iterator[tuple[int, str]]:
    """The ends of all labels, each with the bold marks that the label leaves open."""
    for found in _PLAIN.finditer(reply):
        yield found.end(), ""
    for found in _MARKED.finditer(reply):
        marks = found["open"]
        named = (marks and found["close"]) or "#" in found["lead"]
        if found["heading"] is not None and not named:
            continue  # a line that says only "Action", without a colon or marks, is prose
        yield found.end(), "" if found["close"] else marks


def _action_at(reply: str, start: int, marks: str = "") -> str:
    """The action that begins at this position of a line, or on a later line."""
    end = _line_end(reply, start)
    action = _without_marks(reply[start:end].strip(), marks)
    if _FENCE.fullmatch(action):
        return _fenced(reply, end)
    if action := _bare(action):
        return _with_arguments(action, reply, start, end)
    while end < len(reply):
        start, end = end + 1, _line_end(reply, end + 1)
        line = reply[start:end].strip()
        if _FENCE.fullmatch(line):
            return _fenced(reply, end)
        if _OTHER_LABEL.match(line):
            return ""
        if action := _bare(line):
            return _with_arguments(action, reply, start, end)
    return ""


def _tagged(reply: str) -> str:
    """The first text between `<action>` and `</action>`."""
    start = None
    for tag in _TAG.finditer(reply):
        if not tag[1]:
            start = tag.end()
        elif start is not None:
            if action := _bare(_one_line(reply[start : tag.start()])):
                return action
            start = None
    return ""


def _line_end(reply: str, start: int) -> int:
    end = reply.find("\n", start)
    return len(reply) if end < 0 else end


def _fenced(reply: str, start: int) -> str:
    """The first line of a code block, or the whole tool call that begins there."""
    closing = reply.find("```", start)
    block = reply[start : closing if closing >= 0 else len(reply)].strip()
    if label := _MARKED.match(block):
        block = block[label.end() :].strip()
    end = _line_end(block, 0)
    action = _bare(block[:end])
    return _with_arguments(action, block, 0, end) if action else ""


def _without_marks(text: str, marks: str) -> str:
    """The text without the marks that a label before it opened."""
    if marks and text.startswith(marks):
        return text.removeprefix(marks).strip()
    return text.removesuffix(marks).strip() if marks else text


def _bare(text: str) -> str:
    """The text without the code or bold marks around the whole of it."""
    text = text.strip().strip("\ufeff\u200b\u200e\u200f\u2060").strip()
    for marks in ("```", "**", "__", "`"):
        inner = text[len(marks) : -len(marks)]
        if text.startswith(marks) and text.endswith(marks) and inner and marks[0] not in inner:
            return inner.strip()
    return "" if not text.strip("`*_") else text


def _with_arguments(action: str, reply: str, start: int, end: int) -> str:
    """The action with the JSON of its tool call, where that continues on later lines."""
    action = _NO_WITH.sub(r"\1 with Action Input: ", action)
    opening = _INPUT_OPENS.search(reply, start, end)
    if opening or action.startswith("{"):
        value = _json_text(reply, opening.end() - 1 if opening else reply.index("{", start))
        return (
            f"{action[: action.index('{')]}{_one_line(value)}"
            if value and "\n" in value
            else action
        )
    if _INPUT_AT_END.search(action):
        if found := _OPENING.match(reply, end):
            return f"{action} {_one_line(_json_text(reply, found.end()) or '')}".strip()
        return action
    label = _INPUT_LABEL.match(reply, end)
    found = label and _OPENING.match(reply, label.end())
    if found and "action input" not in action.lower():
        value = _json_text(reply, found.end())
        if not value:  # a Python dictionary on one line
            value = reply[found.end() : _line_end(reply, found.end())].strip()
        return f"{action} with Action Input: {_one_line(value)}"
    return action


def _json_text(reply: str, start: int) -> str | None:
    """The JSON object that begins here, None if it is none."""
    try:
        _, end = _DECODER.raw_decode(reply, start)
    except (ValueError, RecursionError):
        return None
    return reply[start:end]


def _one_line(value: str) -> str:
    """JSON without its line breaks, which are never inside a text of it."""
    return " ".join(line.strip() for line in value.split("\n"))


def _action_within_a_line(reply: str) -> str:
    """The action of `Thought: ... Action: ...` on one line.

    A label after the end of a sentence comes first; then the last one that no article or pronoun
    makes a part of the sentence, as in "the Action: field".
    """
    after_sentence, within = [], []
    for found in _IN_LINE.finditer(reply):
        words = reply[max(0, found.start() - 40) : found.start()].split()
        word = words[-1].rstrip("*_`\"')]") if words else ""
        label = (found.end(), "" if found["close"] else found["open"])
        on_its_line = reply[found.start()] in "\v\f\x85\u2028\u2029"
        if on_its_line or (word and word[-1] in _SENTENCE_ENDS):
            after_sentence.append(label)
        elif not _DETERMINERS.fullmatch(word):
            within.append(label)
    for start, marks in [*after_sentence, *reversed(within)]:
        end = _line_end(reply, start)
        turn = _NEXT_TURN.search(reply, start, end)
        if turn and "{" not in reply[start : turn.start()]:
            end = turn.start()
        action = _bare(_without_marks(reply[start:end].strip(), marks))
        if re.search(r"\w", action):
            return _with_arguments(action, reply, start, end)
    return ""
