"""The exceptions that end a command with one line."""


class UserError(Exception):
    """Something that the user can mend: bad input, a missing file or package.

    The message is one line that names the key, file and line concerned and says what to do.
    The command line prints it without a traceback and exits with status 2.
    """


class FieldError(UserError):
    """A configuration is refused because of one of its fields.

    The message is the field and the reason: "batch_size must be at least 1 (got 0)". Whoever reads
    the configuration from a file adds the section, the file and the line.

    Args:
      field: Its name; dotted if it belongs to a configuration that this one holds.
      reason: What is wrong and what to write instead; it continues a sentence that begins with the
        field's name.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field} {reason}")
        self.field, self.reason = field, reason


class Stopped(Exception):
    """A wish to stop (SIGTERM) was followed: everything is saved, the same command goes on.

    The command line prints the message and exits with status 0, as schedulers expect of a program
    that they preempt.
    """
