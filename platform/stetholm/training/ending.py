"""What is still to be shown when a stage is done: evaluations that came in after the last checkpoint was written."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from stetholm.runs import run_uri
from stetholm.training.history import FILE, History, from_lines
from stetholm.training.job import StageJob
from stetholm.training.trackers import Trackers, place_of
from stetholm.training.validation import Validated


def complete_curves(job: StageJob, checkpoint: str) -> None:
    """Give late evaluations to the trackers, and write ``<stage>/curves.png`` with all that is known.

    Args:
        job: a stage that has been trained.
        checkpoint: URI of its last checkpoint, whose history ends with the last step.
    """
    if job.train.evaluate_every is None:
        return
    from stetholm.training.curves import PICTURE, draw_curves  # it brings matplotlib

    uri = run_uri(job.settings, job.storage, job.stage)
    history = History(from_lines(job.storage.read_text(f"{checkpoint}/{FILE}")))
    late = Validated(job.storage, uri, history)()
    trackers = Trackers(job.train.trackers, place_of(job), history.records)
    for record in late:
        history.add(record)
        trackers.log(record)
    trackers.close()
    with TemporaryDirectory() as folder:
        picture = Path(folder) / PICTURE
        draw_curves(history, f"{job.settings.run.name}/{job.stage}", picture)
        job.storage.write_bytes(f"{uri}/{picture.name}", picture.read_bytes())
