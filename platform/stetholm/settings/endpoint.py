"""An OpenAI-compatible endpoint that a job asks: a writer of pairs, a judge of answers."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from stetholm.settings.base import Section


class EndpointSettings(Section):
    """How :mod:`stetholm.completions` asks; the key itself is read from the environment alone."""

    base_url: str | None = Field(None, pattern=r"^https?://[^\s?#@]+$")
    """Where the API begins, e.g. https://api.openai.com/v1; without a key in it."""
    model: str | None = None
    """As the endpoint names it."""
    key_variable: str = Field("OPENAI_API_KEY", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Name of the environment variable with the key; where it is not set, none is sent."""
    concurrency: int = Field(8, ge=1)
    """Requests under way at once."""
    requests_per_minute: float | None = Field(None, gt=0)
    """What the provider allows; None: no limit of ours."""
    timeout_s: float = Field(60.0, gt=0)
    """For one whole request."""
    attempts: int = Field(5, ge=1)
    """How often one prompt is tried while the endpoint is slow, busy or broken."""
    extra: dict[str, Any] = Field({})
    """More fields of each request, e.g. {reasoning_effort: low}; null takes a field of ours out."""
