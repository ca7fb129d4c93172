"""The probe job from a corpus and a checkpoint in storage to the table."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from stetholm.corpus.shards import write_corpus
from stetholm.errors import UserError
from stetholm.evaluation.probing import features, probe
from stetholm.evaluation.probing.zero_shot import TextSimilarity, scores
from stetholm.settings import SettingsError, load_settings
from tests.corpus.inspected import make
from tests.evaluation.corpus import make_checkpoint, rows


@pytest.fixture(scope="module")
def overrides(storage, tmp_path_factory):
    checkpoint = make_checkpoint(storage, storage.join("test-probe/checkpoint"), tmp_path_factory.mktemp("tiny"))
    uri = make(storage, "probe", {"train": rows(range(12)), "test": rows(range(12, 20))})
    return [f"model.init_from={checkpoint}", f"corpus.uri={uri}", "probe.fit=[train]", "probe.folds=3",
            "probe.inner_folds=2", "probe.c=[0.1, 1.0]", "probe.trees=10", "probe.draws=100",
            "probe.max_new_tokens=4", "probe.encoders=[checkpoint, log-mel]"]  # fmt: skip


def settings(overrides, *more):
    return load_settings(overrides=[*overrides, *more], environ={})


@pytest.mark.long
def test_one_table_of_reports_and_features_made_once(storage, overrides, ray_cluster, capsys, monkeypatch):
    chosen = settings(overrides, "run.name=probe-once")
    result = probe.probe(chosen, storage)
    found = result["tasks"]["heart abnormal"]
    assert [(row["features"], row["method"], row["judged_on"], row["n"]) for row in found] == [
        ("report of the checkpoint", "zero-shot", "test", 8),
        ("the checkpoint's encoder", "logistic regression", "test", 8),
        ("the checkpoint's encoder", "logistic regression", "cross-validation", 20),
        *[("log-mel statistics", method, on, n)
          for method in ("logistic regression", "logistic regression, C = 1", "random forest")
          for on, n in (("test", 8), ("cross-validation", 20))],
    ]  # fmt: skip
    report = storage.read_json(f"{result['output']}/report.json")
    task = report["tasks"][0]
    assert task["classes"] == {"normal": 10, "abnormal": 10} and task["majority"] == 0.5
    assert all(row["accuracy"]["low"] <= row["accuracy"]["value"] <= row["accuracy"]["high"] for row in task["rows"])
    table = storage.read_table(f"{result['output']}/scores.parquet").to_pylist()
    for row in found:
        mine = [one for one in table if all(one[key] == row[key] for key in ("features", "method", "judged_on"))]
        hits = [["normal", "abnormal"][int(np.argmax(one["scores"]))] == one["class"] for one in mine]
        assert row["accuracy"] == pytest.approx(np.mean(hits), abs=1e-4)
    reports = storage.read_table(f"{result['output']}/reports.parquet")
    assert sorted(reports["recording_id"].to_pylist()) == sorted(f"r{number}" for number in range(12, 20))
    assert Image.open(io.BytesIO(storage.read_bytes(f"{result['output']}/table.png"))).format == "PNG"
    printed = capsys.readouterr().out
    assert "| the checkpoint's encoder | logistic regression | test | 8 | 8 |" in printed

    monkeypatch.setattr(features, "load_features", None)  # nothing may be computed again
    assert probe.probe(chosen, storage) == json.loads(json.dumps(result))
    with pytest.raises(UserError, match="other inputs"):
        probe.probe(settings(overrides, "run.name=probe-once", "probe.folds=4"), storage)


@pytest.mark.long
def test_features_of_an_interrupted_job_are_not_made_again(storage, overrides, ray_cluster, monkeypatch):
    chosen = settings(overrides, "run.name=probe-twice", "probe.zero_shot=false", "probe.encoders=[log-mel]")
    real = probe._report
    monkeypatch.setattr(probe, "_report", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        probe.probe(chosen, storage)
    monkeypatch.setattr(probe, "_report", real)
    monkeypatch.setattr(features, "Embedder", None)
    assert len(probe.probe(chosen, storage)["tasks"]["heart abnormal"]) == 6


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["probe.encoders=[wav2vec]"], "unknown encoder 'wav2vec'"),
        (["probe.encoders=[]", "probe.zero_shot=false"], "nothing to do"),
        (["probe.test=val"], "no rows in split 'val'"),
        (["probe.fit=[val]"], "no rows in split 'val'"),
        (["probe.folds=11"], "'normal' has 10 patients, fewer than probe.folds=11"),
        (["probe.text_model=./none"], "probe.text_model: './none' cannot be loaded"),
    ],
)
def test_bad_input_is_named(storage, overrides, ray_cluster, more, message):
    with pytest.raises(UserError, match=message):
        probe.probe(settings(overrides, "run.name=probe-bad", *more), storage)


def test_a_checkpoint_that_has_seen_the_test_split_is_refused(storage, overrides, ray_cluster, tmp_path):
    checkpoint = make_checkpoint(storage, storage.join("test-probe/seen"), tmp_path)
    corpus = settings(overrides).corpus.uri
    write_corpus(storage, f"{corpus}-other", {"train": rows(range(18, 20))}, inputs={"a": 1})
    storage.write_json(f"{checkpoint}/lineage.json", {"corpus": f"{corpus}-other", "parent": None, "settings": {}})
    with pytest.raises(UserError, match=r"trained on 2 patients and 2 recordings of split 'test'.*heart-test/r18"):
        probe.probe(settings(overrides, "run.name=probe-seen", f"model.init_from={checkpoint}"), storage)
    with pytest.raises(UserError, match=r"test-probe/seen was trained on 2 patients"):
        other = ["run.name=probe-other", "probe.zero_shot=false", f"probe.encoders=[{checkpoint}]"]
        probe.probe(settings(overrides, *other), storage)


def test_probes_are_not_judged_on_what_they_know(overrides):
    with pytest.raises(SettingsError, match="test 'train' is one of fit"):
        settings(overrides, "probe.test=train")


def test_statistics_need_no_checkpoint_but_reports_do(storage, overrides):
    bare = settings([one for one in overrides if "init_from" not in one], "run.name=probe-none")
    with pytest.raises(UserError, match="no finished checkpoint"):
        probe.probe(bare, storage)


def test_a_text_is_nearest_to_what_says_the_same():
    similarity = TextSimilarity()
    texts = ["The heart sound is normal.", "There is a loud murmur.", "The heart sound is normal."]
    others = ["A normal heart sound without a murmur.", "An abnormal heart sound with a loud murmur."]
    found = similarity(texts, others)
    assert found.shape == (3, 2) and np.allclose(found[0], found[2]) and (found.argmax(axis=1) == [0, 1, 0]).all()
    assert np.allclose(scores(found)[:, 1], found[:, 1] - found[:, 0])
    three = scores(np.array([[0.9, 0.3, 0.3]]))
    assert np.allclose(three, [[0.6, -0.3, -0.3]])
