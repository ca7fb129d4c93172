"""Pair synthesis: what is asked for, who writes it, and what that may cost."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field, model_validator

from stetholm.settings.base import Task
from stetholm.settings.endpoint import EndpointSettings


class SynthesizeSettings(EndpointSettings):
    """Instruction-response pairs from labelled recordings; the endpoint's own settings are those of its base."""

    writer: Literal["template", "openai", "local"] = "template"
    """Fixed wordings; an OpenAI-compatible endpoint (``base_url``, ``model``); a Hugging Face model in Ray actors
    (``model``: a hub id, a folder, an s3:// URI; default the embedded smollm2-135m)."""
    tasks: list[Task] = Field(list(get_args(Task)), min_length=1)
    splits: list[Literal["train", "val", "test"]] = Field(["train", "val", "test"], min_length=1)
    """Only recordings of patients in these."""
    max_recordings: int | None = Field(None, ge=1)
    """A random choice of so many; a larger number later keeps the smaller choice."""
    pairs_per_recording: int = Field(4, ge=0, le=6)
    """About one recording alone; each task at most once."""
    comparisons_per_recording: float = Field(0.2, ge=0.0, le=1.0)
    """Pairs about two recordings, for each recording (0.2 as in StethoBench)."""
    prompts: str | None = None
    """A folder with prompts of one's own; what is not in it is taken from the package."""
    retries: int = Field(2, ge=0, le=10)
    """How often a pair that is not valid is asked for again, with the reason told."""
    temperature: float = Field(0.7, ge=0.0, le=2.0)
    max_new_tokens: int = Field(300, ge=16)
    tokens_per_minute: float | None = Field(None, gt=0)
    """What the provider allows, prompts and answers together; None: no limit of ours."""
    price_in: float = Field(0.0, ge=0.0)
    """For a million tokens of prompts, in any currency."""
    price_out: float = Field(0.0, ge=0.0)
    """For a million tokens of answers."""
    max_cost: float | None = Field(None, gt=0)
    """The job does not begin if it may cost more, and stops when it has cost so much.

    Tokens count as the endpoint tells them, or by the length of the texts where it tells none.
    """
    batch_size: int = Field(16, ge=1)
    """Answers that one local model makes together."""

    @model_validator(mode="after")
    def _cost_needs_prices(self) -> SynthesizeSettings:
        if self.max_cost is not None and not (self.price_in or self.price_out):
            raise ValueError("max_cost needs price_in and price_out, per million tokens")
        return self
