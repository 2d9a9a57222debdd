"""The reply format: `Thought: ... Action: ...`."""

from __future__ import annotations

import re

_ACTION = re.compile(r"^[ \t]*Action:[ \t]*(.*)$", re.MULTILINE)


def parse_action(reply: str) -> str:
    """The action of a reply: the rest of its first line that begins with `Action:`.

    Empty where there is none. The environment answers an empty action as an invalid one, so that
    the agent sees its mistake and pays a step for it.
    """
    found = _ACTION.search(reply)
    return found.group(1).strip() if found else ""
