"""The one exception that is meant for the user."""


class UserError(Exception):
    """A user's mistake: the message says what is wrong, where, and what to do.

    The command line and the workflow print the message alone, without a
    traceback, and end with a status that is not zero.
    """
