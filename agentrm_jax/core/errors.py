"""The exceptions that end a command with one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from agentrm_jax.core.text import shown


class UserError(Exception):
    """Something that the user can mend: bad input, a missing file or package.

    The message is one line that names the key, file and line concerned and says what to do.
    The command line prints it without a traceback and exits with status 2.

    `UserError(field="batch_size", value=0, expected="at least 1")` reads "batch_size must be at
    least 1 (got 0)". Code that checks a configuration gives its own field; the loader adds the
    section, the file and the line.

    Args:
      message: What is wrong and what to write instead. With a `field` it continues a sentence that
        begins with the field's name: "must divide batch_size, 4".
      field: Name of the field that is refused; dotted if it belongs to an inner configuration.
      value: The value that is refused, shown as "(got VALUE)".
      expected: In place of a message: what the field must be.

    Attributes:
      reason: The message without the field's name.
      field: As given; the full key once a loader has located the error.
      value: As given.
      expected: As given.
      where: The file and the line that set the field, for example `my.yaml, line 3`; empty if they
        are not known.
    """

    def __init__(
        self,
        message: str = "",
        *,
        field: str | None = None,
        value: Any = None,
        expected: str | None = None,
    ) -> None:
        self.field, self.value, self.expected = field, value, expected
        self.where = ""
        reason = message or f"must be {expected}"
        if field is not None:
            reason = reason.removeprefix(f"{field} ")
        self.reason = reason if value is None else f"{reason} (got {shown(value)})"
        super().__init__(self.reason if field is None else f"{field} {self.reason}")

    def located(self, field: str, where: str = "") -> UserError:
        """Returns the same error with the full key of its field.

        Args:
          field: The full key, for example `sft.fit.batch_size`.
          where: The file and the line that set it; empty if no file does.
        """
        error = UserError(self.reason, field=field)
        error.value, error.expected, error.where = self.value, self.expected, where
        if where:
            error.args = (f"{where}: {error}",)
        return error


@contextmanager
def section(key: str) -> Iterator[None]:
    """Adds a section's key to the field of a `UserError` that the block raises.

    Args:
      key: For example `train_rm.fit`: the field `length` becomes `train_rm.fit.length`. A field
        with a dot in it, such as `mesh.data`, has its section already and stays as it is.
    """
    try:
        yield
    except UserError as error:
        if error.field is None or "." in error.field:
            raise
        raise error.located(f"{key}.{error.field}") from error.__cause__


class Stopped(Exception):
    """A signal to stop (SIGTERM) or a budget ended the work: it is saved and can be resumed.

    The command line prints the message and exits with status 0, as schedulers expect of a program
    that they preempt.

    Attributes:
      resume: What to do to resume.
    """

    resume = "run the same command again to resume"


class BudgetSpent(Stopped):
    """A limit of the section `budget` is reached.

    Args:
      key: The limit.
      progress: How far the work is, such as `explore: 246 of 768`.
    """

    def __init__(self, key: str, progress: str) -> None:
        super().__init__(f"{key} is reached at {progress}")
        if key == "budget.tokens":
            self.resume = f"run it again with a larger {key} to resume"
