"""What answers lose when the recording is withheld, shuffled or degraded."""

import json
import math

import numpy as np
import pytest
import torch

from stetholm.corpus.derived import unpack_log_mel
from stetholm.errors import UserError
from stetholm.evaluation import explain as job
from stetholm.evaluation import grounding
from stetholm.evaluation.examples import read_rows
from stetholm.evaluation.grounding_compare import Measured, compare_grounding
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


# --- two checkpoints side by side ---


def measured(logps, uri="s3://a", shuffled="r9", answer="reference"):
    """A measurement of two patients with two examples each: (as it is, withheld, shuffled, degraded) an example."""
    rows = [
        {"sample_id": f"s{number}", "dataset": "d", "patient": f"p{number // 2}", "recording_ids": ["r"],
         "shuffled": [shuffled],
         **{f"{answer}_logp_{name}": one for name, one in zip(grounding.CONDITIONS, row, strict=True)}}
        for number, row in enumerate(logps)
    ]  # fmt: skip
    return Measured(uri, f"{uri}/checkpoint", rows)


def test_paired_differences_of_two_checkpoints():
    ours = measured([(-1, -2, -4, -2), (-1, -2, -4, -2), (-1, -2, -4, -4), (-1, -2, math.nan, -4)])
    theirs = measured([(-2, -3, -3, -2.5)] * 4, "s3://b")
    found = compare_grounding(ours, theirs, draws=300, seed=0)["answers"]["reference"]
    assert (found["logp"]["difference"], found["logp"]["interval"]) == (1, [1, 1])
    degraded = found["degraded"]
    assert (degraded["ours"], degraded["theirs"], degraded["difference"]) == (2.0, 0.5, 1.5)
    assert degraded["interval"] == [0.5, 2.5]  # draws of two patients: both the first, one of each, both the second
    assert found["withheld"]["interval"] == [0, 0]
    assert (found["shuffled"]["ours"], found["shuffled"]["theirs"]) == (3, 1)  # of the three that both have


@pytest.mark.parametrize(
    ("theirs", "says"),
    [
        (measured([(-1, -2, -3, -4)] * 3), "not of the same examples"),
        (measured([(-1, -2, -3, -4)] * 4, shuffled="r8"), "not of the same examples"),
        (measured([(-1, -2, -3, -4)] * 4, answer="own"), "no answer in common"),
    ],
)
def test_what_is_not_paired_is_refused(theirs, says):
    with pytest.raises(UserError, match=says):
        compare_grounding(measured([(-1, -2, -3, -4)] * 4), theirs, 300, 0)


def test_a_finished_measurement_is_held_against_another_checkpoints(
    storage, uri, folder, ray_cluster, capsys, monkeypatch, tmp_path
):
    theirs = storage.join("test-grounding/theirs")
    storage.upload_dir(save_tiny(tmp_path, seed=1), theirs)
    job.explain(settings(uri, theirs, "run.name=ground-theirs", "explain.grounding=reference"), storage)
    job.explain(settings(uri, folder, "run.name=ground-ours", "explain.grounding=reference"), storage)
    monkeypatch.setattr(job, "ground", None)  # nothing may be measured again
    chosen = settings(uri, folder, "run.name=ground-ours", "explain.grounding=reference",
                      f"explain.compare_to={theirs}")  # fmt: skip
    result = job.explain(chosen, storage)
    pair = [table(storage, {"output": storage.join(f"runs/{run}/explain")}) for run in ("ground-ours", "ground-theirs")]
    lost = [np.mean([r["reference_logp_audio"] - r["reference_logp_shuffled"] for r in rows]) for rows in pair]
    value, low, high = result["grounding_comparison"]["reference"]["shuffled"]
    assert value == pytest.approx(lost[0] - lost[1], abs=1e-6) and low <= value <= high
    assert storage.read_text(f"{result['output']}/comparison.md") in capsys.readouterr().out
    with pytest.raises(UserError, match=r"explain.compare_to: there is no measurement of grounding at .*folder"):
        job.explain(settings(uri, folder, "explain.compare_to=s3://stetholm/folder"), storage)
    with pytest.raises(UserError, match="compares grounding"):
        job.explain(settings(uri, folder, f"explain.compare_to={theirs}", "explain.grounding=none"), storage)
