"""``/v1/analyze``: StethoBench's tasks with a default question each, and a structured result."""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict

from stetholm.serving.quality import AudioQuality
from stetholm.serving.types import NOTICE, Usage
from stetholm.settings import Task

Sound = Literal["heart", "lung"]
"""What was listened to, where the caller knows: it goes into the default question, and so into the domain sentence."""

TASKS: tuple[str, ...] = get_args(Task)

QUESTIONS: dict[str, str] = {
    "Identification": "What is the primary sound event in this audio?",
    "Classification": "Is this {sound} normal or abnormal?",
    "Report": "Generate a brief summary of the {sound} findings.",
    "Reasoning": "Provide a diagnosis of this {sound} and explain your reasoning.",
    "Differential Diagnosis": "Discuss potential causes for the {sound} findings.",
    "Comparison": "Compare Audio 2 to Audio 1. What is the major diagnostic difference?",
    "Location": "What is the significance of the recording location of this {sound}?",
}
"""After the example instructions of StethoBench's figure."""


def question_for(task: str, sound: Sound | None = None) -> str:
    """The question asked when the caller gives none."""
    return QUESTIONS[task].format(sound=f"{sound} sound" if sound else "sound")


def recordings_wanted(task: str) -> int:
    """How many recordings a task needs at least."""
    return 2 if task == "Comparison" else 1


class Second(BaseModel):
    """How much one second of a recording speaks for the answer (above 0) or against it (below)."""

    start: float
    end: float
    value: float


class Evidence(BaseModel):
    """What the answer rests on in one recording, over the seconds that the model hears.

    The value of a second is what the answer's length-averaged log-probability loses when it is silenced.
    """

    method: Literal["occlusion"] = "occlusion"
    unit: Literal["nats per token"] = "nats per token"
    seconds: list[Second]


class Analysis(BaseModel):
    """Answer of ``POST /v1/analyze``."""

    model_config = ConfigDict(protected_namespaces=())

    id: str
    object: Literal["stetholm.analysis"] = "stetholm.analysis"
    created: int
    task: str
    question: str
    answer: str
    finish_reason: Literal["stop", "length"]
    usage: Usage
    audio: list[AudioQuality]
    evidence: list[Evidence] | None
    """One a recording; null where it was not asked for, the endpoint does not give it, or it failed."""
    evidence_error: str | None = None
    """Why evidence that was asked for is not there: an error's code, as ``timeout`` or ``overloaded``."""
    model: str
    checkpoint: str
    lineage: dict[str, Any]
    notice: str = NOTICE


class AnalysisDelta(BaseModel):
    """One server-sent event of a streamed analysis: what has been added to the answer. The last event is the whole."""

    id: str
    object: Literal["stetholm.analysis.delta"] = "stetholm.analysis.delta"
    text: str
    notice: str = NOTICE
