"""The endpoint."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stetholm.settings.base import Section
from stetholm.settings.engine import EngineKind


class ServeSettings(Section):
    """The endpoint."""

    model: str | None = None
    gate: Literal["if-there", "required", "ignore"] = "if-there"
    """The checkpoint's gate.json: if there is one it must be of these very weights and passed; there must be one; or
    nothing is asked (``python -m serve.deploy --force``)."""
    engine: EngineKind = "auto"
    """What generates: transformers, vllm, or auto (docs/engines.md). Its limits: ``engine.*``."""
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65535)
    min_replicas: int = Field(1, ge=0)
    max_replicas: int = Field(2, ge=1)
    target_ongoing_requests: int = Field(4, ge=1)
    max_queued_requests: int = Field(64, ge=1)
    request_timeout_s: float = Field(120.0, gt=0)
    max_body_bytes: int = Field(32 * 2**20, gt=0)
    max_audio_seconds: float = Field(120.0, gt=0)
    """Of one uploaded recording, beside the limits of ``audio``: the model hears its first 7 s."""
    max_new_tokens: int = Field(240, ge=1)
    cpus_per_replica: float = Field(1.0, gt=0)
    gpus_per_replica: float = Field(0.0, ge=0)
    api_keys_file: str | None = None
    key_limits: str | None = None
    """What each key may ask, unless its line says otherwise, e.g. ``60/minute; 5000/day``. Default: no limit."""
    cors_origins: tuple[str, ...] = ()
    """Web pages of other origins that may call the endpoint from a browser. Default: none."""
    evidence: bool = True
    """Whether ``/v1/analyze`` tells what its answers rest on; that takes another pass a second of sound."""
