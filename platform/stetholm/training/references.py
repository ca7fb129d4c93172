"""Where reference log-probabilities that were computed ahead lie: beside the pairs, one file an epoch.

``<pairs>/reference-<digest>/epoch-00000.parquet`` holds of each pair the summed log-probabilities, by the model before
mDPO, of the chosen response, the rejected one, and the chosen one under the epoch's degraded audio. The digest is of
everything that they depend on, so that runs with other weights of the loss share them and no others do.
"""

from __future__ import annotations

import pyarrow as pa

from stetholm.corpus.ledger import Ledger
from stetholm.errors import UserError
from stetholm.model.dtype import fast_dtype
from stetholm.runs import digest
from stetholm.settings import DpoSettings
from stetholm.training.collate import References
from stetholm.training.job import StageJob

SCORES = ("chosen", "rejected", "degraded")
COLUMNS = ("epoch", "sample_id", *SCORES)


class ReferenceStore:
    """The references of one stage's pairs.

    Args:
        job: mDPO's.
    """

    def __init__(self, job: StageJob) -> None:
        train, self._storage = job.train, job.storage
        assert isinstance(train, DpoSettings)
        precision = train.precision if train.precision != "auto" else str(fast_dtype(train.use_gpu))
        inputs = {
            "parent": job.lineage.parent,
            "pairs": job.lineage.corpus_sha256,
            "seed": job.settings.run.seed,
            "precision": precision,
            **train.model_dump(include={"chosen", "augmentation", "out_of_domain"}),
        }
        self.uri = f"{job.corpus}/reference-{digest(inputs)}"

    def write(self, epoch: int, table: pa.Table) -> None:
        """Keep the references of a whole epoch."""
        self._storage.write_table(self._file(epoch), table.select(COLUMNS))

    def consumed(self) -> Ledger:
        """The samples of the epochs that are there."""
        ledger = Ledger()
        for uri in self._storage.list(self.uri):
            table = self._storage.read_table(uri)
            ledger.add(table["epoch"][0].as_py(), table["sample_id"].to_pylist())
        return ledger

    def read(self, epochs: int) -> References:
        """The references of the first ``epochs``.

        Raises:
            UserError: they have not been computed.
        """
        there = set(self._storage.list(self.uri))
        found: dict[tuple[int, str], tuple[float, float, float]] = {}
        for epoch in range(epochs):
            if self._file(epoch) not in there:
                raise UserError(
                    f"dpo.reference=ahead, but {self._file(epoch)} is not there: jobs/dpo.py makes it; "
                    "without Ray set dpo.reference=adapters-off"
                )
            rows = self._storage.read_table(self._file(epoch)).to_pylist()
            found |= {(epoch, row["sample_id"]): (row["chosen"], row["rejected"], row["degraded"]) for row in rows}
        return found

    def _file(self, epoch: int) -> str:
        return f"{self.uri}/epoch-{epoch:05d}.parquet"


def references(job: StageJob, epochs: int) -> References | None:
    """What the stage's collation adds to its batches; None where each step scores its own.

    Raises:
        UserError: they have not been computed.
    """
    train = job.train
    if not isinstance(train, DpoSettings) or train.reference != "ahead":
        return None
    return ReferenceStore(job).read(epochs)
