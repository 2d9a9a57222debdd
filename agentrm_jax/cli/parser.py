"""The parser of all commands: argparse whose errors are one line each, with the nearest name."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from agentrm_jax.core.errors import UserError
from agentrm_jax.core.text import shown

_MISSING = "the following arguments are required: "  # argparse's own words
_SAME = 0.8  # similarity of a mistyped option and the option that was meant


class Parser(argparse.ArgumentParser):
    """Reads the words after `agentrm COMMAND`.

    Args:
      name: The command.
      usage: Its arguments in one line.
      description: What the command does.
      example: A command line that works.
      takes_keys: Whether `--KEY=VALUE` of a configuration may be among the words.

    Attributes:
      needs_arguments: Whether the command cannot run without arguments.
      appendix: Makes text at the end of the help.
    """

    def __init__(
        self, name: str, *, usage: str, description: str, example: str, takes_keys: bool
    ) -> None:
        super().__init__(
            prog=f"agentrm {name}",
            usage=f"agentrm {name} {usage}".rstrip(),
            description=description,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            add_help=False,
            allow_abbrev=False,
        )
        self._takes_keys = takes_keys
        self._options: list[str] = []
        self.needs_arguments = False
        self.appendix: Callable[[], str] | None = None

    def add_argument(self, *names: str, **settings: Any) -> argparse.Action:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Adds an argument, as `argparse.ArgumentParser.add_argument` does."""
        is_option = names[0].startswith("-")
        self._options += names if is_option else ()
        optional = settings.get("nargs") in ("*", "?")
        self.needs_arguments |= settings.get("required", not is_option and not optional)
        return super().add_argument(*names, **settings)

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """Returns the arguments; `overrides` holds the `--KEY=VALUE` words of a configuration.

        Raises:
          UserError: An argument is missing, unknown or not what its option accepts.
        """
        given, overrides = self.parse_known_args(words)
        for word in overrides:
            self._check_unknown(word)
        given.overrides = overrides
        return given

    def format_help(self) -> str:
        """Returns the help with the appendix."""
        text = super().format_help()
        return text if self.appendix is None else f"{text}\n{self.appendix()}"

    def error(self, message: str) -> NoReturn:
        """Raises what argparse reports as a `UserError`."""
        if message.startswith(_MISSING):
            missing = message.removeprefix(_MISSING)
            verb = "are" if "," in missing else "is"
            raise UserError(f"{missing} {verb} missing: {self.usage}")
        raise UserError(message.removeprefix("argument "))

    def _check_unknown(self, word: str) -> None:
        """Refuses a word that is neither an argument of the command nor a configuration's key."""
        option = word.partition("=")[0]
        if self._takes_keys:
            near = difflib.get_close_matches(option, self._options, n=1, cutoff=_SAME)
            if not near or _is_key(option.removeprefix("--")):
                return  # the configuration's loader checks keys and values
        elif not word.startswith("-"):
            raise UserError(f"unexpected argument {shown(word)}: {self.usage}")
        hint = nearest(option, self._options, f"`{self.prog} --help` lists them")
        raise UserError(f"unknown option {shown(option)}; {hint}")


def nearest(word: str, names: Iterable[str], otherwise: str) -> str:
    """Returns the question whether the most similar name was meant, or another hint."""
    near = difflib.get_close_matches(word[:60], list(names), n=1)
    return f"did you mean {near[0]}?" if near else otherwise


def choice(*names: str) -> dict[str, Any]:
    """Returns the settings of an argument that must be one of several names."""

    def read(text: str) -> str:
        if text not in names:
            listed = ", ".join(names)
            raise argparse.ArgumentTypeError(f"must be one of {listed} (got {shown(text)})")
        return text

    return {"type": read, "metavar": "|".join(names)}


def whole_number(least: int, most: int) -> Callable[[str], int]:
    """Returns the type of an argument that is a whole number in a closed interval."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"must be a whole number (got {shown(text)})"
            ) from None
        if value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least} (got {shown(value)})")
        if value > most:
            raise argparse.ArgumentTypeError(f"must be at most {most} (got {shown(value)})")
        return value

    return read


def _is_key(name: str) -> bool:
    import dataclasses

    from agentrm_jax.pipeline.config import RunConfig

    return name.partition(".")[0] in {field.name for field in dataclasses.fields(RunConfig)}
