"""The embedded corpus: synthesised patients, their recordings, and pairs in StethoBench's format.

Patients come in twins, one normal and one abnormal, who share everything that is not a sign of disease: split,
number of recordings, sites, devices, tasks asked. So each kind and split is balanced exactly, and nothing but the
sound tells normal from abnormal.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from stetholm.audio.event import Event
from stetholm.audio.synth import (
    DEVICES,
    HEART_CONDITIONS,
    LUNG_CONDITIONS,
    LUNG_SITES,
    Device,
    Synthetic,
    synthesize_heart,
    synthesize_lung,
)
from stetholm.corpus import templates
from stetholm.corpus.folder import LocalFolder
from stetholm.corpus.recording import DIAGNOSIS, FINDING, STATUS, Recording
from stetholm.corpus.source import Earlier, Reader, Report, Source
from stetholm.corpus.sources.stethobench import JsonLines
from stetholm.corpus.templates import NORMAL, Case, Kind
from stetholm.settings import Settings, SyntheticSettings, Task
from stetholm.storage import Storage

_SPLIT_SHARES = {"val": 0.1, "test": 0.2}
_GRADES, _GRADE_SHARES = (2, 3, 4, 5), (0.1, 0.35, 0.35, 0.2)
_TWO_RECORDINGS = 0.75
_ALWAYS: tuple[Task, ...] = ("Classification", "Identification")
_IN_TURN: tuple[Task, ...] = ("Report", "Reasoning", "Differential Diagnosis", "Location")
_COMPARISON: Task = "Comparison"
_KINDS: tuple[Kind, ...] = ("heart", "lung")


@dataclass(frozen=True)
class Planned:
    """One recording to be synthesised, with its true labels.

    Attributes:
        filename: below the corpus folder.
        patient: who it is of.
        split: train, val or test; the same for all recordings of a patient.
        case: kind, condition and site.
        device: what it is recorded with.
        severity: Levine grade of a murmur, or the factor on a lung sign's loudness.
        tasks: what is asked about it alone.
    """

    filename: str
    patient: str
    split: str
    case: Case
    device: Device
    severity: float
    tasks: tuple[Task, ...]


def write_synthetic_corpus(
    settings: SyntheticSettings,
    seed: int,
    folder: Path,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the corpus below ``folder``: WAV files, ``pairs.jsonl``, and ``recordings.jsonl`` with timed events.

    The same settings and seed give the same bytes. An odd ``settings.patients`` is rounded down, because patients
    come in twins.

    Args:
        settings: number of patients, seconds a recording.
        seed: of everything random.
        folder: made if it is not there.
        progress: called with (recordings done, recordings in all).

    Returns:
        The path of ``pairs.jsonl``; its audio paths are relative to ``folder``.
    """
    twins = plan_corpus(settings.patients, seed)
    recordings = [recording for pair in twins for recording in pair]
    with _open_new(folder / "recordings.jsonl") as out:
        for index, recording in enumerate(recordings):
            sound = synthesize(recording, settings.seconds, np.random.default_rng([seed, 1, index]))
            path = folder / recording.filename
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, sound.samples, sound.rate, subtype="PCM_16")
            out.write(json.dumps(_truth(recording, sound)) + "\n")
            if progress is not None:
                progress(index + 1, len(recordings))
    with _open_new(folder / "pairs.jsonl") as out:
        out.writelines(json.dumps(pair) + "\n" for pair in corpus_pairs(twins, seed))
    return folder / "pairs.jsonl"


def plan_corpus(patients: int, seed: int) -> list[tuple[Planned, Planned]]:
    """Every recording of the corpus, as twins (normal, abnormal), half of the twins heart and half lung."""
    pairs = patients // 2
    plan: list[tuple[Planned, Planned]] = []
    for kind, count in zip(_KINDS, (pairs - pairs // 2, pairs // 2), strict=True):
        rng = np.random.default_rng([seed, 0, _KINDS.index(kind)])
        plan += _plan_kind(kind, count, rng)
    return plan


def synthesize(recording: Planned, seconds: float, rng: np.random.Generator) -> Synthetic:
    """The sound of ``recording``."""
    case = recording.case
    if case.kind == "heart":
        return synthesize_heart(
            HEART_CONDITIONS.get(case.condition), site=case.site, device=recording.device, rng=rng,
            grade=int(recording.severity), seconds=seconds,
        )  # fmt: skip
    return synthesize_lung(
        LUNG_CONDITIONS.get(case.condition), site=case.site, device=recording.device, rng=rng,
        severity=recording.severity, seconds=seconds,
    )  # fmt: skip


def corpus_pairs(twins: list[tuple[Planned, Planned]], seed: int) -> Iterator[dict[str, Any]]:
    """All pairs as StethoBench rows: each recording's own tasks, and a comparison for every second pair of twins."""
    rng = np.random.default_rng([seed, 2])
    abnormal: dict[tuple[str, str], list[Planned]] = {}
    for normal, sick in twins:
        for recording in (normal, sick):
            for task in recording.tasks:
                answer = templates.response(task, recording.case)
                yield _row([recording], task, templates.instruction(task, recording.case, rng), answer)
        others = abnormal.setdefault((sick.case.kind, sick.split), [])
        compared = len(others) % 2 == 0
        # One comparison of three sets two diseases against each other, once there are two.
        partner = others[int(rng.integers(len(others)))] if others and rng.random() < 1 / 3 else normal
        others.append(sick)
        if not compared:
            continue
        order = [partner, sick] if rng.random() < 0.5 else [sick, partner]
        answer = templates.comparison(order[0].case, order[1].case)
        yield _row(order, _COMPARISON, templates.instruction(_COMPARISON, sick.case, rng), answer)


def _plan_kind(kind: Kind, count: int, rng: np.random.Generator) -> Iterator[tuple[Planned, Planned]]:
    conditions = list(HEART_CONDITIONS if kind == "heart" else LUNG_CONDITIONS)
    numbers = iter(rng.permutation(2 * count) + 1)
    for split, size in _split_sizes(count).items():
        order = rng.permutation(len(conditions))
        for index in range(size):
            patients = [f"{kind[0].upper()}{next(numbers):04d}" for _ in range(2)]
            condition = conditions[order[index % len(conditions)]]
            # The first twins of a split have two recordings each, so that every task is asked in it.
            many = 2 if index == 0 or rng.random() < _TWO_RECORDINGS else 1
            turn, asked = (0, 2) if index == 0 else (int(rng.integers(4)), 1)
            severities = _severities(kind, rng)
            device = DEVICES[int(rng.integers(len(DEVICES)))]
            for number, site in enumerate(_sites(kind, condition, many, rng)):
                first = (2 * number + turn) % 4
                yield tuple(  # type: ignore[misc]
                    Planned(
                        f"{kind}/{patient}_{number + 1}.wav", patient, split, Case(kind, state, site), device,
                        severity, _ALWAYS + _IN_TURN[first : first + asked],
                    )
                    for patient, state, severity in zip(patients, (NORMAL, condition), severities, strict=True)
                )  # fmt: skip


def _split_sizes(count: int) -> dict[str, int]:
    """Twins by split, 70/10/20; few ones still make a test split, and from three on a validation split."""
    test = max(1, round(count * _SPLIT_SHARES["test"]))
    val = max(int(count > 2), round(count * _SPLIT_SHARES["val"]))
    return {"train": count - val - test, "val": val, "test": test}


def _sites(kind: Kind, condition: str, many: int, rng: np.random.Generator) -> list[str]:
    """Where a murmur is heard best, or any places on the chest."""
    if kind == "heart":
        return HEART_CONDITIONS[condition].sites()[:many]
    return [str(site) for site in rng.choice(LUNG_SITES, many, replace=False)]


def _severities(kind: Kind, rng: np.random.Generator) -> tuple[float, float]:
    """Of the normal twin (unused) and of the abnormal one."""
    grade = float(rng.choice(_GRADES, p=_GRADE_SHARES)) if kind == "heart" else float(rng.uniform(0.8, 1.6))
    return 0.0, grade


def _row(recordings: list[Planned], task: Task, instruction: str, response: str) -> dict[str, Any]:
    names = [recording.filename for recording in recordings]
    kind = recordings[0].case.kind
    return {
        "filename": names[0] if len(names) == 1 else names,
        "instruction": instruction,
        "response": response,
        "dataset": _dataset(kind),
        "split": recordings[0].split,
        "task": task,
        "distribution": "ID",
        "model": "templates",
        "patient": "+".join(dict.fromkeys(recording.patient for recording in recordings)),
        "site": "+".join(dict.fromkeys(recording.case.site for recording in recordings)),
        "device": "+".join(dict.fromkeys(recording.device.name for recording in recordings)),
    }


def _truth(recording: Planned, sound: Synthetic) -> dict[str, Any]:
    """What is true of a recording, for grounding and for checks."""
    return {
        "filename": recording.filename,
        "patient": recording.patient,
        "split": recording.split,
        **asdict(recording.case),
        "severity": recording.severity,
        "device": recording.device.name,
        "rate": sound.rate,
        "events": [[round(event.start, 4), round(event.end, 4), event.label] for event in sound.events],
    }


def _open_new(path: Path) -> Any:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("w", encoding="utf-8", newline="\n")


def read_truth(folder: Path) -> Iterator[Recording]:
    """The recordings of a written corpus, as a publisher would describe them."""
    for line in (folder / "recordings.jsonl").read_text(encoding="utf-8").splitlines():
        truth = json.loads(line)
        case = Case(truth["kind"], truth["condition"], truth["site"])
        words = case.wording
        yield Recording(
            truth["filename"], _dataset(case.kind), case.kind, truth["patient"], "CC0-1.0",
            site=case.site, device=truth["device"], split=truth["split"],
            labels={STATUS: case.status, FINDING: words.finding, DIAGNOSIS: words.diagnosis},
            events=tuple(Event(*event) for event in truth["events"]),
        )  # fmt: skip


def _dataset(kind: Kind) -> str:
    return f"{kind}-synthetic"


def _inputs(settings: Settings, storage: Storage) -> dict[str, Any]:
    return {"synthetic": settings.corpus.synthetic.model_dump()}


def _open(settings: Settings, storage: Storage, scratch: Path, report: Report, earlier: Earlier) -> Source:
    jsonl = write_synthetic_corpus(settings.corpus.synthetic, settings.run.seed, scratch, report)
    recordings = {recording.filename: recording for recording in read_truth(scratch)}
    lines = JsonLines(str(jsonl), storage, name="synthetic")
    return Source(lines.entries, LocalFolder(str(scratch)), recordings)


READER = Reader(_inputs, _open, grows=False)
