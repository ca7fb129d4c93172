"""``python jobs/export.py``: its RESULT line, status 2 on bad input, and that a second run finds all done."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from stetholm.model import StethoLMForConditionalGeneration, load_checkpoint, save_checkpoint
from stetholm.model.export import export_model
from stetholm.runs import record
from stetholm.settings import Settings
from stetholm.storage import Storage
from tests.conftest import ROOT
from tests.model.test_checkpoint import same
from tests.model.tiny import lively, tiny_model


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "jobs/export.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def test_the_runs_latest_checkpoint_once_and_never_over_something_else(storage: Storage, tmp_path: Path) -> None:
    model, processor = tiny_model(tmp_path / "base")
    save_checkpoint(lively(model), processor, tmp_path / "checkpoint")
    uri = storage.join("runs", "job-export", "sft", "checkpoint")
    storage.upload_dir(tmp_path / "checkpoint", uri)
    settings = Settings.model_validate({"run": {"name": "job-export"}})
    record(settings, storage, "sft", {"output": uri}, {})

    done = python("--set", "run.name=job-export")
    assert done.returncode == 0, done.stderr
    *_, last = done.stdout.splitlines()
    result = json.loads(last.removeprefix("RESULT "))
    output = storage.join("runs/job-export/export/merged")
    expected = {"job": "export", "output": output, "checkpoint": uri, "kind": "merged", "dtype": "float32"}
    assert expected.items() <= result.items() and result["seconds"] >= 0
    before = storage.written(output)
    assert export_model(settings, storage).items() <= result.items() and storage.written(output) == before
    merged, _ = load_checkpoint(uri, storage, merge=True)
    assert same(StethoLMForConditionalGeneration.from_pretrained(output), merged)

    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").touch()
    failed = python("--set", "run.name=job-export", "--set", f"export.to={tmp_path / 'taken'}")
    assert failed.returncode == 2 and failed.stdout == ""
    assert failed.stderr.startswith("export: export.to: ") and len(failed.stderr.splitlines()) == 1
