"""One stage of one run, as the driver tells it to the workers. Light to import: the driver needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

from stetholm.runs import read_result, run_uri
from stetholm.settings import Settings, StageName, TrainSettings
from stetholm.storage import Storage
from stetholm.training.checkpoints import Checkpoints
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

    def checkpoints(self) -> Checkpoints:
        """Its checkpoints in storage; the best is the one with the lowest loss, held-out where that is measured.

        What an earlier job has named as its result is spared: later stages go by that name until this one is done.
        """
        metric = "loss" if self.train.evaluate_every is None else "val_loss"
        result = read_result(self.settings, self.storage, self.stage)
        spare = [str(result["output"])] if result is not None else []
        uri = run_uri(self.settings, self.storage, self.stage)
        return Checkpoints(self.storage, uri, self.train.keep_checkpoints, metric, spare)
