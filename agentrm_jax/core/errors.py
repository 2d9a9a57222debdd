"""The one exception that a user sees."""


class UserError(Exception):
    """Something that the user can mend: bad input, a missing file or package.

    The message is one line that names the key, file and line concerned and says what to do.
    The command line prints it without a traceback and exits with status 2.
    """
