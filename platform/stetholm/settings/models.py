"""The model's parts, and its way in and out as files."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stetholm.settings.base import Section


class LoraSettings(Section):
    """LoRA on the attention projections of the language model (published: r 8, alpha 32, 0.1)."""

    r: int = Field(8, ge=1)
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.1, ge=0.0, lt=1.0)
    targets: tuple[str, ...] | None = Field(None, min_length=1)
    """Names of the linear layers to adapt. Default: q_proj, k_proj, v_proj, o_proj, qkv_proj, whichever there are."""


class ModelSettings(Section):
    """Which parts make the model, and which checkpoint it starts from."""

    language_model: str = "smollm2-135m"
    audio_encoder: str = Field("cola", pattern=r"^[a-z0-9_-]+$")
    """cola, ast, clap, or another that a file in stetholm/model/encoders registers."""
    audio_encoder_weights: str | None = None
    """Pretrained weights that a new model's encoder begins with: hub id, folder or s3:// URI. Default: random."""
    init_from: str | None = None
    prompt_style: Literal["plain", "chat"] = "plain"
    projector_dropout: float = Field(0.1, ge=0.0, lt=1.0)
    lora: LoraSettings = LoraSettings()


class ImportSettings(Section):
    """Published weights that become a checkpoint of ours."""

    weights: str | None = None
    """File or s3:// URI of an OPERA-CE checkpoint or of published StethoLM weights."""
    layout: Literal["auto", "opera", "stetholm"] = "auto"
    allow_partial: bool = False
    """Take what fits, though something is unknown, missing or of another shape."""


class ExportSettings(Section):
    """A checkpoint as one folder that others can load."""

    kind: Literal["merged", "adapter"] = "merged"
    """merged: the whole model; adapter: encoder, projector and LoRA, to be loaded over the language model."""
    dtype: Literal["keep", "float32", "bfloat16"] = "keep"
    to: str | None = None
    """A folder or s3:// URI that is not there yet. Default: <storage.uri>/runs/<run.name>/export/<kind>."""
