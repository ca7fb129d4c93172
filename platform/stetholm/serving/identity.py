"""Which model answers: its id, its checkpoint and where that came from."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from stetholm.errors import UserError
from stetholm.storage import Storage

ALIAS = "stetholm"
"""The name under which clients reach whatever checkpoint is served."""


class ModelCard(BaseModel):
    """What ``GET /v1/models`` tells about a model."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    id: str
    checkpoint: str
    created: int = 0
    """Unix seconds of the checkpoint, 0 where unknown."""
    lineage: dict[str, Any] = {}
    """The checkpoint's lineage.json: parent checkpoint, corpus manifest sha256, code version."""


def model_id(checkpoint_uri: str) -> str:
    """A short, stable name: ``s3://b/runs/demo/sft/checkpoint`` -> ``stetholm/demo/sft``."""
    parts = checkpoint_uri.rstrip("/").removeprefix("s3://").split("/")
    if "runs" in parts:
        parts = parts[parts.index("runs") + 1 :]
    if len(parts) > 1 and parts[-1] == "checkpoint":
        parts.pop()
    return "/".join([ALIAS, *parts])


def read_card(checkpoint_uri: str, storage: Storage) -> ModelCard:
    """Describe a checkpoint.

    Raises:
        UserError: there is no checkpoint at that URI.
    """
    uri = checkpoint_uri.rstrip("/")
    if not storage.exists(f"{uri}/config.json"):
        raise UserError(f"no checkpoint at {uri}: serve.model must name a folder with config.json, e.g. a job's output")
    lineage_uri = f"{uri}/lineage.json"
    lineage = storage.read_json(lineage_uri) if storage.exists(lineage_uri) else {}
    created = storage.fs.modified(storage.key(f"{uri}/config.json")).timestamp()
    return ModelCard(id=model_id(uri), checkpoint=uri, created=int(created), lineage=lineage)
