"""A small corpus of short sounds in the embedded storage, and a tiny checkpoint beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from stetholm.audio.decode import Sound, encode_flac
from stetholm.corpus.shards import sample_id, write_corpus
from stetholm.storage import Storage
from tests.serving.tiny import save_tiny

PAIRS = (
    ("Classification", "Is this normal or abnormal?", "The heart sound is {status}."),
    ("Identification", "What is the main finding?", "The main finding is {finding}."),
)


def row(recordings: list[int], task: str, instruction: str, response: str) -> dict[str, Any]:
    """One row of a corpus about short tones."""
    names = [f"r{index}" for index in recordings]
    tones = [np.sin(np.arange(4000) * 0.02 * (index + 1)).astype(np.float32) for index in recordings]
    return {
        "sample_id": sample_id(names, instruction, response, task),
        "recording_ids": names,
        "audio": [encode_flac(Sound(tone, 4000, 16)) for tone in tones],
        "sampling_rate": [4000] * len(names),
        "instruction": instruction,
        "response": response,
        "task": task,
        "dataset": "heart-test",
        "distribution": "ID",
        "patient": names[0],
    }


def rows(recordings: range) -> list[dict[str, Any]]:
    """Two pairs a recording, every second one abnormal, and one comparison."""
    found = []
    for index in recordings:
        words = (
            {"status": "abnormal", "finding": "wheezes"}
            if index % 2
            else {"status": "normal", "finding": "a normal sound"}
        )
        found += [row([index], task, ask, answer.format(**words)) for task, ask, answer in PAIRS]
    first = recordings.start
    compared = "Audio 1 shows normal sounds, while audio 2 shows wheezes."
    return [*found, row([first, first + 1], "Comparison", "Compare audio 2 with audio 1.", compared)]


def make_corpus(storage: Storage, uri: str) -> str:
    """A corpus with a train and a test split."""
    splits = {"train": rows(range(0, 4)), "test": rows(range(4, 8))}
    write_corpus(storage, uri, splits, inputs={"source": "test"}, row_group_rows=4)
    return uri


def make_checkpoint(storage: Storage, uri: str, folder: Path, head_dim: int = 8) -> str:
    """A checkpoint of random weights."""
    storage.upload_dir(save_tiny(folder, head_dim=head_dim), uri)
    return uri
