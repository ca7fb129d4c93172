"""Jobs that ask a model, and judge what it answers."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from stetholm.settings.base import Section, Task
from stetholm.settings.endpoint import EndpointSettings
from stetholm.settings.engine import EngineKind


class PreferSettings(Section):
    """Preference pairs: candidates from the SFT model, scored against the reference answer."""

    pairs: int = Field(16, ge=1)
    val_pairs: int = Field(0, ge=0)
    """Besides, of the corpus's val split: what dpo.evaluate_every measures."""
    candidates: int = Field(5, ge=2)
    temperatures: list[float] = Field([0.7, 0.85, 1.0, 1.15, 1.3])
    max_new_tokens: int = Field(64, ge=1)
    scorer: str = "minilm"
    engine: EngineKind = "auto"
    """What generates: transformers, vllm, or auto (docs/engines.md). Its limits: ``engine.*``."""
    min_replicas: int | None = Field(None, ge=1)
    """Engines of the actor pool at least. Default: max_replicas, so that the pool does not change."""
    max_replicas: int | None = Field(None, ge=1)
    """Engines of the actor pool at most. Default: as many as fit the cluster."""


class JudgeSettings(EndpointSettings):
    """Who says whether an answer is clinically right; ``evaluate.judge=<model>`` is short for ``judge.model``.

    With ``base_url`` an OpenAI-compatible endpoint, without it a language model that runs here.
    """

    plain_key: ClassVar[str | None] = "model"

    model: str | None = None
    """As the endpoint names it, or a hub id, a folder, an s3:// URI, ``smollm2-135m``. None: no judge."""
    prompt: str | None = None
    """A file with a prompt of one's own; default: evaluation/judge_prompt.txt of the package."""
    retries: int = Field(2, ge=0, le=10)
    """How often an answer that is not in the format is asked for again; then it counts as unjudged."""
    max_new_tokens: int = Field(200, ge=16)
    temperature: float = Field(0.0, ge=0.0, le=2.0)
    controls: bool = True
    """Judge the control rows' answers too."""
    batch_size: int = Field(8, ge=1)
    """Questions that one local model answers together."""


class EvaluateSettings(Section):
    """Generation over a split and the table made of it."""

    split: str = "test"
    tasks: list[Task] | None = Field(None, min_length=1)
    """Only these. Default: all that the split has."""
    max_examples: int | None = Field(None, ge=1)
    batch_size: int = Field(32, ge=1)
    max_new_tokens: int = Field(64, ge=1)
    num_beams: int = Field(1, ge=1, le=32)
    """Of a beam search (published: 5); 1: greedy. Beams are the engine transformers'."""
    length_penalty: float = 1.0
    """Of a beam search (published: 0.5): above 0 the longer answers gain."""
    controls: bool = True
    """Ask with the audio withheld and with another recording's, too."""
    untouched: bool = True
    """With the controls: ask the checkpoint's language model as it was before training, without audio."""
    scorer: str = "minilm"
    engine: EngineKind = "auto"
    """What generates: transformers, vllm, or auto (docs/engines.md). Its limits: ``engine.*``."""
    min_replicas: int | None = Field(None, ge=1)
    """Engines of the actor pool at least. Default: max_replicas, so that the pool does not change."""
    max_replicas: int | None = Field(None, ge=1)
    """Engines of the actor pool at most. Default: as many as fit the cluster."""
    judge: JudgeSettings = JudgeSettings()
    draws: int = Field(2000, ge=100)
    """Of the bootstrap over patients."""
    compare_to: str | None = None
    """An earlier evaluation's URI, or a checkpoint's that has been evaluated: paired differences from it."""
    gate: dict[str, float | str] | None = None
    """Least label accuracies by task, ``overall`` or ``binary``, and ``margin``, ``max_drop``, ``serving``,
    ``metric``: see :mod:`stetholm.evaluation.gate`."""
    allow_seen_patients: bool = False
    """Evaluate although the checkpoint was trained on patients of the split."""

    @model_validator(mode="after")
    def _beams(self) -> EvaluateSettings:
        if self.num_beams > 1 and self.engine == "vllm":
            raise ValueError(f"num_beams {self.num_beams} needs engine transformers: vllm has no beam search")
        if self.length_penalty != 1.0 and self.num_beams == 1:
            raise ValueError(f"length_penalty {self.length_penalty:g} is a beam search's: set num_beams too")
        return self


class ExplainSettings(Section):
    """What the answers of a checkpoint rest on: attention, and occlusion over time."""

    audio: list[str] = Field([])
    """Recordings of one question: paths or s3:// URIs. Default: examples of the corpus."""
    question: str | None = None
    split: str = "test"
    examples: int = Field(4, ge=1)
    """How many get pictures, of as many tasks as there is room for."""
    sample_ids: list[str] = Field([])
    """Ids of the examples that get pictures, or what these begin with, instead of a choice of so many."""
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
    grounding: Literal["both", "own", "reference", "none"] = "both"
    """Whose answer's log-probability is measured with the audio withheld, shuffled and degraded."""
    grounding_examples: int | None = Field(64, ge=1)
    """Examples of the split that it is measured on; null: all."""
    compare_to: str | None = None
    """An earlier explain's URI, or a checkpoint's whose grounding has been measured: paired differences from it."""
    draws: int = Field(2000, ge=100)
    """Of the bootstrap over patients."""

    @field_validator("audio", "sample_ids", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _without_gaps(self) -> ExplainSettings:
        if self.hop > self.window:
            raise ValueError(f"hop {self.hop:g} is longer than window {self.window:g}: seconds would be left out")
        return self
