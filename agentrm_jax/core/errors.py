"""The exceptions that end a command with one line."""


class UserError(Exception):
    """Something that the user can mend: bad input, a missing file or package.

    The message is one line that names the key, file and line concerned and says what to do.
    The command line prints it without a traceback and exits with status 2.
    """


class Stopped(Exception):
    """A wish to stop (SIGTERM) was followed: everything is saved, the same command goes on.

    The command line prints the message and exits with status 0, as schedulers expect of a program
    that they preempt.
    """
