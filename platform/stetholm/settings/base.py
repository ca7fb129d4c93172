"""What all sections of the settings share, and the names that several use."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict

EMBEDDED = "embedded"
"""The value of ``storage.uri`` that asks for the embedded S3 server."""

Task = Literal[
    "Identification",
    "Classification",
    "Report",
    "Reasoning",
    "Differential Diagnosis",
    "Comparison",
    "Location",
]
"""StethoBench's seven tasks."""

StageName = Literal["align", "sft", "dpo"]


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, values are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    plain_key: ClassVar[str | None] = None
    """The key that a plain value in the place of the whole section stands for."""
