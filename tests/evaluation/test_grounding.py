"""What answers lose when the recording is withheld, shuffled or degraded."""

import json
import math

import numpy as np
import pytest
import torch

from stetholm.corpus.derived import unpack_log_mel
from stetholm.evaluation import explain as job
from stetholm.evaluation import grounding
from stetholm.evaluation.examples import read_rows
from stetholm.model import load_checkpoint
from stetholm.model.checkpoint import save_checkpoint
from stetholm.model.explain import Clip, attention
from stetholm.model.explain.scoring import Answered, answer_logps
from stetholm.settings import load_settings
from tests.corpus.inspected import make
from tests.evaluation.corpus import rows
from tests.serving.tiny import save_tiny, tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def uri(storage):
    return make(storage, "grounding", {"test": rows(range(6))})


def settings(uri, checkpoint, *more):
    chosen = [f"model.init_from={checkpoint}", f"corpus.uri={uri}", "explain.max_new_tokens=6", "explain.examples=1",
              "explain.window=0.5", "explain.hop=0.25", "explain.draws=200"]  # fmt: skip
    return load_settings(overrides=[*chosen, *more], environ={})


def table(storage, result):
    return storage.read_table(f"{result['output']}/grounding.parquet").to_pylist()


def test_drops_of_both_answers_with_intervals_and_nothing_twice(storage, uri, folder, ray_cluster, capsys, monkeypatch):
    chosen = settings(uri, folder, "run.name=ground-once", "explain.grounding_examples=8")
    result = job.explain(chosen, storage)
    assert result["grounding_examples"] == 8 and set(result["grounding"]) == {"own", "reference"}
    found = table(storage, result)
    assert len(found) == 8 and {row["task"] for row in found} == {"Classification", "Identification", "Comparison"}
    for kind, figures in result["grounding"].items():
        means = []
        for name in grounding.LOST:
            drop = np.mean([row[f"{kind}_logp_audio"] - row[f"{kind}_logp_{name}"] for row in found])
            value, low, high = figures[name]
            assert value == pytest.approx(drop, abs=1e-5) and low <= value <= high
            means.append(drop)
        assert figures["all"][0] == pytest.approx(np.mean(means), abs=1e-5)
    report = storage.read_json(f"{result['output']}/grounding.json")
    assert report["answers"]["own"]["drop"]["withheld"]["fell"] in [n / 8 for n in range(9)]
    assert "| the model's own |" in capsys.readouterr().out
    assert not [one for one in storage.list(result["output"]) if "/answers-" in one or "/scores-" in one]

    monkeypatch.setattr(job, "ground", None)  # nothing may be computed again
    assert job.explain(chosen, storage) == json.loads(json.dumps(result))


def test_scores_are_those_of_the_pictures_with_the_recordings_as_they_are(storage, uri, folder):
    model, processor = load_checkpoint(folder)
    (sample,) = [one for one in rows(range(6)) if one["task"] == "Comparison"]
    (row,) = read_rows(storage, uri, "test", ("sample_id", "log_mel", "instruction"), {sample["sample_id"]})
    mels = np.stack([unpack_log_mel(packed) for packed in row["log_mel"]])
    asked = [
        Answered(row["instruction"], "Audio 2 is louder.", mels, "heart-test"),
        Answered("What?", "No.", mels[:1]),
        Answered("What is it?", "Nothing.", mels[:0]),
    ]
    found = answer_logps(model, processor, asked, batch_size=2)
    for one, logp in zip(asked, found, strict=True):
        seen = attention(
            model, processor, one.instruction, [Clip(mel, 7.0) for mel in one.log_mels], answer=one.answer,
            dataset=one.dataset,
        )  # fmt: skip
        assert logp == pytest.approx(seen.logps.mean(), abs=1e-4)


@pytest.mark.long
def test_a_model_that_does_not_listen_loses_nothing(storage, uri, ray_cluster, tmp_path):
    model, processor = tiny_model()
    with torch.no_grad():
        model.model.projector.model[-1].weight.zero_()
    save_checkpoint(model, processor, tmp_path)
    chosen = settings(uri, tmp_path, "run.name=ground-deaf", "explain.grounding=reference")
    result = job.explain(chosen, storage)
    figures = result["grounding"]["reference"]
    for name in ("shuffled", "degraded"):
        assert figures[name] == pytest.approx([0, 0, 0], abs=1e-5)
    assert result["grounding_examples"] == 13 and set(result["grounding"]) == {"reference"}


@pytest.mark.long
def test_an_interrupted_measurement_goes_on(storage, uri, folder, ray_cluster, monkeypatch):
    chosen = settings(uri, folder, "run.name=ground-twice", "explain.grounding=reference")
    monkeypatch.setattr(grounding, "_report", None)
    with pytest.raises(TypeError):
        job.explain(chosen, storage)
    monkeypatch.undo()
    monkeypatch.setattr(grounding, "Scorer", None)
    monkeypatch.setattr(job, "load_checkpoint", None)
    assert job.explain(chosen, storage)["grounding_examples"] == 13


def test_an_example_without_another_recording_does_not_count():
    logps = {"audio": np.array([-1.0, -2.0]), "withheld": np.array([-2.0, -2.0]),
             "shuffled": np.array([math.nan, -4.0]), "degraded": np.array([-1.0, -2.0])}  # fmt: skip
    lost = grounding.drops(logps)
    assert lost["withheld"].tolist() == [1.0, 0.0] and math.isnan(lost["all"][0])
    assert lost["all"][1] == pytest.approx(2 / 3)
