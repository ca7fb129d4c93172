"""Errors of a model replica without their messages, which may hold what a user sent.

Ray Serve logs what a replica's method raises, message and traceback, and Ray sends both to the caller. So only errors
whose messages are ours pass as they are; of any other the kind and the place are told.
"""

from __future__ import annotations

import functools
import inspect
import traceback
from collections.abc import Callable
from contextlib import aclosing
from typing import Any, TypeVar

from stetholm.audio.decode import AudioError
from stetholm.serving.engine import EngineBusy, RequestError

PASSED = (AudioError, EngineBusy, RequestError)
"""Their messages tell of numbers and limits, never of what was sent."""
M = TypeVar("M", bound=Callable[..., Any])


class ReplicaError(Exception):
    """A request has failed in a replica, for no reason that a client could know."""


def _harmless(error: Exception) -> Exception:
    """What may be raised in its place; no cause and no context hangs on to it."""
    if not isinstance(error, PASSED):
        return ReplicaError(_told(error))
    error.__cause__ = error.__context__ = None
    return error


def _told(error: Exception) -> str:
    """Kind and place."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {frame.name} ({frame.filename}:{frame.lineno})"


def quiet(method: M) -> M:
    """``method``, a coroutine or an asynchronous generator, with errors that may be logged.

    They are raised outside of the handler: within, Python would hang the original on to them.
    """
    made: Any

    @functools.wraps(method)
    async def one(*args: Any, **kwargs: Any) -> Any:
        try:
            return await method(*args, **kwargs)
        except Exception as error:
            harmless = _harmless(error)
        raise harmless

    @functools.wraps(method)
    async def many(*args: Any, **kwargs: Any) -> Any:
        try:
            async with aclosing(method(*args, **kwargs)) as found:
                async for each in found:
                    yield each
            return
        except Exception as error:
            harmless = _harmless(error)
        raise harmless

    made = many if inspect.isasyncgenfunction(method) else one
    return made
