"""What a corpus holds, in figures, and what looks wrong in it. Run by ``jobs/inspect.py``; the corpus is only read.

Writes ``runs/<run.name>/inspect/``: ``inspection.json`` (all figures), ``inspection.md`` (as tables), ``sheet.png``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

import numpy as np

from stetholm.audio.features import CLIP_SECONDS
from stetholm.corpus.inspection_tables import print_tables, to_markdown
from stetholm.corpus.recording import DIAGNOSIS, FINDING, STATUS
from stetholm.corpus.sheet import draw_sheet
from stetholm.corpus.survey import Known, Survey, read_survey
from stetholm.corpus.suspicions import group_rejects, suspicions
from stetholm.runs import corpus_uri, record, run_uri
from stetholm.settings import Settings
from stetholm.storage import Storage

JOB = "inspect"
ALL = "all"
"""Key of what holds for all splits together."""

Counts = dict[str, dict[str, int]]
"""How many, by value and split."""


def inspect_corpus(settings: Settings, storage: Storage) -> dict[str, Any]:
    """Inspect the corpus of the settings, print what it holds, and write it to the run's folder.

    Returns:
        ``output`` (URI of the folder), ``pairs``, ``recordings``, ``patients``, ``hours``, ``warnings`` (how many),
        ``sheet`` (URI of the picture).

    Raises:
        CorpusError: there is no corpus, nothing is in it, or a part of it is missing or damaged.
    """
    survey = read_survey(storage, corpus_uri(settings, storage))
    found = figures(survey)
    output = run_uri(settings, storage, JOB)
    sheet = f"{output}/sheet.png"
    storage.write_bytes(sheet, draw_sheet(survey, storage, settings.run.seed))
    storage.write_json(f"{output}/inspection.json", found)
    storage.write_text(f"{output}/inspection.md", to_markdown(found, "sheet.png"))
    print_tables(found)
    print(f"tables: {output}/inspection.md\nsheet: {sheet}")
    local = storage.on_this_machine(sheet)
    if local is not None:
        print(f"  on this machine: {local}")
    totals = {key: found[key] for key in ("pairs", "recordings", "patients", "hours")}
    result = {"output": output, **totals, "warnings": len(found["warnings"]), "sheet": sheet}
    record(settings, storage, JOB, result, {"corpus": survey.manifest.sha256})
    return result


def figures(survey: Survey) -> dict[str, Any]:
    """All that ``inspection.json`` holds; the same corpus gives the same figures."""
    recordings = list(survey.recordings.values())
    found: dict[str, Any] = {
        "corpus": survey.uri,
        "manifest_sha256": survey.manifest.sha256,
        "created": survey.manifest.created,
        "catalogue": bool(survey.catalogue),
        "splits": survey.splits,
        "pairs": survey.manifest.rows,
        **_amount(recordings),
        "pairs_by": {column: _pairs_by(survey, column) for column in ("task", "dataset", "distribution")},
        "recordings_by": _recordings_by(survey),
        "sampling_rates": _count(survey.members, lambda one: str(one.sampling_rate), key=float),
        "labels": _labels(survey),
        "unlabelled": {split: sum(not one.labels for one in members) for split, members in survey.members.items()},
        "status_by_dataset": _status_by_dataset(recordings),
        "events": _events(survey),
        "answers": {split: _answers(rows) for split, rows in survey.pairs.items()},
        "rejected": survey.manifest.rejected,
        "rejects": group_rejects(survey.rejects),
    }
    return {**found, "warnings": suspicions(survey, found)}


def _amount(recordings: Iterable[Known]) -> dict[str, Any]:
    """Recordings, their patients, and hours of sound (of those whose length is known; None: of none)."""
    listed = list(recordings)
    seconds = [one.seconds for one in listed if one.seconds is not None]
    return {
        "recordings": len(listed),
        "patients": len({(one.dataset, one.patient) for one in listed if one.patient is not None}),
        "hours": round(sum(seconds) / 3600, 3) if seconds else None,
    }


def _recordings_by(survey: Survey) -> dict[str, dict[str, dict[str, Any]]]:
    """Amounts and durations by dataset and split, each with ``all``."""
    datasets = sorted({one.dataset for one in survey.recordings.values()})
    groups = {**survey.members, ALL: list(survey.recordings.values())}
    return {
        dataset: {
            split: {**_amount(chosen), **_durations(chosen)}
            for split, members in groups.items()
            if (chosen := [one for one in members if dataset in (ALL, one.dataset)])
        }
        for dataset in (ALL, *datasets)
    }


def _durations(recordings: Iterable[Known]) -> dict[str, Any]:
    """Seconds: shortest, median, 95 %, longest, and how many recordings go on after what a model hears."""
    seconds = np.array([one.seconds for one in recordings if one.seconds is not None], dtype=np.float64)
    if not len(seconds):
        return {"min": None, "median": None, "p95": None, "max": None, "longer_than_clip": None}
    low, middle, high, top = np.quantile(seconds, (0.0, 0.5, 0.95, 1.0))
    return {
        "min": round(float(low), 3),
        "median": round(float(middle), 3),
        "p95": round(float(high), 3),
        "max": round(float(top), 3),
        "longer_than_clip": int((seconds > CLIP_SECONDS).sum()),
    }


def _pairs_by(survey: Survey, column: str) -> Counts:
    return _count(survey.pairs, lambda row: row[column])


def _count(
    groups: Mapping[str, Iterable[Any]], value: Callable[[Any], str | None], key: Callable[[str], Any] = str
) -> Counts:
    """How many of each group have each value; None is not counted. Values in the order of ``key``."""
    counters = {name: Counter(value(one) for one in group) for name, group in groups.items()}
    values = {found for counter in counters.values() for found in counter if found is not None}
    return {found: {name: counter[found] for name, counter in counters.items()} for found in sorted(values, key=key)}


def _labels(survey: Survey) -> dict[str, dict[str, Any]]:
    """By label name: its values by split (the commonest first), and the share of the rarest class in each split."""
    names = {name for one in survey.recordings.values() for name in one.labels or {}}
    first = {STATUS: 0, FINDING: 1, DIAGNOSIS: 2}
    return {name: _label(survey, name) for name in sorted(names, key=lambda name: (first.get(name, 3), name))}


def _label(survey: Survey, name: str) -> dict[str, Any]:
    counts = _count(survey.members, lambda one: (one.labels or {}).get(name))
    values = dict(sorted(counts.items(), key=lambda item: -sum(item[1].values())))
    totals = {split: sum(by_split[split] for by_split in values.values()) for split in survey.splits}
    rarest = {
        split: round(min(by_split[split] for by_split in values.values()) / total, 4) if total else None
        for split, total in totals.items()
    }
    return {"values": values, "rarest_share": rarest}


def _status_by_dataset(recordings: Iterable[Known]) -> Counts:
    """A dataset of one status only would let a model tell the status from the dataset's sound."""
    groups: dict[str, list[Known]] = {}
    for one in recordings:
        groups.setdefault(one.dataset, []).append(one)
    by_status = _count(groups, lambda one: (one.labels or {}).get(STATUS))
    return {
        dataset: {status: counts[dataset] for status, counts in by_status.items()}
        for dataset in sorted(groups)
        if any(counts[dataset] for counts in by_status.values())
    }


def _events(survey: Survey) -> dict[str, dict[str, Any]]:
    """By label: events (of them in what a model hears in evaluation), seconds, and recordings with one by split."""
    found: dict[str, dict[str, Any]] = {}
    for split, members in survey.members.items():
        for one in members:
            for label in {event["label"] for event in one.events}:
                entry = found.setdefault(label, {"events": 0, "in_clip": 0, "seconds": 0.0, "recordings": {}})
                entry["recordings"][split] = entry["recordings"].get(split, 0) + 1
    for one in survey.recordings.values():
        for event in one.events:
            entry = found[event["label"]]
            entry["events"] += 1
            entry["in_clip"] += event["start"] < CLIP_SECONDS
            entry["seconds"] = round(entry["seconds"] + event["end"] - event["start"], 3)
    return dict(sorted(found.items(), key=lambda item: (-item[1]["events"], item[0])))


def _answers(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """By task: how many different texts there are, and how common the commonest are."""
    tasks: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        tasks.setdefault(row["task"], []).append(row)
    return {task: _texts(tasks[task]) for task in sorted(tasks)}


def _texts(rows: list[Mapping[str, Any]]) -> dict[str, Any]:
    answers, texts = Counter(row["response"] for row in rows), Counter(map(_both, rows))
    commonest, often = answers.most_common(1)[0]
    return {
        "pairs": len(rows),
        "questions": len({row["instruction"] for row in rows}),
        "answers": len(answers),
        "commonest": commonest,
        "commonest_share": round(often / len(rows), 4),
        "same_question_and_answer_share": round(max(texts.values()) / len(rows), 4),
    }


def _both(row: Mapping[str, Any]) -> Hashable:
    return row["instruction"], row["response"]
