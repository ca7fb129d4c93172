"""Which models one endpoint serves, and what each may take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stetholm import runs
from stetholm.evaluation.signoff import require_signed_off
from stetholm.serving.identity import ModelCard, read_card
from stetholm.settings import ServeSettings, Settings
from stetholm.storage import Storage

DEPLOYMENT = "StethoLM"
"""Of the default model; others append their name."""


@dataclass(frozen=True)
class Version:
    """A model that is served."""

    name: str | None
    """Its key in ``serve.versions``; None: the default model."""
    card: ModelCard
    min_replicas: int
    max_replicas: int
    gate: str
    """One line: what was found beside its checkpoint."""

    @property
    def deployment(self) -> str:
        """Name of its Serve deployment. It outlives a change of the checkpoint: Serve replaces the replicas in it."""
        return f"{DEPLOYMENT}-{self.name}" if self.name else DEPLOYMENT

    @property
    def sleeps(self) -> bool:
        """Whether it may have no replica."""
        return self.min_replicas == 0

    def autoscaling(self, options: ServeSettings) -> dict[str, Any]:
        """Serve's ``autoscaling_config``. It begins with a replica, even where it may sleep: a bad checkpoint shows."""
        return {
            "min_replicas": self.min_replicas,
            "initial_replicas": max(1, self.min_replicas),
            "max_replicas": max(self.max_replicas, self.min_replicas),
            "target_ongoing_requests": options.target_ongoing_requests,
            "upscale_delay_s": options.upscale_delay_s,
            "downscale_delay_s": options.downscale_delay_s,
        }


def versions_of(settings: Settings, storage: Storage) -> list[Version]:
    """All of them, the default model first.

    Raises:
        UserError: there is no checkpoint where one should be, or it has not passed its gate.
    """
    options = settings.serve
    default = options.model or runs.require_checkpoint(settings, storage)
    found = [_version(None, default, options.min_replicas, options.max_replicas, settings, storage)]
    for name, other in options.versions.items():
        low = options.min_replicas if other.min_replicas is None else other.min_replicas
        high = options.max_replicas if other.max_replicas is None else other.max_replicas
        found.append(_version(name, other.model, low, high, settings, storage))
    return found


def _version(name: str | None, checkpoint: str, low: int, high: int, settings: Settings, storage: Storage) -> Version:
    card = read_card(checkpoint, storage)
    gate = require_signed_off(card.checkpoint, storage, settings.serve.gate)
    return Version(name, card, low, high, gate)
