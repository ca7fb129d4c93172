"""Leases: at most one process at a time works on a prefix in object storage, whatever the server.

S3 servers differ in conditional writes, so this is Lamport's bakery (CACM 17(8), 1974) on objects, each written by one
process alone: take a number higher than all, then the lowest number holds the lease. It needs only what every S3 server
gives: a listing shows whatever was written before it.
"""

from __future__ import annotations

import contextlib
import os
import platform
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from stetholm.storage.paths import StorageError
from stetholm.storage.store import Storage

BEAT_SECONDS = 15.0
"""How often a holder writes its claim anew."""
STALE_SECONDS = 240.0
"""A claim that was not written for so long is of a process that has died; longer than the storage's patience. By the
server's clock alone."""
_CHOOSING = "choosing"
_POLL_SECONDS = 0.5


class LeaseHeld(StorageError):
    """Somebody else works there."""


@dataclass(frozen=True)
class _Claim:
    """One object below the lease's prefix: ``<number>-<token>`` or, while it takes a number, ``choosing-<token>``."""

    uri: str
    number: int | None
    token: str
    written: datetime

    @property
    def place(self) -> tuple[int, str]:
        return (self.number or 0, self.token)


@dataclass
class Lease:
    """A lease that this process holds; :func:`lease` makes one."""

    storage: Storage
    prefix: str
    what: str
    token: str = field(default_factory=lambda: secrets.token_hex(8))
    number: int = 0

    def check(self) -> None:
        """Raise LeaseHeld if the lease was lost: the process stood still for so long that another took it."""
        if not any(claim.token == self.token for claim in self._claims()):
            raise LeaseHeld(f"{self.what}: this process stood still for over {STALE_SECONDS:.0f} s and lost its lease")

    def _take(self) -> None:
        self._write(_CHOOSING)
        self.number = 1 + max((claim.number or 0 for claim in self._claims()), default=0)
        self._write(self._name)
        self._remove(_CHOOSING)
        while other := self._first_other():
            if other.number is not None:
                raise LeaseHeld(f"{self.what}: {self._who(other)} is at it; wait until it is done")
            time.sleep(_POLL_SECONDS)
            self._write(self._name)  # else the age of the other one's claim, measured by ours, would stand still

    def _first_other(self) -> _Claim | None:
        """A claim that comes before this one, or that has no number yet and so might; dead ones are removed."""
        claims = self._claims()
        mine = next((claim for claim in claims if claim.token == self.token), None)
        if mine is None:
            raise StorageError(f"{self.what}: the claim {self._uri(self._name)} was removed; try again")
        others = []
        for claim in claims:
            if claim.token == self.token:
                continue
            if (mine.written - claim.written).total_seconds() > STALE_SECONDS or self._died_here(claim):
                with contextlib.suppress(StorageError, FileNotFoundError):
                    self.storage.fs.rm_file(self.storage.key(claim.uri))
            elif claim.number is None or claim.place < mine.place:
                others.append(claim)
        return min(others, key=lambda claim: claim.place, default=None)

    def _claims(self) -> list[_Claim]:
        claims = []
        for uri, written in self.storage.written(self.prefix).items():
            number, _, token = uri.rsplit("/", 1)[-1].partition("-")
            claims.append(_Claim(uri, int(number) if number.isdigit() else None, token, written))
        return claims

    @property
    def _name(self) -> str:
        return f"{self.number:08d}"

    def _uri(self, name: str) -> str:
        return f"{self.prefix}/{name}-{self.token}"

    def _write(self, name: str) -> None:
        self.storage.write_json(self._uri(name), _this_process())

    def _remove(self, name: str) -> None:
        self.storage.remove_dir(self._uri(name))

    def _beat(self, stop: threading.Event) -> None:
        while not stop.wait(BEAT_SECONDS):
            with contextlib.suppress(StorageError, OSError):  # a missed beat does no harm; check() tells a lost lease
                if any(claim.token == self.token for claim in self._claims()):
                    self._write(self._name)

    def _owner(self, claim: _Claim) -> dict[str, Any]:
        try:
            owner = self.storage.read_json(claim.uri)
        except StorageError:  # it is just being given back
            owner = None
        return owner if isinstance(owner, dict) else {}

    def _who(self, claim: _Claim) -> str:
        owner = self._owner(claim)
        return f"process {owner.get('pid', '?')} on {owner.get('host', '?')} (since {owner.get('since', '?')})"

    def _died_here(self, claim: _Claim) -> bool:
        """Whether it was of a process of this very machine that is no more, so that nobody waits for nothing."""
        owner, me = self._owner(claim), _this_process()
        if not owner or any(owner.get(key) != me[key] for key in ("host", "boot", "pids")):
            return False
        return not _alive(owner.get("pid"), owner.get("since"))


@contextlib.contextmanager
def lease(storage: Storage, prefix: str, what: str) -> Iterator[Lease]:
    """Hold the lease of ``prefix`` within the block.

    Args:
        storage: where.
        prefix: a URI below which nothing else lies; the claims do.
        what: is being done, for messages.

    Raises:
        LeaseHeld: another process holds it; one line that says who. Of several that ask at once exactly one gets it.
    """
    held = Lease(storage, prefix.rstrip("/"), what)
    stop = threading.Event()
    beat = threading.Thread(target=held._beat, args=(stop,), daemon=True, name="stetholm-lease")
    try:
        held._take()
        beat.start()
        yield held
    finally:
        stop.set()
        if beat.ident is not None:
            beat.join(BEAT_SECONDS)
        _quietly(lambda: held._remove(_CHOOSING))
        _quietly(lambda: held._remove(held._name))


def _quietly(give_back: Callable[[], None]) -> None:
    """What cannot be given back goes stale; the error that matters is the block's own."""
    with contextlib.suppress(StorageError, OSError):
        give_back()


def _this_process() -> dict[str, Any]:
    process = psutil.Process()
    return {
        "host": platform.node(),
        "boot": int(psutil.boot_time()),
        "pids": _pid_namespace(),
        "pid": process.pid,
        "since": datetime.fromtimestamp(process.create_time()).astimezone().isoformat(timespec="seconds"),
    }


def _pid_namespace() -> str:
    """Containers on one machine count their processes each for itself."""
    link = Path("/proc/self/ns/pid")
    return os.readlink(link) if link.exists() else ""


def _alive(pid: Any, since: Any) -> bool:
    try:
        started = datetime.fromtimestamp(psutil.Process(pid).create_time()).astimezone()
        return abs((started - datetime.fromisoformat(since)).total_seconds()) < 2
    except (psutil.NoSuchProcess, TypeError, ValueError):
        return False
