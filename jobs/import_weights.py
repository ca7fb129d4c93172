"""Make a checkpoint of published weights: of OPERA-CE's encoder, or of the authors' StethoLM.

python jobs/import_weights.py --set import_weights.weights=encoder-operaCE.ckpt
python jobs/import_weights.py --set import_weights.weights=stetholm.pt --set model.language_model=google/medgemma-4b-it
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from stetholm.errors import UserError
from stetholm.job import run_job
from stetholm.model.importing import ImportReport, PartialImportError, import_weights
from stetholm.model.importing.reading import existing
from stetholm.runs import finished, record, run_uri
from stetholm.settings import Settings
from stetholm.storage import Storage
from stetholm.training.lineage import Lineage, code_version, write_lineage

JOB = "import_weights"
REPORT = "import_report.json"
"""Beside the checkpoint: what became of every key."""


def main(settings: Settings, storage: Storage) -> dict[str, Any]:
    """Import the weights, or find that this run has done it."""
    file = weights_file(settings, storage)
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    inputs = {
        "weights_sha256": digest,
        "model": settings.model.model_dump(mode="json", exclude={"init_from"}),
        "seed": settings.run.seed,
        **settings.import_weights.model_dump(mode="json", exclude={"weights"}),
    }
    result = finished(settings, storage, JOB, inputs)
    if result is None:
        report = make_checkpoint(settings, storage, file, digest)
        output = run_uri(settings, storage, JOB)
        result = {"output": output, "layout": report.layout, **report.counts, "report": f"{output}/{REPORT}"}
        record(settings, storage, JOB, result, inputs)
    print(f"{JOB}: {result['imported']} weights imported, {result['unused']} unused, {result['missing']} missing")
    return result


def weights_file(settings: Settings, storage: Storage) -> Path:
    """The file on this machine.

    Raises:
        UserError: none is named, or there is none.
    """
    source = settings.import_weights.weights
    if source is None:
        raise UserError(
            "import_weights.weights names no file: give the path or s3:// URI of a .pt, .ckpt or .safetensors file"
        )
    return existing(storage.local_copy(source) if source.startswith("s3://") else Path(source).expanduser())


def make_checkpoint(settings: Settings, storage: Storage, file: Path, digest: str) -> ImportReport:
    """Write the checkpoint to this run's place; on refusal, only the account of every key."""
    output = run_uri(settings, storage, JOB)
    given = settings.import_weights
    with TemporaryDirectory(prefix="stetholm-import-") as scratch:
        folder = Path(scratch)
        try:
            report = import_weights(
                file,
                folder,
                settings.model,
                layout=given.layout,
                allow_partial=given.allow_partial,
                seed=settings.run.seed,
            )
        except PartialImportError as error:
            storage.write_json(f"{output}/{REPORT}", error.report.to_json())
            raise UserError(f"{error}; all keys: {output}/{REPORT}") from error
        (folder / REPORT).write_text(json.dumps(report.to_json(), indent=2), encoding="utf-8")
        numbers = {"SHA-256 of the imported file": digest, "weights imported": len(report.imported)}
        write_lineage(folder, lineage(settings), settings, numbers)
        storage.upload_dir(folder, output)
    return report


def lineage(settings: Settings) -> Lineage:
    """Where the checkpoint comes from: a file, and no corpus of ours."""
    return Lineage(
        stage=JOB,
        run=settings.run.name,
        parent=settings.import_weights.weights,
        corpus="",
        corpus_sha256="",
        code=code_version(),
        settings={**settings.import_weights.model_dump(mode="json"), "seed": settings.run.seed},
    )


if __name__ == "__main__":
    run_job(JOB, main)
