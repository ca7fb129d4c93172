"""Inspection: the figures are those of the corpus, each doubt is said, and what is written is what was found."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from rich.console import Console

from stetholm.corpus.inspection import figures, inspect_corpus
from stetholm.corpus.inspection_tables import TABLE_ROWS, print_tables, to_markdown
from stetholm.corpus.manifest import CorpusError, Manifest
from stetholm.corpus.survey import read_survey
from stetholm.corpus.suspicions import group_rejects, shorten
from stetholm.errors import UserError
from stetholm.settings import Settings
from stetholm.storage import Storage
from tests.corpus.inspected import entry, make, row

NORMAL = {"status": "normal", "finding": "no added sounds"}
CRACKLES = {"status": "abnormal", "finding": "crackles"}


def inspected(storage: Storage, *corpus: Any, **options: Any) -> dict[str, Any]:
    return figures(read_survey(storage, make(storage, *corpus, **options)))


def printed(found: dict[str, Any]) -> str:
    text = io.StringIO()
    print_tables(found, Console(file=text, highlight=False))
    return text.getvalue()


def settings_for(uri: str, run: str) -> Settings:
    return Settings.model_validate({"corpus": {"uri": uri}, "run": {"name": run}})


@pytest.fixture(scope="module")
def good(storage: Storage) -> str:
    """Two datasets, six recordings, eight pairs, nothing wrong with them."""
    train = [row("a", 1, task="Classification", patient="p1"), row("a", 2, patient="p1"), row("b", 3, patient="p2")]
    train += [row("c", 4, dataset="hearts", distribution="OOD", patient="p1", sampling_rate=[2000], seconds=[2.0])]
    train += [row(["a", "b"], 5, task="Comparison", patient="p1+p2")]
    test = [row("d", 6, task="Classification", patient="p3"), row("e", 7, patient="p4")]
    test += [row(["f", "e"], 8, task="Comparison", patient="p4")]
    events = [{"start": 1.0, "end": 1.5, "label": "crackle"}, {"start": 2.0, "end": 3.0, "label": "crackle"}]
    later = {"start": 7.0, "end": 9.0, "label": "crackle"}
    catalogue = [
        entry("a", CRACKLES, patient="p1", events=[*events, later], seconds=20.0),
        entry("b", NORMAL, patient="p2"),
        entry("c", NORMAL, dataset="hearts", patient="p1", sampling_rate=2000, seconds=2.0),
        entry("d", CRACKLES, patient="p3", events=events[:1], seconds=4.0),
        entry("e", NORMAL, patient="p4"),
        entry("e", NORMAL, patient="p4"),  # one file read twice comes twice
        entry("f", {**NORMAL, "diagnosis": "no lung disease"}, patient="p4"),
    ]
    return make(storage, "good", {"train": train, "test": test}, catalogue)


def test_figures_of_a_good_corpus(storage: Storage, good: str) -> None:
    found = figures(read_survey(storage, good))
    assert found["warnings"] == []
    assert found["manifest_sha256"] == Manifest.load(storage, good).sha256
    totals = {key: found[key] for key in ("pairs", "recordings", "patients", "hours", "rejected", "catalogue")}
    hours = round((20 + 8 + 2 + 4 + 8 + 8) / 3600, 3)
    assert totals == {
        "pairs": 8, "recordings": 6, "patients": 5, "hours": hours, "rejected": 0, "catalogue": True,
    }  # fmt: skip
    assert found["pairs_by"] == {
        "task": {
            "Classification": {"train": 1, "test": 1},
            "Comparison": {"train": 1, "test": 1},
            "Report": {"train": 3, "test": 1},
        },
        "dataset": {"hearts": {"train": 1, "test": 0}, "lungs": {"train": 4, "test": 3}},
        "distribution": {"ID": {"train": 4, "test": 3}, "OOD": {"train": 1, "test": 0}},
    }
    assert found["sampling_rates"] == {"2000": {"train": 1, "test": 0}, "4000": {"train": 2, "test": 3}}
    assert found["status_by_dataset"] == {"hearts": {"abnormal": 0, "normal": 1}, "lungs": {"abnormal": 2, "normal": 3}}


def test_recordings_and_durations(storage: Storage, good: str) -> None:
    by = figures(read_survey(storage, good))["recordings_by"]
    assert {name: list(splits) for name, splits in by.items()} == {
        "all": ["train", "test", "all"], "hearts": ["train", "all"], "lungs": ["train", "test", "all"],
    }  # fmt: skip
    assert by["lungs"]["train"] == {
        "recordings": 2, "patients": 2, "hours": round(28 / 3600, 3), "min": 8.0, "median": 14.0, "p95": 19.4,
        "max": 20.0, "longer_than_clip": 2,
    }  # fmt: skip
    assert by["hearts"]["all"]["longer_than_clip"] == 0 and by["all"]["all"]["longer_than_clip"] == 4


def test_labels_and_events(storage: Storage, good: str) -> None:
    found = figures(read_survey(storage, good))
    assert list(found["labels"]) == ["status", "finding", "diagnosis"]
    assert found["labels"]["status"] == {
        "values": {"normal": {"train": 2, "test": 2}, "abnormal": {"train": 1, "test": 1}},
        "rarest_share": {"train": 0.3333, "test": 0.3333},
    }
    assert found["labels"]["diagnosis"]["rarest_share"] == {"train": None, "test": 1.0}
    assert found["events"] == {
        "crackle": {"events": 4, "in_clip": 3, "seconds": 4.0, "recordings": {"train": 1, "test": 1}}
    }
    assert found["unlabelled"] == {"train": 0, "test": 0}


def test_answers(storage: Storage) -> None:
    rows = [row("a", number, instruction="What?", response="This." if number < 2 else "That.") for number in range(3)]
    rows[1]["instruction"] = "And?"
    assert inspected(storage, "answers", {"train": rows, "test": [row("b")]})["answers"]["train"]["Report"] == {
        "pairs": 3, "questions": 2, "answers": 2, "commonest": "This.", "commonest_share": 0.6667,
        "same_question_and_answer_share": 0.3333,
    }  # fmt: skip


def one_each(**changes: Any) -> dict[str, list[dict[str, Any]]]:
    return {"train": [row("a", 1)], "test": [row("b", 2, **changes)]}


SUSPECT: dict[str, tuple[dict[str, Any], str]] = {
    "patient": (
        {"splits": {"train": [row("a", 1, patient="p1")], "test": [row(["b", "c"], 2, patient="p2+p1")]}},
        "1 patient is in both train and test, so scores flatter the model (lungs p1)",
    ),
    "catalogued-patient": (
        {"splits": one_each(), "catalogue": [entry("a", NORMAL, patient="x"), entry("b", NORMAL, patient="x")]},
        "1 patient is in both train and test, so scores flatter the model (lungs x)",
    ),
    "recording": (
        {"splits": {"train": [row("a", 1)], "val": [row("a", 2)], "test": [row("a", 3)]}},
        "1 recording is in train and val and test (a)",
    ),
    "twice-published": (
        {"splits": one_each(), "catalogue": [entry("a"), entry("a", patient="y"), entry("b")]},
        "1 recording is there under two names (lungs patient of a = lungs y)",
    ),
    "no-test": ({"splits": {"train": [row("a")]}}, "no test split: nothing to evaluate on"),
    "no-train": ({"splits": {"test": [row("a")]}}, "no train split: nothing to train on"),
    "task": (
        {"splits": one_each(task="Location")},
        "split train has no pairs of a task that others have: Location",
    ),
    "rejects": (
        {"splits": one_each(), "rejects": ["recording 1.wav: is not there", "recording a b.wav: is not there", "x"]},
        "3 pairs are left out by ingest: 2 × recording …: is not there; 1 × x",
    ),
    "unlabelled": (
        {"splits": one_each(), "catalogue": [entry("a", NORMAL), entry("b", None)]},
        "1 recording is without any label, beside labelled ones (test 1)",
    ),
    "missing-class": (
        {"splits": one_each(), "catalogue": [entry("a", NORMAL), entry("b", CRACKLES)]},
        "status 'abnormal' is missing in split train: 0 of 1 recordings",
    ),
    "short": ({"splits": one_each(seconds=[0.4])}, "1 recording is shorter than 1 s (b)"),
}  # fmt: skip


@pytest.mark.parametrize("name", SUSPECT)
def test_each_doubt_is_a_line(storage: Storage, name: str) -> None:
    corpus, line = SUSPECT[name]
    found = inspected(storage, f"suspect-{name}", **corpus)
    assert line in found["warnings"]
    assert line in printed(found) and line in to_markdown(found, "sheet.png")


def test_shares_are_doubted_from_ten_on(storage: Storage) -> None:
    names = [f"n{number}" for number in range(21)]
    train = [row(name, 0, instruction=f"What ({name})?", dataset=name[:2]) for name in names]
    test = [row("t", 1), row("u", 2)]
    labels = {name: CRACKLES if name == "n0" else NORMAL for name in names}
    catalogue = [entry(name, labels[name], dataset=name[:2], patient=name) for name in names]
    catalogue += [entry("t", NORMAL), entry("u", CRACKLES)]
    warnings = inspected(storage, "shares", {"train": train, "test": test}, catalogue)["warnings"]
    assert warnings == [
        "status 'abnormal' is rare in split train: 1 of 21 recordings",
        "all 11 recordings of n1 are normal: the dataset gives the status away",
        "one answer makes 100% of Report in split train (21 pairs): 'A sound (0).'",
    ]


def test_a_recording_without_a_patient_is_not_taken_for_one(storage: Storage) -> None:
    warnings = inspected(storage, "own-patient", {"train": [row("a", 1)], "test": [row("a", 2)]})["warnings"]
    assert warnings == ["1 recording is in both train and test (a)"]


def test_rejects_are_grouped_without_names_and_numbers() -> None:
    reasons = {
        "recording 1.wav: 0.2 s are too short": 1,
        "recording my file 2.wav: 7 s are too short": 2,
        "duplicate of /data/pairs.jsonl, line 12": 3,
        "duplicate of /data/pairs.jsonl, line 13": 4,
        "field 'split': Input should be 'train', 'val'": 5,
        "path '/etc/passwd' is absolute": 6,
    }
    assert list(group_rejects(reasons).items()) == [
        ("duplicate of an earlier line", 7),
        ("path '…' is absolute", 6),
        ("field 'split': Input should be 'train', 'val'", 5),
        ("recording …: … s are too short", 3),
    ]


def test_a_corpus_of_a_stage_has_no_catalogue(storage: Storage) -> None:
    rows = [{**row("a", 1), "chosen": "yes"}, {**row(["a", "b"], 2, patient="p"), "chosen": "no"}]
    found = inspected(storage, "stage", {"train": rows}, extra=[pa.field("chosen", pa.string())])
    assert (found["catalogue"], found["labels"], found["recordings"], found["patients"]) == (False, {}, 2, 2)
    assert found["recordings_by"]["lungs"]["train"]["median"] == 8.0
    assert "no catalogue" in printed(found) and "No catalogue" in to_markdown(found, "sheet.png")


def test_a_corpus_without_durations(storage: Storage) -> None:
    survey = read_survey(storage, make(storage, "no-seconds", one_each()))
    pairs = {split: [{**one, "seconds": None} for one in rows] for split, rows in survey.pairs.items()}
    found = figures(replace(survey, pairs=pairs))
    assert (found["hours"], found["recordings_by"]["lungs"]["train"]["median"]) == (None, None)
    assert "of 2 patients, - hours" in printed(found)


def test_tables_fit_a_terminal_and_a_log(storage: Storage) -> None:
    long = "a finding of so many words that no table has room for all of them"
    splits = {
        split: [row(f"{split}{number}", number, dataset=f"dataset-{number:02d}", response=long) for number in range(30)]
        for split in ("train", "val", "test")
    }
    catalogue = [
        entry(f"{split}{number}", {"finding": f"{number} {long}", "a|b": "<c>"}, dataset=f"dataset-{number:02d}")
        for split in splits
        for number in range(30)
    ]
    found = inspected(storage, "wide", splits, catalogue)
    lines = printed(found).splitlines()
    tables = lines[: next(number for number, line in enumerate(lines) if "warning" in line)]
    assert max(map(len, tables)) <= 100 and len(tables) < 6 * TABLE_ROWS
    assert "more rows in inspection.md" in "\n".join(tables) and "… 25 more" in "\n".join(tables)
    markdown = to_markdown(found, "sheet.png")
    assert "| dataset-29 | train |" in markdown and "a\\|b" in markdown and "![" in markdown


def test_the_outputs_are_written_and_written_again(
    storage: Storage, good: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = storage.stamps(good)
    first = inspect_corpus(settings_for(good, "inspect-good"), storage)
    output = storage.join("runs/inspect-good/inspect")
    assert first == {
        "output": output, "pairs": 8, "recordings": 6, "patients": 5, "hours": 0.014, "warnings": 0,
        "sheet": f"{output}/sheet.png",
    }  # fmt: skip
    out = capsys.readouterr().out
    assert f"\nsheet: {output}/sheet.png\n" in out
    local = Path(out.partition("on this machine: ")[2].splitlines()[0])
    assert local.read_bytes() == storage.read_bytes(f"{output}/sheet.png")
    names = ["inspection.json", "inspection.md", "result.json", "sheet.png"]
    assert storage.list(output) == [f"{output}/{name}" for name in names]
    contents = [storage.read_bytes(f"{output}/{name}") for name in names]
    assert inspect_corpus(settings_for(good, "inspect-good"), storage) == first
    assert [storage.read_bytes(f"{output}/{name}") for name in names] == contents
    assert storage.stamps(good) == before


def test_a_corpus_that_is_not_whole(storage: Storage) -> None:
    with pytest.raises(CorpusError, match="no corpus at"):
        read_survey(storage, storage.join("test-inspect/none"))
    uri = make(storage, "torn", one_each(), [entry("a"), entry("b")])
    manifest = Manifest.load(storage, uri)
    storage.fs.rm_file(storage.key(f"{uri}/{manifest.catalog[0]}"))
    with pytest.raises(UserError, match=r"nothing at .*/recordings/part-00000-\w{8}\.parquet"):
        read_survey(storage, uri)
    shard = f"{uri}/{manifest.split('test').shards[0].path}"
    storage.write_bytes(shard, b"no parquet at all")
    with pytest.raises(CorpusError, match=r"part-00000-\w{8}\.parquet cannot be read"):
        read_survey(storage, uri)
    storage.fs.rm_file(storage.key(shard))
    with pytest.raises(CorpusError, match=r"part-00000-\w{8}\.parquet is missing"):
        read_survey(storage, uri)
    with pytest.raises(CorpusError, match="holds no pairs"):
        read_survey(storage, make(storage, "empty", {"train": []}))


def test_shorten() -> None:
    assert shorten("one\ntwo", 7) == "one two" and shorten("one two", 5) == "one…"
