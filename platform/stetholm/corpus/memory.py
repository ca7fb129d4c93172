"""How the reading tasks' processes deal with freed memory."""

from __future__ import annotations

import contextlib
import ctypes
from functools import cache

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
_KEPT_BYTES = 64 * 2**20


@cache
def keep_freed_memory() -> None:
    """Have this process's C library keep up to 64 MiB of what is freed for the next use.

    By default glibc gives arrays of the size of a clip back to the system each time, and gets them anew zeroed, page
    by page: a quarter of a reading task's time. Does nothing where the C library has no ``mallopt``.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, _KEPT_BYTES)
        mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
