"""The errors that are the user's to mend; a job ends with status 2 and the message alone."""

from __future__ import annotations


class UserError(Exception):
    """Bad settings or bad input. The message says what was wrong, where, and what to do, in one line."""
