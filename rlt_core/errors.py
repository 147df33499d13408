"""Exceptions that end a command without a result."""


class UserError(Exception):
    """Bad input from outside: the message names the file, the row or field, and the fix.

    The command line prints the message alone, without a traceback, and exits with 2.
    """


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, in characters that every terminal can show."""
    text = str(error).strip().splitlines() or [type(error).__name__]
    return text[0].encode("utf-8", "backslashreplace").decode()


class Stopped(Exception):
    """A stop request ended the work; it is checkpointed, and the same command continues."""
