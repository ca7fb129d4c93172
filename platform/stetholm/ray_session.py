"""A Ray connection for the length of a job."""

from __future__ import annotations

import contextlib
import logging
import os
import weakref
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from stetholm.stopping import sigterm_kept

T = TypeVar("T")

MIN_LOCAL_CPUS = 4
"""Fewest logical CPUs of a local session. Ray's CPUs are places for tasks, not cores: two training workers hold one
each, and reading needs places beside them, or the workers would wait for data that nobody may read. On two cores the
machine's scheduler shares them out."""

OBJECT_STORE_BYTES = 2 * 2**30
"""Of a local session: the streams need far less, and Ray's own default is 30 % of the machine's memory."""


@contextmanager
def ray_session(num_cpus: float | None = None) -> Iterator[None]:
    """Be connected to Ray within the block, and undo afterwards only what this began.

    An already initialised Ray is used as it is. Else the cluster of ``RAY_ADDRESS`` is joined, which is what
    ``ray job submit`` sets. Else a Ray of this process's own starts on this machine, and ends with the block.

    Args:
        num_cpus: logical CPUs of a Ray of our own; default the machine's, but at least four.
    """
    import ray

    began = not ray.is_initialized()
    if began and os.environ.get("RAY_ADDRESS"):
        # Ray Train's actors look for the cluster by themselves, in vain where several run on one machine.
        address = {"RAY_ADDRESS": os.environ["RAY_ADDRESS"]}
        with sigterm_kept():
            ray.init(log_to_driver=True, logging_level=logging.WARNING, runtime_env={"env_vars": address})
        _keep_data_actors_here()
    elif began:
        with sigterm_kept():
            _start_local(num_cpus or max(os.cpu_count() or 1, MIN_LOCAL_CPUS))
    quiet_data()
    try:
        yield
    finally:
        if began:
            _close_streams()
            ray.shutdown()


_streams: weakref.WeakSet[Generator[Any]] = weakref.WeakSet()


def closed_with_session(stream: Generator[T]) -> Generator[T]:
    """``stream``, which reads from Ray Data, to be closed before the session ends.

    Whoever reads may leave it half read, with an exception for one. Ray Data's executor then shuts down when the
    interpreter does, and hangs for ever on a lock that one of its threads held when it was stopped.
    """
    _streams.add(stream)
    return stream


def _close_streams() -> None:
    for stream in list(_streams):
        with contextlib.suppress(ValueError):  # another thread is just reading it
            stream.close()


def _start_local(num_cpus: float) -> None:
    """``address="local"``, or a stale record of another cluster would be joined.

    Ray turns token authentication on for a Ray of one's own, makes a token if there is none, and warns about it; only
    the warning is left out. Setting RAY_AUTH_MODE=token instead fails on a machine without a token: after
    ``import ray`` it is too late to make one, and joining a cluster without authentication then asks for one.
    """
    import ray

    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    ray.init(
        address="local",
        num_cpus=num_cpus,  # type: ignore[arg-type]  # Ray takes fractions too
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=True,
        logging_level=logging.WARNING,
        # Without a dashboard, Ray Train's cleaner warns every second that it cannot ask one.
        logging_config=ray.LoggingConfig(log_level="ERROR"),
    )


def _keep_data_actors_here() -> None:
    """Have Ray Data's two actors of the whole cluster on the driver's node, which is the head under ``ray job submit``.

    They are detached, and stay on the node of whoever asks for them first. A training worker would: its node would
    never be idle again, and so never leave.
    """
    from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
        get_or_create_autoscaling_coordinator,
    )
    from ray.data._internal.stats import get_or_create_stats_actor

    get_or_create_stats_actor()
    get_or_create_autoscaling_coordinator()


def quiet_data() -> None:
    """Ray Data's own bars and console lines off: our jobs show their own progress, and its errors reach us raised.

    Its log file in Ray's session folder still has everything.
    """
    import ray.data

    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            handler.setLevel(logging.CRITICAL)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
