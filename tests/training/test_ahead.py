"""mDPO's reference computed ahead: the same numbers as in the step, computed once, kept beside the pairs."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pytest
import torch

from stetholm.corpus.shards import write_corpus
from stetholm.errors import UserError
from stetholm.runs import record
from stetholm.settings import Settings
from stetholm.training.ahead import ensure_references
from stetholm.training.batches import BatchPlan
from stetholm.training.collate import Collate
from stetholm.training.job import StageJob
from stetholm.training.lineage import Lineage
from stetholm.training.planning import epochs_to_plan, planned_steps, share_of
from stetholm.training.references import ReferenceStore, references
from stetholm.training.response_head import install_response_head
from stetholm.training.rows import training_rows
from stetholm.training.stage import train_stage
from stetholm.training.trainers import reference_logps
from stetholm.training.worker import prepare_of, stage_model
from tests.evaluation.corpus import make_checkpoint, rows

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def job(storage, tmp_path_factory) -> StageJob:
    pairs = storage.join("test-ahead", "pairs")
    split = [
        row | {"chosen": row["response"], "rejected": f"I cannot tell {'at all ' * number}."}
        for number, row in enumerate(rows(range(4)))
    ]
    extra = [pa.field(name, pa.string()) for name in ("chosen", "rejected")]
    manifest = write_corpus(storage, pairs, {"train": split}, inputs={"source": "test"}, extra=extra, row_group_rows=4)
    parent = make_checkpoint(storage, storage.join("test-ahead", "sft"), tmp_path_factory.mktemp("ahead"))
    settings = Settings.model_validate(
        {
            "train": {"precision": "fp32", "epochs": 2},
            "dpo": {"reference": "ahead"},
            "model": {"lora": {"targets": ["q_proj"]}},
        }
    )
    lineage = Lineage("dpo", "ahead", parent, pairs, manifest.sha256, "test")
    return StageJob("dpo", settings, storage, pairs, lineage)


def with_settings(job: StageJob, **dpo) -> StageJob:
    train = job.settings.train.model_copy(update={"epochs": dpo.pop("epochs", 2)})
    changed = job.settings.model_copy(update={"train": train, "dpo": job.settings.dpo.model_copy(update=dpo)})
    return replace(job, settings=changed)


def in_the_step(job: StageJob) -> dict[tuple[int, str], tuple[float, ...]]:
    """What a step with adapters off would score."""
    model, processor = stage_model(job, None)
    install_response_head(model)
    prepare, collate = prepare_of(job, processor), Collate("dpo", processor)
    found = {}
    for row in training_rows(job, epochs=2).rows():
        scores = reference_logps(model, collate([row | prepare(row)]))
        found[row["epoch"], row["sample_id"]] = tuple(scores.tolist())
    return found


@pytest.mark.long
def test_ahead_is_what_the_step_would_score_and_is_kept(job, storage):
    with pytest.raises(UserError, match="is not there"):
        references(job, 2)
    ensure_references(job)
    ahead, expected = references(job, 2), in_the_step(job)
    assert ahead.keys() == expected.keys()
    for key, scores in expected.items():
        torch.testing.assert_close(torch.tensor(ahead[key]), torch.tensor(scores), rtol=1e-5, atol=1e-5)
    samples = {sample for _, sample in ahead}
    assert {ahead[0, sample][2] for sample in samples} != {ahead[1, sample][2] for sample in samples}
    assert {ahead[0, sample][:2] for sample in samples} == {ahead[1, sample][:2] for sample in samples}

    store = ReferenceStore(job)
    before = storage.stamps(store.uri)
    ensure_references(with_settings(job, beta=0.1, learning_rate=1e-4))  # what it does not depend on
    assert storage.stamps(store.uri) == before
    longer = with_settings(job, epochs=3)
    ensure_references(longer)
    after = storage.stamps(store.uri)
    assert len(after) == 3 and before.items() <= after.items()  # only the new epoch was scored
    assert ReferenceStore(with_settings(job, chosen="reference")).uri != store.uri


def test_a_step_with_adapters_off_asks_for_none(job):
    assert references(with_settings(job, reference="adapters-off"), 2) is None


def test_the_outline_is_the_stream_without_sounds(job):
    stream = training_rows(job, epochs=2, rank=1, world_size=2)
    outlined, read = list(stream.outline()), list(stream.rows())
    names = ("epoch", "sample_id", "recordings", "instruction", "chosen", "rejected", "dataset")
    assert [[row[name] for name in names] for row in outlined] == [[row[name] for name in names] for row in read]
    assert "features" not in outlined[0] and "audio" not in outlined[0]


@pytest.mark.parametrize("plan", [BatchPlan(2), BatchPlan(1, tokens_per_batch=768)])
def test_steps_are_planned_exactly(job, plan):
    prepare = prepare_of(job, stage_model(job, None)[1])
    made = []
    for rank in range(2):
        stream = training_rows(job, epochs=3, rank=rank, world_size=2)
        made.append(len(list(plan.batches(row | prepare(row) for row in stream.rows()))))
    planned = [
        planned_steps(training_rows(job, epochs=3, rank=rank, world_size=2), plan, prepare, 2) for rank in range(2)
    ]
    if plan.tokens_per_batch:
        assert planned == made  # alone in its group, each process knows its own
    else:
        assert planned == [max(made)] * 2


def test_epochs_to_plan(job):
    samples = training_rows(job).rows_of(0)
    dpo = job.settings.dpo.model_copy(update={"max_steps": samples})
    limited = replace(job, settings=job.settings.model_copy(update={"dpo": dpo}))
    assert epochs_to_plan(job, 2) == 2
    assert epochs_to_plan(limited, 1) == 2  # as many steps as samples, of two samples each
    assert share_of(30, 1.5) == 23
    assert share_of(15, 1.5, left=1) == 8  # one epoch has been made
    assert share_of(3, 1.5, left=0.2) == share_of(0, 2, left=0) == 0  # more than that, or all


@pytest.mark.long
def test_the_stage_with_all_of_it(job, storage):
    """Two Ray Train workers: the reference ahead, batches of tokens, ZeRO 3 and checkpoints."""
    settings = Settings.model_validate(
        {
            "run": {"name": "ahead"},
            "model": {"init_from": job.lineage.parent, "lora": {"targets": ["q_proj"]}},
            "train": {
                "precision": "fp32",
                "epochs": 2,
                "log_every": 1,
                "zero_stage": 3,
                "gradient_checkpointing": True,
            },
            "dpo": {"reference": "ahead", "tokens_per_batch": 768, "learning_rate": 1e-3},
        }
    )
    record(settings, storage, "prefer", {"output": job.corpus}, {})
    result = train_stage(settings, storage, "dpo")
    assert result["samples"] == 2 * training_rows(job).rows_of(0)
    state = storage.read_json(f"{result['output']}/training_state/state.json")["progress"]
    assert state["step"] == state["steps"] == result["steps"]  # planned exactly
