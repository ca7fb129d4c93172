"""All jobs of a run, in order: recordings go in, an evaluated checkpoint comes out.

    python jobs/pipeline.py --set run.name=first
    python jobs/pipeline.py --set run.name=first --set "pipeline.jobs=[sft, evaluate, export]"

Each runs as its own script. The same line again does nothing twice; the first job that fails ends the pipeline, and so
does a checkpoint that does not pass evaluate.gate.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from stetholm.job import end_at_once, run_job
from stetholm.pipeline import Pipeline
from stetholm.runs import hold_run
from stetholm.settings import Settings
from stetholm.storage import Storage

JOB = "pipeline"


def main(settings: Settings, storage: Storage) -> dict[str, Any]:
    """Run the jobs of the settings, each in turn holding this run."""
    with hold_run(settings, storage, JOB, end_at_once(JOB)) as held:
        return Pipeline(settings, storage, sys.argv[1:], Path(__file__).parent, held).run()


if __name__ == "__main__":
    run_job(JOB, main, alone=False)
