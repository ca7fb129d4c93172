"""Jobs that ask a model, and judge what it answers."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from stetholm.settings.base import Section


class PreferSettings(Section):
    """Preference pairs: candidates from the SFT model, scored against the reference answer."""

    pairs: int = Field(16, ge=1)
    val_pairs: int = Field(0, ge=0)
    """Besides, of the corpus's val split: what dpo.evaluate_every measures."""
    candidates: int = Field(5, ge=2)
    temperatures: list[float] = Field([0.7, 0.85, 1.0, 1.15, 1.3])
    max_new_tokens: int = Field(64, ge=1)
    scorer: str = "minilm"


class EvaluateSettings(Section):
    """Generation over a split and the table made of it."""

    split: str = "test"
    max_examples: int | None = Field(None, ge=1)
    batch_size: int = Field(32, ge=1)
    max_new_tokens: int = Field(64, ge=1)
    controls: bool = True
    scorer: str = "minilm"
    judge: str | None = None
    gate: dict[str, float] | None = None


class ExplainSettings(Section):
    """What the answers of a checkpoint rest on: attention, and occlusion over time."""

    audio: list[str] = Field([])
    """Recordings of one question: paths or s3:// URIs. Default: examples of the corpus."""
    question: str | None = None
    split: str = "test"
    examples: int = Field(4, ge=1)
    answer: Literal["own", "reference"] = "own"
    """Which answer is explained: the model's own or, of the corpus's examples, the reference."""
    window: float = Field(1.0, ge=0.064, le=7.0)
    """Seconds that are occluded at a time."""
    hop: float = Field(0.5, gt=0.0, le=7.0)
    """Seconds from one window to the next; not more than the window."""
    max_new_tokens: int = Field(48, ge=1)
    batch_size: int = Field(16, ge=1)
    precision: Literal["bf16", "fp32"] = "fp32"
    """Rounding in bf16 gives about a hundredth of evidence where there is none."""

    @field_validator("audio", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _without_gaps(self) -> ExplainSettings:
        if self.hop > self.window:
            raise ValueError(f"hop {self.hop:g} is longer than window {self.window:g}: seconds would be left out")
        return self
