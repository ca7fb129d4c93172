"""Generation behind one engine interface, and the request and response types of the endpoint (no HTTP here)."""

from stetholm.serving.engine import (
    Completion,
    Delta,
    Engine,
    EngineBusy,
    EngineDead,
    FinishReason,
    Request,
    RequestError,
    Sampling,
)

__all__ = [
    "Completion",
    "Delta",
    "Engine",
    "EngineBusy",
    "EngineDead",
    "FinishReason",
    "Request",
    "RequestError",
    "Sampling",
]
