"""The endpoint that the demo asks: deployed by a Ray job, waited for, taken down again."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from stetholm.demo import submit
from stetholm.demo.head import Head, free_ports

START_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Endpoint:
    """A live endpoint."""

    url: str
    api_key: str | None
