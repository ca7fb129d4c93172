"""The pipeline: which jobs it runs."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field

from stetholm.settings.base import Section

PipelineJob = Literal[
    "import_weights",
    "synthesize",
    "ingest",
    "inspect",
    "align",
    "sft",
    "prefer",
    "dpo",
    "evaluate",
    "probe",
    "explain",
    "export",
]
"""In the order in which the pipeline runs them."""

PIPELINE: tuple[PipelineJob, ...] = get_args(PipelineJob)


class PipelineSettings(Section):
    """What ``jobs/pipeline.py`` runs; the jobs take their settings from their own sections."""

    jobs: list[PipelineJob] | None = Field(None, min_length=1)
    """These, in the pipeline's own order. Default: all, but ``import_weights`` where ``import_weights.weights`` names
    some, ``synthesize`` where ``synthesize.*`` sets something and ``corpus.jsonl`` does not bring the pairs, and
    ``export`` where ``export.*`` sets something."""
