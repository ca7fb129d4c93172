"""What is still to do when a stage is done: evaluations that are missing, and to show those that came in late."""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from stetholm.runs import run_uri
from stetholm.training.checkpoints import Found
from stetholm.training.history import FILE, History, from_lines
from stetholm.training.job import StageJob
from stetholm.training.trackers import Trackers, place_of
from stetholm.training.validation import Validated, evaluate_checkpoint, task_options, unmeasured


def evaluate_the_rest(job: StageJob, last: Found, environment: dict[str, str]) -> None:
    """Evaluate what was to be and has not been: its task failed, or ended with training that left. Needs Ray.

    What cannot be evaluated is named in a line, as the best is then chosen among the others.

    Args:
        job: a stage that has been trained.
        last: its last checkpoint.
        environment: variables of the training workers.
    """
    steps = [] if job.train.evaluate_every is None else unmeasured(job, last.step)
    whole = {found.step: found for found in job.checkpoints().whole()}
    reasons = {step: _evaluate(job, whole.get(step), environment) for step in steps}
    missing = [f"step {step} ({reason})" for step, reason in reasons.items() if reason is not None]
    if missing:
        line = f"{job.stage}: not evaluated, so the best is chosen among the others: {', '.join(missing)}"
        print(line, file=sys.stderr, flush=True)


def _evaluate(job: StageJob, found: Found | None, environment: dict[str, str]) -> str | None:
    """Why a checkpoint could not be evaluated; None: it has been."""
    if found is None:
        return "its checkpoint is gone"
    import ray
    from ray.train import Checkpoint

    checkpoint = Checkpoint(job.storage.key(found.uri), job.storage.arrow_writer())
    task = ray.remote(evaluate_checkpoint).options(**task_options(job, environment), max_retries=1)
    try:
        ray.get(task.remote(checkpoint, job))
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        return f"{type(cause).__name__}: {(str(cause).splitlines() or [''])[0]}"
    return None


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
