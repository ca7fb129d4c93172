"""All stages in order: ``python jobs/pipeline.py [--config cluster.yaml] [--set run.name=first …]``.

Each stage runs as its own script, so that it begins with a clean process and gives all its memory back. A stage that
this ``run.name`` has done already returns at once; the first that fails ends the pipeline.
"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

from stetholm.errors import UserError
from stetholm.job import run_job
from stetholm.progress import Progress
from stetholm.settings import Settings
from stetholm.storage import Storage

STAGES = ("ingest", "align", "sft", "prefer", "dpo", "evaluate")
RESULT = "RESULT "


def run_stage(stage: str, arguments: list[str]) -> dict[str, Any]:
    """Run one stage's script; its output passes through, its RESULT is returned.

    Raises:
        UserError: it ended with status 2; what to mend stands in its own message, on stderr.
        RuntimeError: it ended with another status, or without a RESULT.
    """
    script = Path(__file__).with_name(f"{stage}.py")
    result: dict[str, Any] | None = None
    with subprocess.Popen([sys.executable, str(script), *arguments], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(RESULT):
                result = json.loads(line[len(RESULT) :])
            else:
                print(line, end="", flush=True)
    if process.returncode == 2:
        raise UserError(f"pipeline stopped at {stage}, whose message stands above")
    if process.returncode != 0 or result is None:
        raise RuntimeError(f"pipeline stopped: {stage} ended with status {process.returncode}")
    return result


def main(settings: Settings, storage: Storage, arguments: list[str]) -> dict[str, Any]:
    """Run all stages; returns each one's result and, as ``output``, the URI of the run."""
    results = {}
    with Progress("pipeline", total=len(STAGES), unit="stages") as progress:
        for done, stage in enumerate(STAGES):
            progress.update(done, stage=stage)
            results[stage] = run_stage(stage, arguments)
        progress.update(len(STAGES))
    return {"output": storage.join("runs", settings.run.name), "stages": results}


if __name__ == "__main__":
    run_job("pipeline", partial(main, arguments=sys.argv[1:]))
