"""Exceptions that end a command without a result."""


class UserError(Exception):
    """Bad input from outside: the message names the file, the row or field, and the fix.

    The command line prints the message alone, without a traceback, and exits with 2.
    """


class Stopped(Exception):
    """A stop request ended the work; it is checkpointed, and the same command continues."""
