"""The references of configuration and command line, made from the package.

python .ci/reference.py            exit status 1 if a page is not up to date
python .ci/reference.py --write    writes docs/reference/configuration.md and commands.md
"""

from __future__ import annotations

import argparse
import dataclasses
import html
import pathlib
import re
import sys
import textwrap
from collections.abc import Iterator

from agentrm_jax.cli.commands import GROUPS, Command
from agentrm_jax.pipeline.config import RunConfig
from agentrm_jax.pipeline.config_keys import Key, Section, config_sections

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "docs" / "reference"
_CONFIGURATION = """\
# Configuration

Written by `python .ci/reference.py --write` from the package. `agentrm run --help` prints the same
keys in a terminal.

A configuration is a YAML file. Its sections are nested: the key `batch_size` of the section
`train_rm.fit` is

```yaml
train_rm:
  fit:
    batch_size: 32
```

in a file, and `--train_rm.fit.batch_size=32` on the command line. `--config=FILE` reads another
file; its keys replace those of the first file. A list is set as a whole, for example
`--environments='[{name: maze}]'`; its items (`environments[]`) have no options of their own. A
section with a key `kind` has the keys of that kind. Unknown keys and values out of range are errors
of one line, which name file, line and key.

Some sections have the same keys and defaults: `sft.fit`, `train_rm.fit` and `train_implicit.fit`,
and likewise their `optimizer` and `lora`, and the three sections `sampling`.
"""
_COMMANDS = """\
# Command line

Written by `python .ci/reference.py --write` from the package. `agentrm COMMAND --help` prints the
same in a terminal.

Commands with `--KEY=VALUE` accept every key of the [configuration](configuration.md). `--debug`, at
any position, prints the traceback of an error as well. `agentrm --version` prints the version. A
command that was interrupted resumes when it is given again.
"""


def configuration() -> str:
    """Returns the text of docs/reference/configuration.md."""
    blocks, levels = [_CONFIGURATION], {"keys": 1}
    for section in config_sections(RunConfig):
        name, _, kind = section.name.partition(", kind ")
        level = levels[name] + 1 if kind else _level(name, levels)
        levels.setdefault(name, level)
        blocks.append("\n".join(_section(section, level)))
    return "\n".join(blocks).rstrip() + "\n"


def _level(name: str, levels: dict[str, int]) -> int:
    """The level of a section's heading: one more than that of the section that holds it."""
    while name and (name := name.rpartition(".")[0]):
        if name in levels:
            return levels[name] + 1
    return 2


def _section(section: Section, level: int) -> Iterator[str]:
    name, _, kind = section.name.partition(", kind ")
    title = "The run" if name == "keys" else f"`{name}`" + (f", kind `{kind}`" if kind else "")
    yield f"{'#' * level} {title}\n"
    yield f"{_filled(section.text)}\n"
    prefix = "" if name == "keys" else f"{name}."
    for key in section.keys:
        yield _key(key, prefix)
    if section.keys:
        yield ""


def _key(key: Key, prefix: str) -> str:
    shown = key.shown_default
    default = f"default `{shown}`" if shown is not None else "not set by default"
    if key.default is dataclasses.MISSING:
        default = "required"
    text = key.text or "The kind, which decides the other keys."
    name = key.name.removeprefix(prefix)
    return _filled(f"- **`{name}`** ({key.type}; {default}): {text}", "  ")


def _filled(text: str, indent: str = "") -> str:
    return textwrap.fill(
        text, 100, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def commands() -> str:
    """Returns the text of docs/reference/commands.md."""
    blocks = [_COMMANDS]
    for group, members in GROUPS.items():
        title = group.partition(":")[0]
        blocks.append(f"## {title[0].upper()}{title[1:]}\n")
        blocks += ["\n".join(_command(command)) for command in members]
    return "\n".join(blocks).rstrip() + "\n"


def _command(command: Command) -> Iterator[str]:
    parser = command.parser()
    yield f"### `{command.name}`\n"
    yield from _description(parser.description or "")
    yield f"```text\n{parser.usage}\n```\n"
    actions = [action for action in parser._actions if action.help != argparse.SUPPRESS]
    if actions:
        yield "| argument | meaning |\n|---|---|"
        for action in actions:
            value = "" if action.nargs == 0 else action.metavar or action.dest.upper()
            words = [f"{name} {value}".rstrip() for name in action.option_strings] or [str(value)]
            text = (action.help or "See above.").replace("%(default)s", str(action.default))
            yield _row(", ".join(f"`{word}`" for word in words), text)
        yield ""
    yield f"Example:\n\n```bash\n{command.example}\n```\n"


def _description(text: str) -> Iterator[str]:
    """Yields the paragraphs of a description; indented ones keep their lines."""
    for block in re.split(r"\n\s*\n", text.strip("\n")):
        if block.startswith(" "):
            yield f"```text\n{textwrap.dedent(block)}\n```\n"
        else:
            yield f"{_filled(block)}\n"


def _row(*cells: str) -> str:
    return f"| {' | '.join(_cell(' '.join(cell.split())) for cell in cells)} |"


def _cell(text: str) -> str:
    """The text without bars, which would end the cell; in code, renderers differ on `\\|`."""
    text = re.sub(r"`([^`]*\|[^`]*)`", lambda code: f"<code>{html.escape(code[1])}</code>", text)
    return text.replace("|", "&#124;")


PAGES = {"configuration.md": configuration, "commands.md": commands}


def main() -> int:
    """Writes or compares the pages; returns the exit status."""
    status = 0
    for name, page in PAGES.items():
        path = FOLDER / name
        if "--write" in sys.argv:
            path.write_text(page(), encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != page():
            print(f"{path}: is not up to date; run python .ci/reference.py --write")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
