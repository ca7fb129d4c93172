"""``cluster/submit``: from ``ray job submit`` to the first training step, and what is uploaded for it.

python -m benchmarks.run cluster/submit
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from ray._private.runtime_env.packaging import create_package

from benchmarks.report import Result
from stetholm.demo import submit as submission
from stetholm.demo.head import ray_head
from stetholm.model.language import load_language_model
from stetholm.settings import load_settings
from stetholm.storage import Storage, open_storage
from stetholm.training.history import FILE, from_lines

ROOT = Path(__file__).resolve().parents[1]
ROUNDS = 3
SETTINGS = (
    "corpus.synthetic.patients=48",
    "train.max_steps=2",
    "train.log_every=1",
    "train.trackers=[]",
)


def submit() -> Iterator[Result]:
    """A real SFT of the embedded model with the default settings, submitted and by hand, in turns."""
    settings = load_settings(None, SETTINGS)
    storage = open_storage(settings.storage)
    load_language_model(settings.model.language_model, torch.bfloat16)  # unpacks the embedded one, once a machine
    corpus = f"corpus.uri={storage.join('bench-submit/corpus')}"
    with tempfile.TemporaryDirectory() as name, ray_head(Path(name)) as head:
        client, log = head.client(), Path(name) / "job.log"

        def submitted(run: str, job: str) -> dict[str, Any]:
            line = submission.command(f"jobs/{job}.py", [*SETTINGS, corpus, f"run.name={run}"])
            return submission.run_job(client, job, line, ROOT, log, lambda step: None)

        submitted("bench-submit-data", "ingest")
        rounds = []
        for number in range(ROUNDS):
            began = time.time()
            ours = _first_step(storage, submitted(f"bench-submitted-{number}", "sft")) - began
            began = time.time()
            rounds.append(
                (ours, _first_step(storage, _by_hand([*SETTINGS, corpus, f"run.name=bench-{number}"])) - began)
            )
        names, size = package(ROOT, Path(name))
    ours, baseline = sorted(rounds, key=lambda each: each[0] / each[1])[ROUNDS // 2]
    how = {"rounds": [f"{one:.1f}/{other:.1f}" for one, other in rounds], "workers": settings.train.workers}
    what = "the same script by hand, which starts a Ray of its own (less is better)"
    yield Result("cluster/submit", ours, baseline, "s", what, how)
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    whole = sum((ROOT / file).stat().st_size for file in tracked.split("\0") if (ROOT / file).is_file())
    what = "all files of the repository, as they are (less is better); ours is the archive that Ray uploads"
    yield Result("cluster/submit", size / 2**20, whole / 2**20, "MiB", what, {"files": len(names)})


def package(root: Path, folder: Path) -> tuple[set[str], int]:
    """What ``--working-dir <root>`` uploads: the files' names, and bytes of the archive (made in ``folder``)."""
    target = folder / "working_dir.zip"
    create_package(str(root), target, include_gitignore=True)
    with zipfile.ZipFile(target) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    return names, target.stat().st_size


def _first_step(storage: Storage, result: dict[str, Any]) -> float:
    """When the first step ended, in seconds since 1970."""
    records = from_lines(storage.read_text(f"{result['output']}/{FILE}"))
    return next(float(record["time"]) for record in records if record["step"] == 1)


def _by_hand(settings: list[str]) -> dict[str, Any]:
    words = [word for setting in settings for word in ("--set", setting)]
    command = [sys.executable, str(ROOT / "jobs" / "sft.py"), *words]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1].removeprefix("RESULT "))
    return result
