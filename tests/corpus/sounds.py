"""Small corpora for the tests: WAV files and StethoBench rows."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from stetholm.audio.decode import decode, encode_flac
from stetholm.corpus.shards import sample_id
from stetholm.settings import CorpusSettings, RunSettings, Settings


def wav(seed: int, seconds: float = 0.5, rate: int = 4000) -> bytes:
    """Noise as a 16-bit WAV."""
    samples = np.random.default_rng(seed).uniform(-0.5, 0.5, int(seconds * rate))
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def pair(filename: str | list[str], number: int = 0, **changes: Any) -> dict[str, Any]:
    """A StethoBench row."""
    row = {
        "filename": filename,
        "instruction": f"What is heard ({number})?",
        "response": f"A sound ({number}).",
        "dataset": "heart-test",
        "split": "train",
        "task": "Classification",
    }
    return {**row, **changes}


def write_source(folder: Path, lines: Sequence[Mapping[str, Any] | bytes], recordings: int = 4) -> Settings:
    """Recordings ``0.wav`` … below ``folder/audio``, the lines as ``folder/pairs.jsonl``; settings to ingest them."""
    audio = folder / "audio"
    audio.mkdir(parents=True, exist_ok=True)
    for index in range(recordings):
        (audio / f"{index}.wav").write_bytes(wav(index))
    raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    (folder / "pairs.jsonl").write_bytes(b"\n".join(raw) + b"\n")
    corpus = CorpusSettings(jsonl=str(folder / "pairs.jsonl"), audio=str(audio), row_group_rows=4)
    return Settings(run=RunSettings(name=folder.name), corpus=corpus)


def rows(
    count: int, seconds: float = 0.2, rate: int = 4000, recordings: int = 5, **changes: Any
) -> list[dict[str, Any]]:
    """Rows as ``write_corpus`` takes them, about a few recordings; every seventh about two."""
    made = []
    for number in range(count):
        seeds = [number % recordings] + ([(number + 1) % recordings] if number % 7 == 6 else [])
        ids = [f"recording-{seed}" for seed in seeds]
        text = {"instruction": f"What ({number})?", "response": f"That ({number}).", "task": "Report"}
        made.append(
            {
                **text,
                "sample_id": sample_id(ids, text["instruction"], text["response"], text["task"]),
                "recording_ids": ids,
                "audio": [encode_flac(decode(wav(seed, seconds, rate))) for seed in seeds],
                "sampling_rate": [rate] * len(seeds),
                "dataset": "heart-test",
                "distribution": "ID",
                "patient": ids[0],
                **changes,
            }
        )
    return made
