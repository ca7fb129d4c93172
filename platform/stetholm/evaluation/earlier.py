"""Where an earlier job's output lies that a setting names by its URI or by its checkpoint's."""

from __future__ import annotations

from stetholm.errors import UserError
from stetholm.storage import Storage

WHAT = {"evaluate": "evaluation", "explain": "measurement of grounding"}


def find_earlier(uri: str, storage: Storage, setting: str, job: str, file: str) -> str:
    """The output of ``job`` that ``uri`` names: itself, or the latest one of the checkpoint at ``uri``.

    Args:
        uri: of the output or of the checkpoint.
        storage: where both lie.
        setting: that names it, for the message.
        job: ``evaluate`` or ``explain``.
        file: what its output holds when it is done.

    Raises:
        UserError: there is neither.
    """
    uri, what = uri.rstrip("/"), WHAT[job]
    if not uri.startswith("s3://"):
        raise UserError(f"{setting}: {uri} is no s3:// URI of a checkpoint or of its {what}")
    if storage.exists(f"{uri}/{file}"):
        return uri
    found = _of_checkpoint(uri, storage, job, file)
    if found is None:
        raise UserError(
            f"{setting}: there is no {what} at {uri}, and none of a checkpoint there: run jobs/{job}.py for it "
            "first (with model.init_from), under a run.name of its own"
        )
    return found


def _of_checkpoint(checkpoint: str, storage: Storage, job: str, file: str) -> str | None:
    """The latest output of ``job`` from a checkpoint, among all runs."""
    runs, found = storage.join("runs"), []
    for run in storage.fs.ls(storage.key(runs), detail=False) if storage.exists(runs) else []:
        result = f"s3://{run}/{job}/result.json"
        known = storage.read_json(result) if storage.exists(result) else {}
        if str(known.get("inputs", {}).get("checkpoint", "")).rstrip("/") == checkpoint:
            output = str(known["output"])
            if storage.exists(f"{output}/{file}"):
                found.append((storage.fs.modified(storage.key(result)), output))
    return max(found)[1] if found else None
