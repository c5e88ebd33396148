"""Errors that are for people."""


class UserError(ValueError):
    """Something the user can mend: its message is one line that says what is wrong and what to do.

    The command line prints it and ends with status 2.
    """
