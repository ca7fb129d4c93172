"""The recordings that the data benchmarks read, and batches of them as training makes them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from stetholm.audio.resample import resample
from stetholm.audio.synth import DEVICES, HEART_CONDITIONS, synthesize_heart
from stetholm.corpus.ingest import ingest
from stetholm.corpus.stream import CorpusStream
from stetholm.model.language import load_tokenizer
from stetholm.model.processing_stetholm import StethoLMProcessor
from stetholm.settings import ModelSettings, Settings, load_settings
from stetholm.storage import Storage
from stetholm.training.batches import Batch, BatchPlan
from stetholm.training.collate import Collate, Prepare, answers_of

BATCH = 16


@dataclass(frozen=True)
class Format:
    """Of recordings: Hz, libsndfile's subtype, seconds."""

    rate: int
    subtype: str
    seconds: float


MIXED = (
    Format(4_000, "PCM_16", 10.0),
    Format(8_000, "PCM_16", 8.0),
    Format(44_100, "PCM_16", 20.0),
    Format(44_100, "PCM_24", 15.0),
    Format(44_100, "PCM_32", 20.0),
)
"""As the public datasets ship them."""


def write_recordings(folder: Path, count: int, formats: Sequence[Format]) -> Path:
    """``count`` WAV files, in ``formats`` by turns, and ``pairs.jsonl`` with a question about each: its path."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    with (folder / "pairs.jsonl").open("w") as lines:
        for number in range(count):
            form = formats[number % len(formats)]
            whole = chest_sound(form.rate)
            samples = np.roll(whole, int(rng.integers(len(whole))))[: int(form.seconds * form.rate)]
            soundfile.write(folder / f"{number}.wav", samples * rng.uniform(0.3, 1.0), form.rate, form.subtype)
            lines.write(json.dumps(_pair(number)) + "\n")
    return folder / "pairs.jsonl"


@cache
def chest_sound(rate: int) -> NDArray[np.float32]:
    """Half a minute of a synthesised heart at ``rate`` Hz."""
    condition = HEART_CONDITIONS["aortic stenosis"]
    sound = synthesize_heart(
        condition, site="aortic area", device=DEVICES[0], rng=np.random.default_rng(0), seconds=30.0
    )
    return resample(sound.samples, sound.rate, rate)


def make(storage: Storage, name: str, jsonl: Path, **corpus: Any) -> str:
    """Ingest recordings of :func:`write_recordings`; the corpus URI."""
    settings = load_settings(None, (f"run.name={name}", f"corpus.jsonl={jsonl}", f"corpus.audio={jsonl.parent}"))
    return str(ingest(_with_corpus(settings, corpus), storage)["output"])


def batches(stream: CorpusStream) -> Generator[Batch]:
    """The stream as tensors ready for a training step: tokens, labels, spectrograms."""
    processor = StethoLMProcessor(load_tokenizer(ModelSettings().language_model))
    prepare, collate = Prepare(processor, 256, answers_of("sft")), Collate("sft", processor)
    with contextlib.closing(stream.rows()) as source:
        yield from map(collate, BatchPlan(BATCH).batches(row | prepare(row) for row in source))


def _with_corpus(settings: Settings, changes: dict[str, Any]) -> Settings:
    return settings.model_copy(update={"corpus": settings.corpus.model_copy(update=changes)})


def _pair(number: int) -> dict[str, Any]:
    return {
        "filename": f"{number}.wav",
        "instruction": "What is the main finding in this heart sound?",
        "response": f"The main finding is an ejection systolic murmur, in recording {number}.",
        "dataset": "heart-bench",
        "split": "train",
        "task": "Identification",
    }
