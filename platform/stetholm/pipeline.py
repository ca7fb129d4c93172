"""The jobs of a run in order, each as a process of its own. Run by ``jobs/pipeline.py``.

A process of its own begins clean and gives all its memory back. What is done is not done again: each job compares what
it would work on (parent checkpoint, the corpus's manifest by its SHA-256, settings) with what its result was made from,
returns that result, or refuses if it was made from something else.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stetholm.errors import Stopped, UserError
from stetholm.evaluation.signoff import require_signed_off
from stetholm.progress import Progress
from stetholm.runs import LENT_CLAIM, require_checkpoint
from stetholm.settings import Settings
from stetholm.settings.pipeline import PIPELINE, PipelineJob
from stetholm.storage import Storage
from stetholm.storage.lease import Lease

ANALYSES = ("inspect", "probe", "explain")
"""Nothing comes of these but what they show: where a corpus has not what they need, the pipeline goes on without."""
RESULT = "RESULT "


def jobs_of(settings: Settings) -> list[PipelineJob]:
    """Which jobs a pipeline runs, in order (see ``PipelineSettings.jobs``)."""
    chosen = settings.pipeline.jobs
    if chosen is not None:
        return [job for job in PIPELINE if job in chosen]
    asked = {
        "import_weights": settings.import_weights.weights is not None,
        "synthesize": bool(settings.synthesize.model_fields_set) and settings.corpus.jsonl is None,
        "export": bool(settings.export.model_fields_set),
    }
    return [job for job in PIPELINE if asked.get(job, True)]


@dataclass(frozen=True)
class Pipeline:
    """One pipeline of a run.

    Attributes:
        settings: of the run.
        storage: where it lies.
        arguments: of the command line, which each job gets too.
        scripts: the folder of the jobs' scripts.
        held: the lease of the run, which each job holds in turn.
    """

    settings: Settings
    storage: Storage
    arguments: list[str]
    scripts: Path
    held: Lease

    def run(self) -> dict[str, Any]:
        """Run all jobs.

        Returns:
            ``output`` (URI of the run), ``stages`` (each job's result) and ``left_out`` (analyses that this corpus
            does not allow).

        Raises:
            UserError: a job ended with status 2; what to mend stands in its own message, on stderr.
            Stopped: the checkpoint has not passed its gate, or the pipeline was told to stop.
            RuntimeError: a job ended with another status, or without a RESULT.
        """
        jobs = jobs_of(self.settings)
        print(f"pipeline: {', '.join(jobs)}", flush=True)
        results: dict[str, Any] = {}
        with Progress("pipeline", total=len(jobs), unit="stages") as progress:
            for done, job in enumerate(jobs):
                progress.update(done, stage=job)
                results[job] = self._run(job, results)
            progress.update(len(jobs))
        return {
            "output": self.storage.join("runs", self.settings.run.name),
            "stages": {job: result for job, result in results.items() if result is not None},
            "left_out": [job for job, result in results.items() if result is None],
        }

    def _run(self, job: PipelineJob, before: dict[str, Any]) -> dict[str, Any] | None:
        """One job's result; None if it is left out."""
        if job == "export":
            checkpoint = require_checkpoint(self.settings, self.storage)
            print(require_signed_off(checkpoint, self.storage, self.settings.serve.gate), flush=True)
        arguments = [*self.arguments, *(_pairs_of(before.get("synthesize")) if job == "ingest" else [])]
        with self.held.lend() as claim:
            status, result = run_script(self.scripts / f"{job}.py", arguments, {LENT_CLAIM: claim})
        if status == 2 and job in ANALYSES and job not in (self.settings.pipeline.jobs or ()):
            print(f"pipeline: {job} is left out: its message stands above", file=sys.stderr, flush=True)
            return None
        if status == 2:
            raise UserError(f"stopped at {job}, whose message stands above")
        if status != 0 or result is None:
            raise RuntimeError(f"stopped: {job} ended with status {status}")
        _require_passed(job, result)
        return result


def _pairs_of(synthesized: dict[str, Any] | None) -> list[str]:
    """What ingest has to be told, to read the pairs that ``synthesize`` has written."""
    if synthesized is None:
        return []
    told = {"source": "stethobench", "jsonl": synthesized["output"], "audio": synthesized["audio"]}
    return [word for key, value in told.items() for word in ("--set", f"corpus.{key}={value}")]


def _require_passed(job: str, result: dict[str, Any]) -> None:
    gate = result.get("gate")
    if gate is not None and not gate["passed"]:
        raise Stopped(
            f"stopped at the gate after {job}: the checkpoint has not passed {', '.join(gate['failed'])} "
            f"({gate['output']})"
        )


def run_script(script: Path, arguments: list[str], environment: dict[str, str]) -> tuple[int, dict[str, Any] | None]:
    """Run a job's script; its output passes through.

    Args:
        script: of ``jobs/``.
        arguments: its command line.
        environment: variables besides this process's own.

    Returns:
        Its exit status, and what its RESULT line held.

    Raises:
        Stopped: this process was told to stop; the script was told too, and has ended.
    """
    command = [sys.executable, str(script), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | environment) as process:
        try:
            result = _passed_through(process)
            return process.wait(), result
        except KeyboardInterrupt as told:
            process.terminate()
            _passed_through(process)
            process.wait()
            raise Stopped(f"{told or 'interrupted'} at {script.stem}; the same line again goes on") from None


def _passed_through(process: subprocess.Popen[str]) -> dict[str, Any] | None:
    """Print what a job prints, all but its RESULT, which is returned."""
    result: dict[str, Any] | None = None
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(RESULT):
            result = json.loads(line[len(RESULT) :])
        else:
            print(line, end="", flush=True)
    return result
