"""The endpoint."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from stetholm.settings.base import Section
from stetholm.settings.engine import EngineKind


class VersionSettings(Section):
    """Another model beside ``serve.model``; ``serve.versions.small=s3://…`` is short for its ``model``."""

    plain_key: ClassVar[str | None] = "model"

    model: str
    """Its checkpoint's URI."""
    min_replicas: int | None = Field(None, ge=0)
    """Default: ``serve.min_replicas``."""
    max_replicas: int | None = Field(None, ge=1)
    """Default: ``serve.max_replicas``."""

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, value: object) -> object:
        return {"model": value} if isinstance(value, str) else value


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
"""Of a version: what clients write as ``model``. ``stetholm`` is the default model's."""


class ServeSettings(Section):
    """The endpoint."""

    model: str | None = None
    """The default model: a checkpoint's URI. None: the run's last."""
    versions: dict[Name, VersionSettings] = Field({})
    """More models, by the name under which clients ask for them."""
    canary: str | None = None
    """One of ``versions`` that answers a share of the requests for ``stetholm``."""
    canary_share: float = Field(0.0, ge=0, le=1)
    canary_by: Literal["request", "key"] = "request"
    """What the share is drawn by: each request's id, or the API key, so that a client always meets the same model."""
    gate: Literal["if-there", "required", "ignore"] = "required"
    """Each checkpoint's gate.json, of these very weights and passed: it must be there; it may be missing, but not say
    otherwise; or nothing is asked (``python -m serve.deploy --force``)."""
    engine: EngineKind = "auto"
    """What generates: transformers, vllm, or auto (docs/engines.md). Its limits: ``engine.*``."""
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65535)
    haproxy: bool = False
    """HAProxy in the place of Serve's Python proxy (docs/serving.md, HAProxy). Ray takes it up when it starts."""
    min_replicas: int = Field(1, ge=0)
    """0 lets a model sleep when nobody asks; the next request waits for a replica."""
    max_replicas: int = Field(2, ge=1)
    target_ongoing_requests: int = Field(4, ge=1)
    """More than that a replica, and the autoscaler adds one."""
    upscale_delay_s: float = Field(30.0, ge=0)
    """How long there must be more, before it does (from none to one: at once)."""
    downscale_delay_s: float = Field(600.0, ge=0)
    """How long there must be less, before one leaves."""
    max_queued_requests: int = Field(64, ge=1)
    """Of each ingress replica; beyond: 503 with Retry-After."""
    request_timeout_s: float = Field(120.0, gt=0)
    """From a request's arrival to its answer's end; beyond: 503. A replica that leaves has as long for its last."""
    surge_percent: int = Field(25, ge=0, le=100)
    """By how many per cent a change may exceed the replicas for a while, rounded up: new ones come before old ones go.
    0: in their place, with a gap where there is only one, for machines without room."""
    max_body_bytes: int = Field(32 * 2**20, gt=0)
    max_audio_seconds: float = Field(120.0, gt=0)
    """Of one uploaded recording, beside the limits of ``audio``: the model hears its first 7 s."""
    max_new_tokens: int = Field(240, ge=1)
    cpus_per_replica: float = Field(1.0, gt=0)
    gpus_per_replica: float = Field(0.0, ge=0)
    label_selector: dict[str, str] | None = None
    """Labels of the nodes on which replicas may run, in Ray's form, e.g. {pool: l4}; {}: any. Default:
    {stetholm.role: server} where nodes carry that label, as those of cluster.yaml do."""
    api_keys_file: str | None = None
    """Who may ask (``python -m serve.keys``). Default: everybody who reaches the endpoint, i.e. this machine."""
    allow_anonymous: bool = False
    """Whether everybody may ask without a key even where ``host`` is reached from other machines."""
    key_limits: str | None = None
    """What each key may ask, unless its line says otherwise, e.g. ``60/minute; 5000/day``. Default: no limit."""
    cors_origins: tuple[str, ...] = ()
    """Web pages of other origins that may call the endpoint from a browser. Default: none."""
    evidence: bool = True
    """Whether ``/v1/analyze`` tells what its answers rest on; that takes another pass a second of sound."""

    @field_validator("versions")
    @classmethod
    def _versions(cls, versions: dict[str, VersionSettings]) -> dict[str, VersionSettings]:
        if "stetholm" in versions:
            raise ValueError("stetholm is the default model's name, whose checkpoint is serve.model")
        return versions

    @field_validator("canary")
    @classmethod
    def _canary(cls, canary: str | None, info: ValidationInfo) -> str | None:
        versions = info.data.get("versions", {})
        if canary is not None and canary not in versions:
            raise ValueError(f"it must be one of serve.versions: {', '.join(versions) or 'there are none'}")
        return canary
