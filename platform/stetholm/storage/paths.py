"""Where the platform keeps things on this machine, and the storage layer's error. Standard library only."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from stetholm.errors import UserError


class StorageError(UserError):
    """Storage that cannot be reached, refuses the keys, or lacks what was asked for."""


def home() -> Path:
    """``$STETHOLM_HOME`` or ``~/.stetholm``: the embedded server's data and state, the cache, logs. Made if missing."""
    folder = Path(os.environ.get("STETHOLM_HOME") or Path.home() / ".stetholm").expanduser().absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"storage: cannot make {folder}: {error.strerror}; set STETHOLM_HOME") from None
    return folder


def log_file(name: str) -> Path:
    """``home()/logs/<name>``, its folder made."""
    folder = home() / "logs"
    folder.mkdir(exist_ok=True)
    return folder / name


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file among the processes of this machine; the system frees it if we die."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
