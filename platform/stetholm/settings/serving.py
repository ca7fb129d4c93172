"""The endpoint."""

from __future__ import annotations

from pydantic import Field

from stetholm.settings.base import Section


class ServeSettings(Section):
    """The endpoint."""

    model: str | None = None
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65535)
    min_replicas: int = Field(1, ge=0)
    max_replicas: int = Field(2, ge=1)
    target_ongoing_requests: int = Field(4, ge=1)
    max_queued_requests: int = Field(64, ge=1)
    request_timeout_s: float = Field(120.0, gt=0)
    max_body_bytes: int = Field(32 * 2**20, gt=0)
    max_new_tokens: int = Field(240, ge=1)
    cpus_per_replica: float = Field(1.0, gt=0)
    gpus_per_replica: float = Field(0.0, ge=0)
    api_keys_file: str | None = None
