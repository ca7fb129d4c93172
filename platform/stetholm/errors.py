"""Errors whose message is all that a person needs: a job ends with it, without a traceback."""

from __future__ import annotations


class UserError(Exception):
    """Bad settings or bad input: status 2. The message says what was wrong, where, and what to do, in one line."""


class Stopped(Exception):
    """A job has stopped in order before its end, as it was told to or as its gate was not passed: status 1.

    The message says how far it is and how to go on.
    """
