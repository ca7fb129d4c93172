"""Labelled recordings for the tests of pair synthesis: as the synthesiser and as publishers label them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stetholm.corpus.recording import DIAGNOSIS, FINDING, STATUS, Recording
from stetholm.corpus.sources.synthetic import plan_corpus
from stetholm.corpus.splits import assign_splits
from stetholm.corpus.synthesis.plan import Planned, plan_pairs
from stetholm.corpus.synthesis.prompts import Prompts
from stetholm.corpus.synthesis.recordings import Labelled
from stetholm.corpus.synthesis.template_writer import write
from stetholm.settings import CorpusSettings, RunSettings, Settings, SynthesizeSettings
from tests.corpus.sources.published import publish

SOUNDS = ("0\t0", "1\t0", "0\t1", "1\t1")
"""Columns crackle and wheeze of a breath cycle."""
DIAGNOSES = ("Healthy", "Pneumonia", "Asthma", "COPD")


def recording(**changes: Any) -> Recording:
    """A lung recording with all labels."""
    labels = {STATUS: "abnormal", FINDING: "fine crackles", DIAGNOSIS: "pulmonary fibrosis"}
    facts = {"site": "posterior left chest", "labels": labels, **changes}
    return Recording(
        **{"filename": "a.wav", "dataset": "lung-x", "kind": "lung", "patient": "1", "licence": "", **facts}
    )


def synthetic(patients: int = 40) -> list[Recording]:
    """What the synthesiser would label, without the sound."""
    found = []
    for planned in (one for twins in plan_corpus(patients, 0) for one in twins):
        case, words = planned.case, planned.case.wording
        labels = {STATUS: case.status, FINDING: words.finding, DIAGNOSIS: words.diagnosis}
        found.append(
            Recording(planned.filename, f"{case.kind}-synthetic", case.kind, planned.patient, "CC0-1.0",
                      site=case.site, split=planned.split, labels=labels)  # type: ignore[arg-type]
        )  # fmt: skip
    return found


def labelled(recordings: Sequence[Recording]) -> Labelled:
    """As the job has them."""
    return Labelled(tuple(recordings), assign_splits(recordings, 0), ())


def icbhi(folder: Path, recordings: int, **synthesize: Any) -> Settings:
    """Settings of a run of the folder's name, on an ICBHI folder (of empty sound files: labels are read, no sound)."""
    files = {}
    for number in range(recordings):
        name = f"{101 + number // 2}_1b1_{('Al', 'Pr')[number % 2]}_sc_Meditron"
        files |= {f"{name}.wav": "", f"{name}.txt": f"0.0\t1.5\t{SOUNDS[number // 2 % 4]}\n"}
    patients = range(101, 101 + (recordings + 1) // 2)
    files["patient_diagnosis.csv"] = "".join(f"{one},{DIAGNOSES[one % 4]}\n" for one in patients)
    publish(folder / "icbhi", files)
    return Settings(
        run=RunSettings(name=folder.name),
        corpus=CorpusSettings(source="icbhi", audio=str(folder / "icbhi")),
        synthesize=SynthesizeSettings(**synthesize),
    )


def good_answers(plan: Sequence[Planned]) -> dict[str, str]:
    """A valid answer by the prompt that asks for it."""
    prompts = Prompts.load()
    return {prompts.messages(planned)[1]["content"]: write(planned, 0) for planned in plan}


def all_pairs(recordings: Sequence[Recording], **changes: Any) -> list[Planned]:
    """Every task that the labels can answer, and as many comparisons as there are recordings."""
    chosen = SynthesizeSettings(**{"pairs_per_recording": 6, "comparisons_per_recording": 1.0, **changes})
    return plan_pairs(labelled(recordings), chosen, 0)


def answer(instruction: str, response: str) -> str:
    """What a writer replies."""
    return json.dumps({"instruction": instruction, "response": response})
