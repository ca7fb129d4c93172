"""What the explain job explains: examples of a corpus with what is known of their recordings, or a user's own."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stetholm.audio.decode import AudioError
from stetholm.audio.features import SAMPLE_RATE, log_mel
from stetholm.corpus.catalog import by_recording, read_catalog
from stetholm.corpus.derived import unpack_log_mel
from stetholm.corpus.manifest import Manifest
from stetholm.errors import UserError
from stetholm.evaluation.examples import Example, choose, read_examples, read_rows
from stetholm.model.explain import Clip
from stetholm.model.sound import read_waveform
from stetholm.settings import AudioSettings, ExplainSettings
from stetholm.storage import Storage


@dataclass(frozen=True)
class Case:
    """One question about some recordings.

    Attributes:
        name: for files.
        instruction: the question.
        clips: its recordings.
        recordings: what is known of each: ``recording_id`` or ``file``, ``labels``, ``events``.
        reference: the corpus's answer; None of a user's own recording.
        task: of the corpus's example.
        dataset: the same.
    """

    name: str
    instruction: str
    clips: tuple[Clip, ...]
    recordings: tuple[Mapping[str, Any], ...]
    reference: str | None = None
    task: str | None = None
    dataset: str | None = None


@dataclass(frozen=True)
class OwnSound:
    """A user's recording."""

    file: str
    sha256: str
    clip: Clip


def read_sounds(files: Sequence[str], storage: Storage, limits: AudioSettings) -> list[OwnSound]:
    """Recordings at paths or ``s3://`` URIs.

    Raises:
        UserError: one is not there or cannot be used; the message names it.
    """
    return [_read_sound(file, storage, limits) for file in files]


def _read_sound(file: str, storage: Storage, limits: AudioSettings) -> OwnSound:
    if file.startswith("s3://"):
        data = storage.read_bytes(file)
    elif Path(file).expanduser().is_file():
        data = Path(file).expanduser().read_bytes()
    else:
        raise UserError(f"explain.audio: there is no recording at {file}")
    try:
        waveform = read_waveform(data, None, limits)
    except AudioError as error:
        raise UserError(f"explain.audio: {file}: {error}") from error
    return OwnSound(file, hashlib.sha256(data).hexdigest(), Clip(log_mel(waveform), len(waveform) / SAMPLE_RATE))


def check_choice(chosen: ExplainSettings) -> None:
    """Refuse settings that contradict each other.

    Raises:
        UserError: recordings without a question, with a reference answer or with sample ids; a question without
            recordings.
    """
    if chosen.audio and not chosen.question:
        raise UserError("explain.audio needs a question: set explain.question")
    if chosen.audio and chosen.answer == "reference":
        raise UserError("explain.answer=reference needs examples of a corpus: leave out explain.audio, or the answer")
    if chosen.audio and chosen.sample_ids:
        raise UserError("explain.sample_ids names examples of a corpus: leave out explain.audio, or the ids")
    if chosen.question and not chosen.audio:
        raise UserError("explain.question needs recordings: set explain.audio (examples have their own questions)")


def sound_case(question: str, sounds: Sequence[OwnSound]) -> Case:
    """A question about a user's recordings."""
    known: list[dict[str, Any]] = [{"file": sound.file, "labels": None, "events": []} for sound in sounds]
    return Case("audio", question, tuple(sound.clip for sound in sounds), tuple(known))


def corpus_sha256(storage: Storage, corpus: str, split: str) -> str:
    """Of a corpus's manifest.

    Raises:
        CorpusError: there is no corpus, or nothing in the split.
    """
    manifest = Manifest.load(storage, corpus)
    manifest.split(split)
    return manifest.sha256


def corpus_cases(
    storage: Storage, corpus: str, split: str, count: int, seed: int, sample_ids: Sequence[str] = ()
) -> list[Case]:
    """``count`` examples of a split, of as many tasks as there is room for; or those named by (parts of) their ids.

    Raises:
        CorpusError: there is no corpus, or nothing in the split.
        UserError: a sample id is none of the split, or begins several.
    """
    everything = read_examples(storage, corpus, split)
    examples = [_named(everything, name, split) for name in sample_ids] or choose(everything, count, seed)
    wanted = {example.sample_id for example in examples}
    rows = read_rows(storage, corpus, split, ("sample_id", "log_mel", "seconds"), wanted)
    sounds = {row["sample_id"]: row for row in rows}
    known = by_recording(read_catalog(storage, corpus, Manifest.load(storage, corpus)))
    return [_case(example, sounds[example.sample_id], known) for example in examples]


def _named(examples: Sequence[Example], name: str, split: str) -> Example:
    found = [example for example in examples if name and example.sample_id.startswith(name)]
    if len(found) != 1:
        what = "no example" if not found else f"{len(found)} examples"
        raise UserError(f"explain.sample_ids: {name!r} begins the id of {what} of split {split!r}: give one's id")
    return found[0]


def _case(example: Example, sounds: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]]) -> Case:
    clips = tuple(
        Clip(unpack_log_mel(packed), seconds)
        for packed, seconds in zip(sounds["log_mel"], sounds["seconds"], strict=True)
    )
    recordings = tuple(_known(name, known.get(name, {})) for name in example.recording_ids)
    task = re.sub(r"[^a-z]+", "-", example.task.lower()).strip("-") or "none"
    name = f"{task}-{example.sample_id[:8]}"
    return Case(name, example.instruction, clips, recordings, example.response, example.task, example.dataset)


def _known(recording_id: str, row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "recording_id": recording_id,
        "file": row.get("filename"),
        "labels": row.get("labels"),
        "events": list(row.get("events") or []),
    }
