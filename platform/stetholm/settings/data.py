"""Where things lie, and what a corpus is made of."""

from __future__ import annotations

from pydantic import Field, SecretStr

from stetholm.settings.base import EMBEDDED, Section


class StorageSettings(Section):
    """Where corpora and checkpoints live: any S3 endpoint, or the embedded server."""

    uri: str = Field(EMBEDDED, pattern=r"^(embedded|s3://[a-z0-9][a-z0-9.-]+(/.*)?)$")
    endpoint_url: str | None = None
    access_key: str | None = None
    secret_key: SecretStr | None = None
    region: str = "us-east-1"


class RunSettings(Section):
    """Name and seed of a run. The same name again continues it."""

    name: str = Field("default", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    seed: int = Field(0, ge=0, lt=2**32)


class SyntheticSettings(Section):
    """Size of the embedded corpus (corpus.source = synthetic)."""

    patients: int = Field(320, ge=8)
    seconds: float = Field(7.0, gt=1.0, le=60.0)


class CorpusSettings(Section):
    """What ingest reads and where its shards lie."""

    uri: str | None = Field(None, pattern=r"^s3://.+")
    """Shards. Default: <storage.uri>/runs/<run.name>/corpus."""
    source: str = "synthetic"
    jsonl: str | None = None
    audio: str | None = None
    max_reject_fraction: float = Field(0.01, ge=0.0, le=1.0)
    shard_bytes: int = Field(128 * 2**20, ge=2**16)
    row_group_rows: int = Field(64, ge=1)
    reader_bytes: int = Field(768 * 2**20, ge=2**20)
    """Memory of the object store that each rank's stream may take; two tasks of 64 MiB at least."""
    synthetic: SyntheticSettings = SyntheticSettings()


class AudioSettings(Section):
    """Bounds on every sound that is decoded, from a corpus or over HTTP."""

    max_bytes: int = Field(64 * 2**20, gt=0)
    max_seconds: float = Field(600.0, gt=0)
    min_rate: int = Field(1_000, gt=0)
    max_rate: int = Field(192_000, gt=0)
    max_channels: int = Field(2, ge=1)
