"""``data/resume``: a stream goes on after a kill at 90 % of an epoch, against reading the epoch again up to there."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from benchmarks.data.bare import FORMATS
from benchmarks.data.corpora import batches, make, write_recordings
from benchmarks.report import Result
from stetholm.corpus.ledger import Ledger
from stetholm.corpus.stream import CorpusStream
from stetholm.model.language import load_tokenizer
from stetholm.ray_session import ray_session
from stetholm.settings import ModelSettings, StorageSettings
from stetholm.storage import open_storage

SAMPLES, SHARE = 48_331, 0.9
"""As many as StethoBench's train split holds."""
FILES = 1_000


def resume() -> Iterator[Result]:
    """Seconds until the first batch of the rest, against seconds until the same batch from the epoch's beginning."""
    storage = open_storage(StorageSettings())
    load_tokenizer(ModelSettings().language_model)  # unpacks the embedded model, once a machine
    with tempfile.TemporaryDirectory(prefix="stetholm-bench-") as folder, ray_session():
        jsonl = write_recordings(Path(folder), FILES, FORMATS)
        repeat_pairs(jsonl, SAMPLES)
        uri = make(storage, "bench-resume", jsonl)
        ledger = Ledger()
        began = time.perf_counter()
        stream = CorpusStream(storage, uri, split="train", seed=0, from_waveforms=True)
        rows = stream.rows()
        for row in islice(rows, int(SHARE * stream.rows_of(0))):
            ledger.add(0, [row["sample_id"]])
        again = time.perf_counter() - began
        rows.close()
        saved = f"{uri}-ledger.json"
        storage.write_text(saved, ledger.to_json())
    with ray_session():  # a new Ray, with nothing of the first in its memory
        began = time.perf_counter()
        restored = Ledger.from_json(storage.read_text(saved))
        left = CorpusStream(storage, uri, split="train", seed=0, ledger=restored, from_waveforms=True)
        ready = batches(left)
        next(ready)
        ours = time.perf_counter() - began
        ready.close()
    yield Result(
        "data/resume",
        ours,
        again,
        "s",
        "reading the epoch again up to the sample at which the run was killed (less is better)",
        {"samples": stream.rows_of(0), "killed_at": SHARE, "left": left.rows_of(0), "left_out": "the start of Ray"},
    )


def repeat_pairs(jsonl: Path, samples: int) -> None:
    """Ask every question again, each time answered a little differently: more samples, as many recordings."""
    lines = jsonl.read_text().splitlines()
    with jsonl.open("w") as out:
        for number in range(samples):
            line = lines[number % len(lines)]
            out.write(line.replace("in recording", f"({number // len(lines)}) in recording") + "\n")
