"""``gate.json`` beside a checkpoint: which rules it has passed, and of which very weights that was said.

Deployment asks :func:`require_signed_off`. A gate.json that belongs to other weights, or that has not passed, stops it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from stetholm.errors import UserError
from stetholm.progress import Progress
from stetholm.storage import Storage

NAME = "gate.json"
VERSION = 1
Asked = Literal["if-there", "required", "ignore"]
_CHUNK = 8 * 2**20
_SHOW_BYTES = 512 * 2**20
"""From this size on, hashing takes long enough to show how far it is."""


def weights_sha256(checkpoint: str, storage: Storage) -> str:
    """SHA-256 of a checkpoint's weights: of its one ``.safetensors`` file, or of ``sha256sum``'s lines of several.

    Raises:
        UserError: there are no weights.
    """
    if (folder := _folder(checkpoint)) is not None:
        return _hash_files(folder)
    uri = checkpoint.rstrip("/")
    stamps = tuple(sorted((name, stamp) for name, stamp in storage.stamps(uri).items() if _is_weights(uri, name)))
    if not stamps:
        raise UserError(f"there are no weights (*.safetensors) at {checkpoint}")
    return _hash(storage, uri, stamps)


def _is_weights(uri: str, name: str) -> bool:
    below = name.removeprefix(f"{uri}/")
    return below.endswith(".safetensors") and "/" not in below


@lru_cache(maxsize=8)
def _hash(storage: Storage, uri: str, stamps: tuple[tuple[str, str], ...]) -> str:
    """``stamps`` change when a file does: what has been hashed is not read again."""
    sizes = {name: storage.size(name) for name, _ in stamps}
    total, done, found = sum(sizes.values()), 0, []
    with Progress("sha256 of the weights", total >> 20, "MiB") as progress:
        for name in sizes:
            digest = hashlib.sha256()
            with storage.fs.open(storage.key(name), "rb", block_size=_CHUNK) as file:
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
                    done += len(chunk)
                    if total >= _SHOW_BYTES:
                        progress.update(done >> 20)
            found.append((digest.hexdigest(), name.removeprefix(f"{uri}/")))
    return _together(found)


def _folder(checkpoint: str) -> Path | None:
    """The checkpoint's folder, if it lies on this machine."""
    return Path(checkpoint) if not checkpoint.startswith("s3://") and Path(checkpoint).is_dir() else None


def _hash_files(folder: Path) -> str:
    found = []
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            found.append((hashlib.file_digest(file, "sha256").hexdigest(), path.name))
    if not found:
        raise UserError(f"there are no weights (*.safetensors) at {folder}")
    return _together(found)


def _together(found: list[tuple[str, str]]) -> str:
    """Of several files' digests and names; the one digest, if it is one file."""
    if len(found) == 1:
        return found[0][0]
    return hashlib.sha256("".join(f"{digest}  {name}\n" for digest, name in found).encode()).hexdigest()


def sign_off(
    verdict: Mapping[str, Any],
    report: Mapping[str, Any],
    evaluation: str,
    corpus: str,
    corpus_sha256: str,
    storage: Storage,
) -> dict[str, Any]:
    """Write ``gate.json`` beside the checkpoint and beside its evaluation.

    Args:
        verdict: of :func:`stetholm.evaluation.gate.judge_gate`.
        report: of the evaluation.
        evaluation: its URI.
        corpus: URI of the corpus that it was measured on.
        corpus_sha256: of that corpus's manifest.
        storage: where all of it lies.

    Returns:
        What was written.

    Raises:
        UserError: the checkpoint is no ``s3://`` URI, or has no weights.
    """
    checkpoint = str(report["checkpoint"]).rstrip("/")
    if not checkpoint.startswith("s3://"):
        raise UserError(f"evaluate.gate: a gate is signed off beside a checkpoint on storage, not at {checkpoint}")
    signed = {
        "version": VERSION,
        "passed": verdict["passed"],
        "checkpoint": checkpoint,
        "weights_sha256": weights_sha256(checkpoint, storage),
        "evaluation": evaluation,
        "corpus": corpus,
        "corpus_sha256": corpus_sha256,
        "split": report["split"],
        "examples": report["examples"],
        "split_rows": report["split_rows"],
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "metric": verdict["metric"],
        "checks": verdict["checks"],
    }
    uri = f"{checkpoint}/{NAME}"
    before = storage.read_json(uri) if storage.exists(uri) else {}
    if isinstance(before, dict) and {**before, "date": None} == {**signed, "date": None}:
        return before  # said already; and a checkpoint that has not changed stays in the machines' caches
    storage.write_json(f"{evaluation}/{NAME}", signed)
    storage.write_json(uri, signed)
    return signed


def require_signed_off(checkpoint: str, storage: Storage, asked: Asked) -> str:
    """Whether a checkpoint may be deployed.

    Args:
        checkpoint: its URI, or a folder of this machine.
        storage: where the URI lies.
        asked: ``if-there``: a gate.json must fit and have passed, but there may be none; ``required``: there must be
            one; ``ignore``: nothing is asked.

    Returns:
        One line that says what was found.

    Raises:
        UserError: it may not; the message says why and what to do.
    """
    uri = f"{checkpoint.rstrip('/')}/{NAME}"
    force = "deploy another checkpoint, or force it with serve.gate=ignore (--force)"
    if asked == "ignore":
        return "gate: not asked for"
    signed = _read(checkpoint, storage)
    if signed is None:
        if asked == "required":
            raise UserError(f"no {NAME} beside {checkpoint}: run jobs/evaluate.py with evaluate.gate first; or {force}")
        return f"gate: WARNING: {checkpoint} has no {NAME}: nobody has signed it off"
    failed = _failed(signed, uri)
    if signed["weights_sha256"] != weights_sha256(checkpoint, storage):
        raise UserError(f"{uri} was signed off for other weights: evaluate this checkpoint again; or {force}")
    if failed:
        raise UserError(f"{checkpoint} has not passed its gate ({', '.join(failed)}; {uri}): {force}")
    return f"gate: passed on {signed['date']} ({len(signed['checks'])} rules, split {signed['split']!r})"


def _read(checkpoint: str, storage: Storage) -> Any:
    """What gate.json says; None, if there is none.

    Raises:
        UserError: it is not JSON.
    """
    uri = f"{checkpoint.rstrip('/')}/{NAME}"
    if checkpoint.startswith("s3://"):
        return (storage.read_json(uri) or {}) if storage.exists(uri) else None
    if not Path(uri).is_file():
        return None
    try:
        return json.loads(Path(uri).read_text(encoding="utf-8")) or {}
    except (OSError, ValueError) as error:
        raise UserError(f"{uri} cannot be read: {error}") from error


def _failed(signed: Any, uri: str) -> list[str]:
    """Names of the rules that were not passed.

    Raises:
        UserError: it is no gate.json of this version.
    """
    try:
        checks = [f"{check['rule']} {check['name']}" for check in signed["checks"] if not check["passed"]]
        if signed["version"] != VERSION or not isinstance(signed["weights_sha256"], str):
            raise KeyError("version")
        return checks or ([] if signed["passed"] is True else ["passed is false"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{uri} is not a gate.json of this version ({error}): evaluate the checkpoint again") from error
