"""What the features of audio encoders know, and what a checkpoint's reports say, of each recording's class."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from stetholm.settings.base import Section


class ProbeSettings(Section):
    """Zero-shot classification by report, and linear probes on features of encoders."""

    tasks: list[str] | None = Field(None, min_length=1)
    """Names of tasks, of the class file or ``<kind> diagnosis``. Default: all of which the corpus has two classes."""
    classes: str | None = None
    """YAML file (path or s3:// URI) of tasks, classes and their descriptions, instead of the one that is shipped."""
    encoders: list[str] = Field(["checkpoint", "cola", "log-mel", "log-mel-padded"])
    """Whose features are probed: ``checkpoint`` (the run's own), a checkpoint's URI or folder, ``cola``, ``ast`` or
    ``clap`` (random weights), the same with weights as ``cola:<file or source>``, ``log-mel``, ``log-mel-padded``."""
    zero_shot: bool = True
    """Let the checkpoint write a report of each recording of the test split."""
    fit: list[Literal["train", "val"]] = Field(["train", "val"], min_length=1)
    """Splits on which probes are fitted, for the figures of the test split."""
    test: str = "test"
    cross_validate: bool = True
    """Besides: patient-wise cross-validation over all splits."""
    folds: int = Field(5, ge=2)
    inner_folds: int = Field(3, ge=2)
    """Patient-wise folds within each fit, by which C is chosen."""
    c: list[float] = Field([0.001, 0.01, 0.1, 1.0, 10.0], min_length=1)
    """Inverse strengths of the L2 penalty to choose from; where they do equally well, the earlier one is taken."""
    trees: int = Field(500, ge=0)
    """Of the random forest beside the probes on log-mel statistics; 0: none."""
    max_recordings: int | None = Field(None, ge=1)
    """Labelled recordings of each split at most, drawn by ``run.seed``. Default: all."""
    text_model: str = "minilm"
    """Embeds reports and descriptions: minilm (shipped), or any id or folder of sentence-transformers."""
    max_new_tokens: int = Field(64, ge=1)
    batch_size: int = Field(32, ge=1)
    """Recordings that an encoder or an engine takes together."""
    draws: int = Field(2000, ge=100)
    """Of the bootstrap over patients."""

    @model_validator(mode="after")
    def _judged_apart(self) -> ProbeSettings:
        if self.test in self.fit:
            raise ValueError(f"test {self.test!r} is one of fit {self.fit}: probes would be judged on what they know")
        return self
