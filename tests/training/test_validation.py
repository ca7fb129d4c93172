"""Evaluation of checkpoints: what is measured, when, and where it goes."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray.train
import torch
from ray.experimental.internal_kv import _internal_kv_put

from stetholm.corpus.shards import write_corpus
from stetholm.errors import UserError
from stetholm.model.checkpoint import load_checkpoint
from stetholm.settings import Settings
from stetholm.storage import Storage
from stetholm.training.ending import evaluate_the_rest
from stetholm.training.entry import RayReport
from stetholm.training.history import History
from stetholm.training.job import StageJob
from stetholm.training.lineage import Lineage
from stetholm.training.stage import train_stage
from stetholm.training.validation import (
    Validated,
    evaluate_checkpoint,
    is_due,
    measure,
    require_validation,
    unmeasured,
)
from tests.evaluation.corpus import rows

HELD_OUT = rows(range(8, 11))


@pytest.fixture(scope="module")
def corpora(storage: Storage) -> dict[str, str]:
    uris = {name: storage.join("test-validation", name) for name in ("corpus", "pairs", "no-val")}
    write_corpus(storage, uris["corpus"], {"train": rows(range(6)), "val": HELD_OUT}, inputs={}, row_group_rows=4)
    write_corpus(storage, uris["no-val"], {"train": rows(range(2))}, inputs={})
    extra = [pa.field("chosen", pa.string()), pa.field("rejected", pa.string())]
    preferred = {
        split: [row | {"chosen": row["response"], "rejected": "I cannot tell."} for row in some]
        for split, some in (("train", rows(range(3))), ("val", HELD_OUT))
    }
    write_corpus(storage, uris["pairs"], preferred, inputs={}, extra=extra)
    return uris


@pytest.fixture(scope="module")
def tree(language_model: Path, corpora: dict[str, str]):
    def make(run: str, **train: Any) -> Settings:
        return Settings.model_validate(
            {
                "run": {"name": run},
                "corpus": {"uri": corpora["corpus"]},
                "model": {"language_model": str(language_model)},
                "train": {"batch_size": 2, "log_every": 1, "precision": "fp32", **train},
            }
        )

    return make


@pytest.fixture(scope="module")
def make_job(storage: Storage, tree, corpora):
    def make(stage: Any, run: str, parent: str | None = None, corpus: str | None = None, **train: Any) -> StageJob:
        uri = corpora[corpus or ("pairs" if stage == "dpo" else "corpus")]
        return StageJob(stage, tree(run, **train), storage, uri, Lineage(stage, run, parent, uri, "sha", "code"))

    return make


def trained(job: StageJob, folder: Path) -> Path:
    """A checkpoint of it, on this machine."""
    from stetholm.training.worker import run_stage

    run_stage(job, None, job.checkpoints().report)
    latest = job.checkpoints().latest()
    assert latest is not None
    job.storage.download_dir(latest.uri, folder)
    return folder


def by_hand(storage: Storage, folder: Path) -> tuple[float, float]:
    """Mean negative log-likelihood and accuracy over the response tokens of the held-out rows, one row at a time."""
    from stetholm.corpus.stream import CorpusStream, read_features

    model, processor = load_checkpoint(str(folder), storage, dtype=torch.float32)
    losses, right = [], []
    uri = storage.join("test-validation", "corpus")
    for row in CorpusStream(storage, uri, split="val", seed=0).rows():
        pair = processor.encode_pair(
            row["instruction"], row["response"], recordings=row["recordings"], dataset=row["dataset"]
        )
        ids, labels = torch.tensor([pair["input_ids"]]), torch.tensor(pair["labels"])[1:]
        features = torch.from_numpy(read_features(row).copy())
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), input_features=features).logits[0, :-1]
        kept = labels != -100
        losses += torch.nn.functional.cross_entropy(logits[kept].float(), labels[kept], reduction="none").tolist()
        right += (logits[kept].argmax(-1) == labels[kept]).tolist()
    return sum(losses) / len(losses), sum(right) / len(right)


@pytest.fixture(scope="module")
def sft(ray_cluster: None, alone: None, make_job, tmp_path_factory: pytest.TempPathFactory) -> tuple[StageJob, Path]:
    job = make_job("sft", "measured", max_steps=3, trackers=())
    return job, trained(job, tmp_path_factory.mktemp("sft"))


def test_the_loss_is_that_of_each_held_out_response_token(sft, storage):
    numbers = measure(*sft)
    loss, accuracy = by_hand(storage, sft[1])
    assert numbers == {"val_loss": pytest.approx(loss, abs=1e-4), "val_accuracy": pytest.approx(accuracy, abs=1e-4)}
    assert measure(*sft) == numbers  # no dropout, no augmentation, the same rows


def test_fewer_rows_may_be_measured(sft, make_job):
    few = make_job("sft", "measured", evaluate_samples=2)
    assert measure(few, sft[1])["val_loss"] != measure(*sft)["val_loss"]


def test_pairs_have_a_margin_once_the_policy_has_left_its_reference(sft, make_job, tmp_path):
    parent = sft[0].checkpoints().latest().uri
    still = make_job("dpo", "still", parent, max_steps=1, learning_rate=1e-12)
    numbers = measure(still, trained(still, tmp_path / "still"))
    assert numbers["val_loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert numbers["val_margin"] == pytest.approx(0, abs=1e-5)
    moved = make_job("dpo", "moved", parent, max_steps=4, learning_rate=1e-2, warmup_fraction=0.0)
    numbers = measure(moved, trained(moved, tmp_path / "moved"))
    assert numbers["val_margin"] > 0 and numbers["val_loss"] < math.log(2)
    assert 0 < numbers["val_accuracy"] <= 1


@pytest.mark.parametrize(
    ("step", "every", "due"), [(10, 1, True), (10, 2, False), (20, 2, True), (23, 2, True), (20, None, False)]
)
def test_which_checkpoints_are_due(make_job, step, every, due):
    job = make_job("sft", "due", evaluate_every=every, checkpoint_every=10)
    assert is_due(job, step) is due


def test_without_held_out_rows_it_is_refused_before_anything_starts(make_job):
    require_validation(make_job("sft", "x", corpus="no-val"))
    require_validation(make_job("sft", "x", evaluate_every=1))
    with pytest.raises(UserError, match=r"sft\.evaluate_every: s3://.*no-val has no val split: ingest one"):
        require_validation(make_job("sft", "x", corpus="no-val", evaluate_every=1))
    with pytest.raises(UserError, match=r"dpo\.evaluate_every: .*prefer\.val_pairs"):
        require_validation(make_job("dpo", "x", corpus="no-val", evaluate_every=1))


def test_results_come_in_once(storage):
    uri = storage.join("test-validation", "results")
    history = History([{"step": 2, "val_loss": 3.0}])
    come_in = Validated(storage, uri, history)
    assert come_in() == []
    for step in (2, 4):
        storage.write_json(f"{uri}/validation/{step:08d}.json", {"step": step, "val_loss": 1.0})
    assert come_in() == [{"step": 4, "val_loss": 1.0}]


def test_what_was_due_and_is_not_there_is_known(make_job, storage):
    job = make_job("sft", "some", evaluate_every=2, checkpoint_every=10)
    for step in (20, 23):
        storage.write_json(f"{storage.join('runs', 'some', 'sft', 'validation')}/{step:08d}.json", {"step": step})
    assert unmeasured(job, 60) == [40, 60]
    assert unmeasured(job, 50) == [40, 50]  # the last one always
    assert unmeasured(job, 47) == [40, 47]


def test_at_the_end_it_is_evaluated_or_named(sft, make_job, storage, capfd):
    """Training made no evaluation here: three were due, and of the first two steps there is no checkpoint."""
    latest = sft[0].checkpoints().latest()
    late = make_job("sft", "measured", max_steps=3, checkpoint_every=1, evaluate_every=1, trackers=())
    evaluate_the_rest(late, latest, {})
    told = capfd.readouterr().err
    assert (
        "sft: not evaluated, so the best is chosen among the others: step 1 (its checkpoint is gone), step 2 (" in told
    )
    assert unmeasured(late, 3) == [1, 2]
    found = storage.read_json(f"{storage.join('runs', 'measured', 'sft', 'validation')}/00000003.json")
    assert found["val_loss"] == pytest.approx(measure(*sft)["val_loss"], abs=1e-4)
    storage.remove_dir(storage.join("runs", "measured", "sft", "validation"))
    evaluate_the_rest(replace(late, corpus="s3://stetholm/nowhere"), latest, {})
    assert "step 3 (" in capfd.readouterr().err


def test_nobody_waits_for_an_evaluation_when_training_leaves(ray_cluster, make_job, monkeypatch):
    reported = []
    monkeypatch.setattr(ray.train, "report", lambda numbers, **more: reported.append(more["validation"]))
    job = make_job("sft", "leaves", evaluate_every=1, checkpoint_every=10)
    for numbers in ({"step": 10}, {"step": 13}, {"step": 13, "left": True}):
        RayReport(job, job.checkpoints())(numbers, Path("folder"))
    assert reported == [True, True, False]
    _internal_kv_put("stetholm/test-leave", "told so")
    assert evaluate_checkpoint(None, job, leave="stetholm/test-leave") == {}


@pytest.mark.long
def test_checkpoints_are_evaluated_beside_training_and_the_best_is_the_output(ray_cluster, storage, tree):
    # At such a rate it gets worse with each step.
    settings = tree("beside", max_steps=3, checkpoint_every=1, evaluate_every=1, learning_rate=1.0, keep_checkpoints=1)
    result = train_stage(settings, storage, "sft")
    uri = storage.join("runs", "beside", "sft")
    records = [storage.read_json(file) for file in sorted(storage.list(f"{uri}/validation"))]
    assert [record["step"] for record in records] == [1, 2, 3]
    best = min(records, key=lambda record: record["val_loss"])["step"]
    assert result["output"] == result["best"] == f"{uri}/checkpoint_{best:08d}"
    assert result["steps"] == 3
    assert storage.exists(f"{result['output']}/config.json")
    assert storage.read_bytes(f"{uri}/curves.png").startswith(b"\x89PNG")
    events = b"".join(storage.read_bytes(file) for file in storage.list(f"{uri}/tensorboard/validation"))
    assert events.count(b"accuracy") == 3
