"""Leave the embedded S3 server at once, rather than let it wait for its next user.

Its supervisor ends it some seconds after its last user has gone, which is right between the jobs of a pipeline; but
when the demo says that nothing is left running, that must be so.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import TypeVar

from stetholm.storage.embedded import drop_lease, read_state
from stetholm.storage.locks import is_locked, try_lock
from stetholm.storage.paths import home

END_TIMEOUT_S = 15.0
USERS_TIMEOUT_S = 5.0
"""How long to wait for the last of our own workers to give up their lease."""

T = TypeVar("T")


def server_pid() -> int | None:
    """Process id of the embedded server's supervisor, if it runs."""
    state = read_state(home())
    return state.supervisor_pid if state else None


def leave_server() -> bool:
    """Give up this process's lease and end the server if nobody else uses it.

    The lease is held exclusively while the server ends: a newcomer waits, and then starts a fresh one.

    Returns:
        Whether no server runs any more (False: others use it, or it did not end in time).
    """
    folder = home()
    drop_lease(folder)
    lease = wait_for(lambda: try_lock(folder / "s3.lease"), USERS_TIMEOUT_S)
    if lease is None:
        return False
    try:
        pid = server_pid()
        if pid is not None and is_locked(folder / "s3.alive"):
            os.kill(pid, signal.SIGTERM)
        ended = wait_for(lambda: None if is_locked(folder / "s3.alive") else True, END_TIMEOUT_S)
        return ended is not None
    finally:
        os.close(lease)


def wait_for(look: Callable[[], T | None], seconds: float) -> T | None:
    """The first thing other than None that ``look`` returns; None if there is none in time."""
    deadline = time.monotonic() + seconds
    while (found := look()) is None and time.monotonic() < deadline:
        time.sleep(0.1)
    return found
