"""The two ways in which a command ends without its result."""


class UserError(Exception):
    """Bad input from outside: the message names the file, the row or field, and the mend.

    The command line prints the message alone, without a traceback, and exits with 2.
    """


class Stopped(Exception):
    """Work was asked to stop; what is done is checkpointed and the same command goes on."""
