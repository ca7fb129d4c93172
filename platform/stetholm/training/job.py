"""One stage of one run, as the driver tells it to the workers. Light to import: the driver needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

from stetholm.settings import Settings, StageName, TrainSettings
from stetholm.storage import Storage
from stetholm.training.lineage import Lineage


@dataclass(frozen=True)
class StageJob:
    """One stage of one run: what a worker needs to know, picklable.

    Attributes:
        stage: align, sft or dpo.
        settings: the whole tree.
        storage: open storage.
        corpus: URI of the corpus (for dpo: of the preference pairs).
        lineage: what the checkpoints will say of themselves.
    """

    stage: StageName
    settings: Settings
    storage: Storage
    corpus: str
    lineage: Lineage

    @property
    def train(self) -> TrainSettings:
        """The stage's settings, resolved."""
        return self.settings.stage(self.stage)
