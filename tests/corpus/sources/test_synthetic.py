"""The embedded corpus: balanced, seeded, split by patient, in StethoBench's schema."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stetholm.audio.decode import decode
from stetholm.audio.features import log_mel
from stetholm.audio.resample import resample
from stetholm.corpus.sources.synthetic import corpus_pairs, plan_corpus, write_synthetic_corpus
from stetholm.settings import SyntheticSettings, Task

SMALL = SyntheticSettings(patients=12, seconds=2.0)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic_corpus(SMALL, 7, tmp_path_factory.mktemp("corpus"))


def names(row: dict[str, Any]) -> list[str]:
    return [row["filename"]] if isinstance(row["filename"], str) else row["filename"]


def test_rows_follow_the_schema_and_their_files_decode(written: Path) -> None:
    for row in rows(written):
        assert row["dataset"] in ("heart-synthetic", "lung-synthetic") and row["distribution"] == "ID"
        assert row["task"] in get_args(Task) and row["split"] in ("train", "val", "test")
        assert len(names(row)) == (2 if row["task"] == "Comparison" else 1)
        for name in names(row):
            sound = decode((written.parent / name).read_bytes())
            assert sound.seconds == pytest.approx(2.0) and name.startswith(row["dataset"].split("-")[0])


def test_the_same_seed_writes_the_same_bytes(written: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    again = write_synthetic_corpus(SMALL, 7, tmp_path, lambda done, total: calls.append((done, total)))
    digest = {
        root: {
            p.relative_to(root): hashlib.sha256(p.read_bytes()).hexdigest() for p in root.rglob("*.*") if p.is_file()
        }
        for root in (written.parent, tmp_path)
    }
    assert digest[written.parent] == digest[tmp_path]
    assert calls == [(n + 1, len(calls)) for n in range(len(calls))]
    assert again == tmp_path / "pairs.jsonl"


def test_events_are_written_beside(written: Path) -> None:
    for row in rows(written.parent / "recordings.jsonl"):
        assert row["events"] and all(0 <= start < end <= 2.0 for start, end, _ in row["events"])


@settings(max_examples=25, deadline=None)
@given(st.integers(8, 400), st.integers(0, 2**32 - 1))
def test_the_plan_is_balanced_and_leaks_nothing(patients: int, seed: int) -> None:
    twins = plan_corpus(patients, seed)
    recordings = [recording for pair in twins for recording in pair]
    assert len({r.patient for r in recordings}) == patients - patients % 2
    assert len({r.filename for r in recordings}) == len(recordings)
    splits: dict[str, set[str]] = defaultdict(set)
    for normal, sick in twins:
        assert (normal.case.condition == "normal") and (sick.case.condition != "normal")
        for share in ("split", "device", "tasks"):
            assert getattr(normal, share) == getattr(sick, share)
        assert normal.case.site == sick.case.site and normal.case.kind == sick.case.kind
        splits[normal.patient].add(normal.split)
        splits[sick.patient].add(sick.split)
    assert all(len(split) == 1 for split in splits.values())


@settings(max_examples=10, deadline=None)
@given(st.integers(8, 400), st.integers(0, 2**32 - 1))
def test_every_kind_of_every_split_asks_every_task_within_the_split(patients: int, seed: int) -> None:
    twins = plan_corpus(patients, seed)
    split_of = {r.filename: r.split for pair in twins for r in pair}
    asked = defaultdict(set)
    pairs = list(corpus_pairs(twins, seed))
    for row in pairs:
        asked[row["dataset"], row["split"]].add(row["task"])
        assert {split_of[name] for name in names(row)} == {row["split"]}
        assert len(set(names(row))) == len(names(row))
    assert all(tasks == set(get_args(Task)) for tasks in asked.values())
    assert {split for _, split in asked} >= {"train", "test"}
    assert len(pairs) <= 5 * len(split_of)


def test_the_default_size() -> None:
    recordings = [r for pair in plan_corpus(SyntheticSettings().patients, 0) for r in pair]
    assert 450 <= len(recordings) <= 640
    shares = Counter(r.split for r in recordings)
    assert shares["train"] / len(recordings) == pytest.approx(0.7, abs=0.04)
    assert shares["test"] / len(recordings) == pytest.approx(0.2, abs=0.04)
    orders = [row for row in corpus_pairs(plan_corpus(320, 0), 0) if row["task"] == "Comparison"]
    first_normal = np.mean(["Audio 1 shows normal" in row["response"] for row in orders])
    assert 0.2 < first_normal < 0.5


def test_a_linear_probe_tells_normal_from_abnormal_on_held_out_patients(tmp_path: Path) -> None:
    """Ridge regression on the mean and deviation over time of each band: the signs can be learned."""
    write_synthetic_corpus(SyntheticSettings(patients=100, seconds=5.0), 3, tmp_path)
    truth = rows(tmp_path / "recordings.jsonl")
    images = []
    for row in truth:
        sound = decode((tmp_path / row["filename"]).read_bytes())
        images.append(log_mel(resample(sound.samples, sound.rate))[:, :156])
    inputs = np.stack([np.concatenate([image.mean(axis=1), image.std(axis=1)]) for image in images])
    target = np.array([1.0 if row["condition"] == "normal" else -1.0 for row in truth])
    train = np.array([row["split"] == "train" for row in truth])
    for kind in ("heart", "lung"):
        mine = np.array([row["kind"] == kind for row in truth])
        fit, held_out = mine & train, mine & ~train
        mean, deviation = inputs[fit].mean(axis=0), inputs[fit].std(axis=0) + 1e-6
        scaled = (inputs - mean) / deviation
        gram = scaled[fit].T @ scaled[fit] + 30.0 * np.eye(scaled.shape[1])
        weights = np.linalg.solve(gram, scaled[fit].T @ target[fit])
        assert np.mean(np.sign(scaled[held_out] @ weights) == target[held_out]) >= 0.8, kind
