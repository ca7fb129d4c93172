"""The three stages for real: two Ray Train workers under DeepSpeed, a tiny language model, the embedded storage."""

from __future__ import annotations

import pyarrow as pa
import pytest
import torch
from ray.train import ControllerError
from safetensors.torch import load_file

from stetholm.corpus.ledger import Ledger
from stetholm.corpus.shards import write_corpus
from stetholm.errors import UserError
from stetholm.job import find_user_error
from stetholm.model.checkpoint import load_checkpoint
from stetholm.runs import record
from stetholm.settings import Settings
from stetholm.training import stage
from stetholm.training.stage import train_stage
from tests.evaluation.corpus import rows

RECORDINGS = 6


@pytest.fixture(scope="module")
def train(storage, ray_cluster, language_model):
    """Runs a stage of one run, with some settings."""
    corpus = storage.join("test-training", "corpus")
    split = rows(range(RECORDINGS))
    write_corpus(storage, corpus, {"train": split}, inputs={"source": "test"}, row_group_rows=4)
    pairs = storage.join("test-training", "pairs")
    preferred = [
        row | {"chosen": row["response"], "rejected": "I cannot tell."} for row in split[:3]
    ]  # uneven: two for one worker, one for the other
    extra = [pa.field("chosen", pa.string()), pa.field("rejected", pa.string())]
    write_corpus(storage, pairs, {"train": preferred}, inputs={"source": "test"}, extra=extra)

    def run(stage: str, run_name: str = "training", **settings):
        tree = Settings.model_validate(
            {
                "run": {"name": run_name, **settings.pop("run", {})},
                "corpus": {"uri": settings.pop("corpus", corpus)},
                "model": {"language_model": str(language_model), **settings.pop("model", {})},
                "train": {"batch_size": 2, "log_every": 1, **settings},
            }
        )
        if stage == "dpo":
            record(tree, storage, "prefer", {"output": pairs}, {})
        return train_stage(tree, storage, stage)

    run.samples = len(split)
    return run


def ledger_of(storage, result) -> Ledger:
    state = storage.read_json(f"{result['output']}/training_state/state.json")
    return Ledger.from_json(state["progress"]["ledger"])


def test_alignment_moves_the_encoder_and_sees_each_sample_once(storage, train):
    result = train("align", epochs=1)
    ledger = ledger_of(storage, result)
    # Alignment takes the responses that describe the sound: here the Identification rows, one a recording.
    assert ledger.epochs == [0]
    assert len(ledger.seen(0)) == result["samples"] == RECORDINGS
    assert result["steps"] == 2  # 3 rows a rank, 2 a batch
    assert result["loss_first"] > 0


@pytest.mark.long
def test_sft_starts_from_alignment_and_can_be_prolonged(storage, train):
    first = train("sft", epochs=1)
    assert first["samples"] == train.samples
    lineage = storage.read_json(f"{first['output']}/lineage.json")
    assert "/align/" in lineage["parent"] and lineage["stage"] == "sft"

    assert train("sft", epochs=1, log_every=3) == first  # done: nothing is trained again
    with pytest.raises(UserError, match=r"already done 'sft' with other settings \(learning_rate\): give the old"):
        train("sft", epochs=1, learning_rate=1e-5)

    second = train("sft", epochs=2)
    assert second["output"] != first["output"]
    assert second["samples"] == 2 * train.samples
    assert second["steps"] > first["steps"]
    assert second["loss_first"] == first["loss_first"]
    ledger = ledger_of(storage, second)
    assert ledger.seen(0) == ledger.seen(1) and len(ledger.seen(0)) == train.samples


@pytest.mark.long
def test_dpo_trains_projector_and_its_own_adapter_only(storage, train, tmp_path):
    train("sft", epochs=2)  # done already, unless this test runs alone
    result = train("dpo", epochs=1)
    assert result["samples"] == 3
    files = {}
    parent = storage.read_json(f"{result['output']}/lineage.json")["parent"]
    for name, uri in (("sft", parent), ("dpo", result["output"])):
        storage.download_dir(uri, tmp_path / name)
        files[name] = load_file(tmp_path / name / "model.safetensors")
    changed = {
        key for key, value in files["dpo"].items() if key not in files["sft"] or not value.equal(files["sft"][key])
    }
    assert any(".lora_B.dpo." in key for key in changed)
    assert any(key.startswith("model.projector.") for key in changed)
    assert not [key for key in changed if key.startswith("model.audio_tower.") or ".default." in key]


def test_a_checkpoint_is_whole_and_loads(storage, train):
    output = train("sft", epochs=2)["output"]
    names = {uri.removeprefix(f"{output}/") for uri in storage.list(output)}
    assert {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "processor_config.json",
        "README.md",
        "settings.yaml",
        "lineage.json",
        "training_state/state.json",
        "training_state/optimizer.safetensors",
    } <= names
    assert "secret" not in storage.read_text(f"{output}/settings.yaml")
    card = storage.read_text(f"{output}/README.md")
    assert "| task: Identification | 6 |" in card and "| `epochs` | 2 |" in card and "/align/" in card
    model, processor = load_checkpoint(output, storage)
    inputs = processor(text="What is heard?", audio=[torch.zeros(16000).numpy() + 0.1], sampling_rate=16000)
    assert model.generate(**inputs, max_new_tokens=3).shape[0] == 1


def test_another_corpus_under_the_same_name_is_refused(storage, train):
    with pytest.raises(UserError, match=r"run 'training' has already done 'sft' with other inputs \(parent\)"):
        train("sft", model={"init_from": train("align", epochs=1)["output"] + "/"})


class Reached(Exception):
    """The workers would start."""


@pytest.fixture
def begun(storage, train, language_model, monkeypatch):
    """Runs SFT with some settings where it has been begun with others, up to where the workers would start."""

    def fit(job):
        if not job.checkpoints().whole():
            folder = job.checkpoints().uri_of(4)
            storage.write_json(
                f"{folder}/lineage.json", {"parent": job.lineage.parent, "settings": job.lineage.settings}
            )
            storage.write_json(f"{folder}/config.json", {})
        raise Reached

    monkeypatch.setattr(stage, "fit", fit)

    def run(**settings):
        with pytest.raises(Reached):
            train("sft", run_name="begun")
        train("sft", run_name="begun", **settings)

    return run


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model": {"audio_encoder": "ast"}}, "audio_encoder"),
        ({"weight_decay": 0.1, "augmentation": "none"}, "augmentation, weight_decay"),
        ({"run": {"seed": 1}}, "seed"),
    ],
)
def test_a_begun_stage_does_not_go_on_from_another_start_or_with_another_loss(begun, changes, named):
    with pytest.raises(UserError, match=rf"has begun 'sft' with other settings \({named}\): give the old ones, or"):
        begun(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"learning_rate": 1e-5, "max_grad_norm": 0.1, "max_tokens": 300},
        {"epochs": 3, "workers": 1, "batch_size": 1, "gradient_checkpointing": True, "precision": "fp32"},
        {"corpus": "corrected"},
    ],
)
def test_it_goes_on_with_what_a_message_may_have_said_to_change(begun, storage, changes):
    if "corpus" in changes:
        changes = {"corpus": storage.join("test-training", "corrected")}
        write_corpus(storage, changes["corpus"], {"train": rows(range(2))}, inputs={})
    with pytest.raises(Reached):
        begun(**changes)


def test_a_begun_stage_has_its_parent(begun, storage):
    begun_from = storage.join("test-training", "elsewhere")
    storage.write_json(f"{begun_from}/config.json", {})
    with pytest.raises(UserError, match=r"has begun 'sft' with other settings \(parent\)"):
        begun(model={"init_from": begun_from})


def test_a_checkpoint_that_is_not_there(train, storage):
    with pytest.raises(UserError, match="no checkpoint at s3://stetholm/nowhere"):
        train("sft", run_name="lost", model={"init_from": "s3://stetholm/nowhere"})


def test_dpo_without_anything_to_start_from(train):
    with pytest.raises(UserError, match=r"run jobs/sft\.py"):
        train("dpo", run_name="fresh")


@pytest.mark.long
def test_a_sample_longer_than_allowed_is_named(train):
    """And not tried again, as failures are."""
    with pytest.raises(ControllerError) as caught:
        train("sft", run_name="long", max_tokens=16, max_failures=3)
    error = find_user_error(caught.value)
    assert str(error).partition("\n")[0].endswith("raise it, or leave the sample out of the corpus")


def test_a_corpus_that_only_measures_is_not_trained_on_unasked(storage, train):
    """Out-of-domain rows are for evaluation."""
    uri = storage.join("test-training", "ood")
    write_corpus(storage, uri, {"train": [row | {"distribution": "OOD"} for row in rows(range(2))]}, inputs={})
    with pytest.raises(UserError, match=r"holds nothing that sft trains on: in-domain rows"):
        train("sft", run_name="ood", corpus=uri)
