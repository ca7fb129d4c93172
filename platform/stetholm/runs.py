"""Where a run's things lie in storage, and what each of its jobs has done.

``<storage.uri>/runs/<run.name>/<job>/`` holds a job's output and, written last, its ``result.json``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

from stetholm.errors import UserError
from stetholm.settings import Settings
from stetholm.storage import Storage
from stetholm.storage.lease import Lease, LeaseHeld, lease

CHECKPOINT_JOBS = ("import_weights", "align", "sft", "dpo")
"""Jobs whose output is a checkpoint, in the order in which one starts from another."""

LENT_CLAIM = "STETHOLM_RUN_CLAIM"
"""Environment variable by which a job lets its child processes work on its run: the claim of its lease."""


@contextlib.contextmanager
def hold_run(
    settings: Settings, storage: Storage, job: str, on_lost: Callable[[LeaseHeld], None] = lambda lost: None
) -> Iterator[Lease]:
    """Be the only job of this run within the block; under a pipeline, in that one's place.

    Args:
        settings: of the run.
        storage: where it lies.
        job: for the message of who comes meanwhile.
        on_lost: see :func:`stetholm.storage.lease.lease`.

    Raises:
        LeaseHeld: another job of the same ``run.name`` is at work. Where that one may have died on another machine,
            this waits until that is certain.
    """
    where, what = run_uri(settings, storage, "lease"), f"run {settings.run.name!r}"
    with lease(storage, where, what, job=job, claim=os.environ.get(LENT_CLAIM), on_lost=on_lost) as held:
        yield held


def run_uri(settings: Settings, storage: Storage, *parts: str) -> str:
    """URI of a thing of this run, e.g. ``run_uri(settings, storage, "sft")``."""
    return storage.join("runs", settings.run.name, *parts)


def corpus_uri(settings: Settings, storage: Storage) -> str:
    """``corpus.uri``, or this run's own corpus."""
    return (settings.corpus.uri or run_uri(settings, storage, "corpus")).rstrip("/")


def read_result(settings: Settings, storage: Storage, job: str) -> dict[str, Any] | None:
    """What ``job`` of this run printed when it was done; None while it is not."""
    uri = run_uri(settings, storage, job, "result.json")
    return storage.read_json(uri) if storage.exists(uri) else None


def finished(settings: Settings, storage: Storage, job: str, inputs: dict[str, Any]) -> dict[str, Any] | None:
    """The result of ``job`` if this run has already done it from the same ``inputs``.

    Raises:
        UserError: it was done from other inputs, so that its output would be passed off as something else.
    """
    result = read_result(settings, storage, job)
    if result is None:
        return None
    done = result.get("inputs", {})
    changed = sorted(key for key in done.keys() | inputs.keys() if done.get(key) != inputs.get(key))
    if changed:
        raise UserError(
            f"run {settings.run.name!r} has already done {job!r} with other inputs ({', '.join(changed)}): "
            "choose another run.name"
        )
    return {key: value for key, value in result.items() if key != "inputs"}


def digest(inputs: dict[str, Any]) -> str:
    """Twelve hex digits that depend on the inputs of a job alone: a name for what only they may share."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:12]


def record(settings: Settings, storage: Storage, job: str, result: dict[str, Any], inputs: dict[str, Any]) -> None:
    """Mark ``job`` as done. Call it last: the result's presence says that the output is whole."""
    storage.write_json(run_uri(settings, storage, job, "result.json"), {**result, "inputs": inputs})


def start_checkpoint(settings: Settings, storage: Storage, before: str | None = None) -> str | None:
    """URI a job starts from: ``model.init_from``, else the run's latest checkpoint made before job ``before``.

    Returns None when there is neither, as for the first stage.

    Raises:
        UserError: there is no checkpoint at ``model.init_from``.
    """
    given = settings.model.init_from
    if given:
        if given.startswith("s3://") and not storage.exists(f"{given.rstrip('/')}/config.json"):
            raise UserError(f"model.init_from: no checkpoint at {given} (there is no config.json)")
        return given
    earlier = CHECKPOINT_JOBS[: CHECKPOINT_JOBS.index(before)] if before in CHECKPOINT_JOBS else CHECKPOINT_JOBS
    for job in reversed(earlier):
        result = read_result(settings, storage, job)
        if result is not None:
            return str(result["output"])
    return None


def require_checkpoint(settings: Settings, storage: Storage, before: str | None = None) -> str:
    """Like :func:`start_checkpoint`, for jobs that cannot do without.

    Raises:
        UserError: neither a setting nor a finished stage names one.
    """
    uri = start_checkpoint(settings, storage, before)
    if uri is None:
        raise UserError(
            f"run {settings.run.name!r} has no finished checkpoint: run jobs/sft.py first or set model.init_from=<uri>"
        )
    return uri
