"""Giving freed memory back to the system."""

from __future__ import annotations

import ctypes


def trim() -> None:
    """Have the C library give back what is free.

    glibc keeps the memory of a step's activations for the next step; while a checkpoint is written, its copies would
    come on top of that. Does nothing where the C library has no ``malloc_trim``.
    """
    release = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if release is not None:
        release(0)
