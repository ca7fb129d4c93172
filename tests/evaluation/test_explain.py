"""The explain job from a corpus and a checkpoint in storage to pictures and numbers."""

import io
import json

import numpy as np
import pytest
import soundfile
from PIL import Image

from stetholm import runs
from stetholm.errors import UserError
from stetholm.evaluation import explain as job
from stetholm.model.explain import Clip, Timeline
from stetholm.settings import SettingsError, load_settings
from tests.corpus.inspected import entry, make
from tests.evaluation.corpus import make_checkpoint, rows

WHEEZE = {"start": 0.25, "end": 0.75, "label": "wheeze"}
BREATH = {"start": 0.0, "end": 1.0, "label": "inspiration"}


@pytest.fixture(scope="module")
def overrides(storage, tmp_path_factory):
    checkpoint = make_checkpoint(storage, storage.join("test-explain/checkpoint"), tmp_path_factory.mktemp("tiny"))
    catalogue = [entry(f"r{number}", {"status": "abnormal"}, events=[WHEEZE, BREATH]) for number in range(3)]
    uri = make(storage, "explain", {"test": rows(range(4))}, catalogue)
    return [f"model.init_from={checkpoint}", f"corpus.uri={uri}", "explain.max_new_tokens=6", "explain.window=0.5",
            "explain.hop=0.25", "explain.grounding=none"]  # fmt: skip


def settings(overrides, *more):
    return load_settings(overrides=[*overrides, *more], environ={})


def test_one_example_a_task_with_what_is_known_of_its_recordings(storage, overrides, capsys, monkeypatch):
    chosen = settings(overrides, "run.name=explain-once", "explain.examples=3")
    result = job.explain(chosen, storage)
    assert result["output"] == runs.run_uri(chosen, storage, "explain") and result["examples"] == 3
    assert 0 < result["attention_on_audio"] < 1
    report = storage.read_json(f"{result['output']}/explain.json")
    assert {one["task"] for one in report["examples"]} == {"Classification", "Identification", "Comparison"}
    for one in report["examples"]:
        assert one["explained"] == "own" and one["reference"] != one["answer"]
        assert np.allclose(np.sum(one["attention"]["weights"], axis=1), 1, atol=1e-3)
        assert [span["name"] for span in one["attention"]["spans"]][-1] == "response"
        for recording in one["recordings"]:
            assert recording["starts"] == [0.0, 0.25, 0.5] and len(recording["by_second"]) == 1
            known = recording["recording_id"] != "r3"
            assert recording["events"] == ([WHEEZE, BREATH] if known else [])
            assert set(recording["by_label"]) == ({"wheeze", "inspiration"} if known else set())
            if known:
                assert recording["annotated"]["time"] == pytest.approx(0.5, abs=0.03)
        for picture in one["pictures"]:
            assert Image.open(io.BytesIO(storage.read_bytes(f"{result['output']}/{picture}"))).format == "PNG"
    assert len(next(one for one in report["examples"] if one["task"] == "Comparison")["recordings"]) == 2
    printed = capsys.readouterr().out
    assert f"{result['output']}/{report['examples'][0]['pictures'][0]}" in printed
    assert not [uri for uri in storage.list(result["output"]) if "/parts-" in uri]

    monkeypatch.setattr(job, "load_checkpoint", None)  # nothing may be computed again
    assert job.explain(chosen, storage) == json.loads(json.dumps(result))
    assert capsys.readouterr().out == printed
    with pytest.raises(UserError, match="other inputs"):
        job.explain(settings(overrides, "run.name=explain-once", "explain.examples=2"), storage)


def test_an_interrupted_job_goes_on_where_it_was(storage, overrides, monkeypatch):
    chosen = settings(overrides, "run.name=explain-twice", "explain.examples=2", "explain.answer=reference")
    real, done = job._explain_case, []

    def failing(case, *more):
        if done:
            raise KeyboardInterrupt
        done.append(case.name)
        return real(case, *more)

    monkeypatch.setattr(job, "_explain_case", failing)
    with pytest.raises(KeyboardInterrupt):
        job.explain(chosen, storage)
    later = []
    monkeypatch.setattr(job, "_explain_case", lambda case, *more: later.append(case.name) or real(case, *more))
    result = job.explain(chosen, storage)
    report = storage.read_json(f"{result['output']}/explain.json")
    assert len(later) == 1 and {*done, *later} == {one["name"] for one in report["examples"]}
    assert all(one["answer"] == one["reference"] for one in report["examples"])


def test_examples_that_are_named(storage, overrides):
    wanted = rows(range(4))[3]["sample_id"]
    result = job.explain(settings(overrides, "run.name=explain-named", f"explain.sample_ids={wanted[:12]}"), storage)
    (one,) = storage.read_json(f"{result['output']}/explain.json")["examples"]
    assert one["name"].endswith(wanted[:8]) and one["instruction"] == rows(range(4))[3]["instruction"]


def test_recordings_of_ones_own(storage, overrides, tmp_path):
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, 6000)
    soundfile.write(tmp_path / "a.wav", sound, 4000)
    storage.write_bytes(storage.join("test-explain/b.wav"), (tmp_path / "a.wav").read_bytes())
    files = f"explain.audio=[{tmp_path / 'a.wav'}, {storage.join('test-explain/b.wav')}]"
    result = job.explain(
        settings(overrides, "run.name=explain-own", files, "explain.question=Are these two alike?"), storage
    )
    assert "evidence_in_events" not in result
    (one,) = storage.read_json(f"{result['output']}/explain.json")["examples"]
    assert one["instruction"] == "Are these two alike?" and one["reference"] is None
    assert [recording["seconds"] for recording in one["recordings"]] == [1.5, 1.5]
    assert one["recordings"][1]["file"].startswith("s3://")
    other = np.random.default_rng(1).uniform(-0.5, 0.5, 6000)
    soundfile.write(tmp_path / "a.wav", other, 4000)
    with pytest.raises(UserError, match=r"other inputs \(audio\)"):
        job.explain(
            settings(overrides, "run.name=explain-own", files, "explain.question=Are these two alike?"), storage
        )


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["explain.audio=nowhere.wav", "explain.question=Hm?"], "no recording at nowhere.wav"),
        (["explain.audio=cluster.yaml", "explain.question=Hm?"], "cluster.yaml: not a readable"),
        (["explain.question=Hm?"], "needs recordings: set explain.audio"),
        (["explain.split=val"], "test"),
        (["explain.sample_ids=xyz"], "'xyz' begins the id of no example of split 'test'"),
        (["explain.sample_ids=['']"], "begins the id of no example"),
    ],
)
def test_bad_input_is_named(storage, overrides, more, message):
    with pytest.raises(UserError, match=message):
        job.explain(settings(overrides, "run.name=explain-bad", *more), storage)


def test_a_question_and_settings_that_contradict(storage, overrides, tmp_path):
    soundfile.write(tmp_path / "a.wav", np.ones(4000) * 0.1, 4000)
    own = [f"explain.audio={tmp_path / 'a.wav'}"]
    with pytest.raises(UserError, match="needs a question"):
        job.explain(settings(overrides, *own), storage)
    with pytest.raises(UserError, match="needs examples of a corpus"):
        job.explain(settings(overrides, *own, "explain.question=Hm?", "explain.answer=reference"), storage)
    with pytest.raises(SettingsError, match="hop 2 is longer than window 1"):
        settings(["explain.hop=2"])


def test_what_every_breath_has_is_no_finding():
    starts = np.arange(13) * 0.5
    evidence = np.where(starts == 3.0, 1.0, 0.0).astype(np.float32)[:, None]
    line = Timeline(Clip(np.ones((64, 218), np.float32), 7.0), starts, starts + 1, evidence)
    wheeze = {"start": 3.0, "end": 4.0, "label": "wheeze"}
    found = job.evidence_inside(line, [wheeze, {"start": 0.0, "end": 3.0, "label": "inspiration"}])
    assert found["annotated"] == {"evidence": 1.0, "time": pytest.approx(1 / 7, abs=0.01)}
    assert found["by_label"]["inspiration"]["evidence"] == 0.0
    assert job.evidence_inside(line, [{**wheeze, "start": 8.0, "end": 9.0}]) == {"by_label": {}, "annotated": None}
    for label in ("S1", "no added sounds", "rubbing"):
        assert job.evidence_inside(line, [{**wheeze, "label": label}])["annotated"] is None
