"""Leases: at most one process at a time works on a prefix in object storage, whatever the server.

S3 servers differ in conditional writes, so this is Lamport's bakery (CACM 17(8), 1974) on objects, each written by one
process alone: take a number higher than all, then the lowest number holds the lease. It needs only what every S3 server
gives: a listing shows whatever was written before it.

A holder writes its claim anew every few seconds. Whoever comes and finds a claim of a live process is refused at once;
where it cannot tell (another machine, another container) it watches the claim: written anew, and it is refused; not
written for long enough, and its holder counts as dead.
"""

from __future__ import annotations

import contextlib
import os
import platform
import secrets
import sys
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
_WATCH_SECONDS = 2.0
"""How often a claim is looked at whose holder may be dead."""
_TELL_SECONDS = 60.0


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
    job: str | None = None
    """Of the holder, for messages."""
    token: str = field(default_factory=lambda: secrets.token_hex(8))
    number: int = 0
    lent: bool = False
    """Whether a child process writes the claim for now."""

    @property
    def claim(self) -> str:
        """URI of the claim, by which a child process joins (see :func:`lease`)."""
        return self._uri(self._name)

    @contextlib.contextmanager
    def lend(self) -> Iterator[str]:
        """Within the block a child process may hold the lease in this one's place; its claim's URI.

        So the claim always tells of a process that is at work: a child that outlives this one keeps it.
        """
        self.lent = True
        try:
            yield self.claim
        finally:
            _quietly(self._renew)
            self.lent = False

    def check(self) -> None:
        """Raise LeaseHeld if the lease was lost: the process stood still for so long that another took it."""
        if not self._is_there():
            raise self._lost()

    def _renew(self) -> bool:
        """Write the claim anew; whether it was still there."""
        there = self._is_there()
        if there:
            self._write(self._name)
        return there

    def _is_there(self) -> bool:
        return any(claim.token == self.token for claim in self._claims())

    def _lost(self) -> LeaseHeld:
        return LeaseHeld(
            f"{self.what}: this process lost its lease: it stood still for over {STALE_SECONDS:.0f} s, "
            "or its claim was removed"
        )

    def _take(self) -> None:
        self._write(_CHOOSING)
        self.number = 1 + max((claim.number or 0 for claim in self._claims()), default=0)
        self._write(self._name)
        self._remove(_CHOOSING)
        watch = _Watch(self)
        while other := self._first_other():
            watch.look(other)
            self._write(self._name)  # else the age of the other one's claim, measured by ours, would stand still

    def _join(self, claim: str) -> None:
        """Go on with a parent's claim.

        Raises:
            LeaseHeld: it is no more.
        """
        number, _, self.token = claim.rsplit("/", 1)[-1].partition("-")
        self.number = int(number)
        self.check()
        self._write(self._name)

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
        self.storage.write_json(self._uri(name), _this_process() | ({"job": self.job} if self.job else {}))

    def _remove(self, name: str) -> None:
        self.storage.remove_dir(self._uri(name))

    def _beat(self, stop: threading.Event, on_lost: Callable[[LeaseHeld], None]) -> None:
        while not stop.wait(BEAT_SECONDS):
            with contextlib.suppress(StorageError, OSError):  # a missed beat does no harm
                if self.lent or self._renew():
                    continue
                if not stop.wait(_POLL_SECONDS) and not self._is_there():  # not said for one odd listing
                    on_lost(self._lost())
                    return

    def _owner(self, claim: _Claim) -> dict[str, Any]:
        try:
            owner = self.storage.read_json(claim.uri)
        except StorageError:  # it is just being given back
            owner = None
        return owner if isinstance(owner, dict) else {}

    def _died_here(self, claim: _Claim) -> bool:
        """Whether it was of a process of this very machine that is no more, so that nobody waits for nothing."""
        owner = self._owner(claim)
        return _is_here(owner) and not _alive(owner)


class _Watch:
    """Waits while another claim comes first: until that one is given back or counts as dead."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self._first_seen: dict[str, datetime] = {}
        self._began = time.monotonic()
        self._tell_at = 0.0

    def look(self, other: _Claim) -> None:
        """Sleep until the next look.

        Raises:
            LeaseHeld: the claim is of a process that lives.
        """
        owner = self._lease._owner(other)
        if other.number is None or not owner:  # it takes a number just now, or has just been given back
            time.sleep(_POLL_SECONDS)
            return
        renewed = other.written > self._first_seen.setdefault(other.uri, other.written)
        if renewed or (_is_here(owner) and _alive(owner)):
            raise LeaseHeld(f"{self._lease.what}: {_who(owner)} is at it; wait until it is done")
        self._tell(owner)
        time.sleep(_WATCH_SECONDS)

    def _tell(self, owner: dict[str, Any]) -> None:
        waited = time.monotonic() - self._began
        if waited >= self._tell_at:
            self._tell_at = waited + _TELL_SECONDS
            line = (
                f"{self._lease.what}: {_who(owner)} was at it and may have died: waiting for a sign of it, "
                f"{waited:.0f} s of {STALE_SECONDS:.0f} s at most"
            )
            print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def lease(
    storage: Storage,
    prefix: str,
    what: str,
    *,
    job: str | None = None,
    claim: str | None = None,
    on_lost: Callable[[LeaseHeld], None] = lambda lost: None,
) -> Iterator[Lease]:
    """Hold the lease of ``prefix`` within the block.

    Args:
        storage: where.
        prefix: a URI below which nothing else lies; the claims do.
        what: is to be done or had, for messages.
        job: who asks, for the messages of others.
        claim: of a parent process that lends it (``Lease.lend``): hold its lease in its place. One of another prefix
            does not count.
        on_lost: called in a thread as soon as it is seen that another process took the lease, with what to say.

    Raises:
        LeaseHeld: another process holds it; one line that says who. Of several that ask at once exactly one gets it.
    """
    held = Lease(storage, prefix.rstrip("/"), what, job)
    joined = claim if claim is not None and claim.startswith(f"{held.prefix}/") else None
    stop = threading.Event()
    beat = threading.Thread(target=held._beat, args=(stop, on_lost), daemon=True, name="stetholm-lease")
    try:
        held._take() if joined is None else held._join(joined)
        beat.start()
        yield held
    finally:
        stop.set()
        if beat.ident is not None:
            beat.join(BEAT_SECONDS)
        if joined is None:
            _quietly(lambda: held._remove(_CHOOSING))
            _quietly(lambda: held._remove(held._name))


def _quietly(give_back: Callable[[], object]) -> None:
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


def _who(owner: dict[str, Any]) -> str:
    """``process 12 on host (sft, since …)``."""
    facts = [*([owner["job"]] if "job" in owner else []), f"since {owner.get('since', '?')}"]
    return f"process {owner.get('pid', '?')} on {owner.get('host', '?')} ({', '.join(facts)})"


def _is_here(owner: dict[str, Any]) -> bool:
    """Whether it is a process of this machine, whose processes this one can see."""
    me = _this_process()
    return bool(owner) and all(owner.get(key) == me[key] for key in ("host", "boot", "pids"))


def _alive(owner: dict[str, Any]) -> bool:
    try:
        started = datetime.fromtimestamp(psutil.Process(owner.get("pid")).create_time()).astimezone()
        return abs((started - datetime.fromisoformat(owner["since"])).total_seconds()) < 2
    except (psutil.NoSuchProcess, KeyError, TypeError, ValueError):
        return False
