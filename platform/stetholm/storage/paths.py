"""Where the platform keeps things on this machine, and the storage layer's error. Standard library only."""

from __future__ import annotations

import os
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
