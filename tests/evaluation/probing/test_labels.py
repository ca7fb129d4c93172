"""From what a corpus says to the class of each recording."""

import numpy as np
import pytest

from stetholm.errors import UserError
from stetholm.evaluation.probing.classes import diagnosis, read_classes
from stetholm.evaluation.probing.labels import choose_tasks, concepts, kind_of, read_corpus
from stetholm.settings import ProbeSettings
from tests.corpus.inspected import entry, make
from tests.evaluation.corpus import row

STATES = ("normal", "abnormal")


def rows(count, first=0):
    """One pair a recording, every second abnormal."""
    return [
        row([number], "Classification", "Is this normal?", f"The heart sound is {STATES[number % 2]}.")
        for number in range(first, first + count)
    ]


@pytest.fixture(scope="module")
def hearts(storage):
    return make(storage, "probe-hearts", {"train": rows(8), "test": rows(6, first=8)})


def tasks(storage, uri, **chosen):
    settings = ProbeSettings(fit=["train"], folds=2, **chosen)
    return choose_tasks(read_corpus(storage, uri, ["train", "test"]), read_classes(None, storage), settings, 0)


def test_answers_give_the_class_where_no_label_does(storage, hearts):
    (found,) = tasks(storage, hearts)
    assert found.task.name == "heart abnormal" and found.dropped == 0
    assert {one.recording_id: int(label) for one, label in zip(found.recordings, found.y, strict=True)} == {
        f"r{number}": number % 2 for number in range(14)
    }
    assert found.of(["test"]).patients == sorted(f"heart-test/r{number}" for number in range(8, 14))
    assert found.patients_by_class() == {"normal": 7, "abnormal": 7}


def test_labels_count_more_than_answers_and_patients_are_the_catalogues(storage):
    labels = {True: {"status": "normal", "diagnosis": "no lung disease"}, False: {"diagnosis": "COPD"}}
    catalogue = [entry(f"r{n}", labels[n % 4 < 2], patient=f"p{n // 2}", split="x") for n in range(14)]
    uri = make(storage, "probe-lungs", {"train": rows(8), "test": rows(6, first=8)}, catalogue)
    found = {one.task.name: one for one in tasks(storage, uri)}
    assert set(found) == {"COPD from lung sounds", "lung diagnosis"}
    copd = found["COPD from lung sounds"]
    assert [int(label) for label in copd.y] == [int(one.concepts >= {"copd"}) for one in copd.recordings]
    assert sorted(set(copd.patients)) == [f"lungs/p{n}" for n in range(7)]
    names = [each.name for each in found["lung diagnosis"].task.classes]
    assert names == ["copd", "healthy"]


def test_what_is_said_of_a_recording():
    assert "copd" in concepts({"diagnosis": "COPD"}, ["The lungs are healthy."])
    assert concepts({"diagnosis": "at risk of COPD"}, []) == frozenset()
    assert concepts({"diagnosis": "no respiratory disease"}, []) == {"healthy"}
    valve = concepts({"quality": "good"}, ["The heart sound is abnormal.", "Mitral stenosis. A rumble is heard."])
    assert diagnosis(valve) == "mitral stenosis" and "abnormal" in valve
    assert diagnosis(concepts({}, ["The sound is normal."])) == "normal"
    assert diagnosis(concepts({}, ["Mitral stenosis and aortic stenosis."])) is None
    both = concepts({}, ["The heart sound is normal.", "The heart sound is abnormal."])
    assert {"normal", "abnormal"} <= both and diagnosis(both) is None
    assert [kind_of(*names) for names in (("heart-x", ""), ("coughvid", ""), ("coswara", "1/breathing.wav"))] == [
        "heart", "cough", "breath",
    ]  # fmt: skip


def test_a_draw_of_recordings_is_the_seeds(storage, hearts):
    (found,) = tasks(storage, hearts, max_recordings=4)
    (again,) = tasks(storage, hearts, max_recordings=4)
    assert len(found.recordings) == 8 and found.recordings == again.recordings and np.array_equal(found.y, again.y)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"tasks": ["murmurs"]}, "no task 'murmurs'; there are: heart abnormal"),
        ({"tasks": ["COPD from lung sounds"]}, "split train needs recordings of two classes, but has none"),
        ({"tasks": ["heart abnormal"], "folds": 9}, "'normal' has 7 patients, fewer than probe.folds=9"),
    ],
)
def test_what_cannot_be_probed_is_told(storage, hearts, chosen, message):
    settings = ProbeSettings(fit=["train"], **{"folds": 2, **chosen})
    with pytest.raises(UserError, match=message):
        choose_tasks(read_corpus(storage, hearts, ["train", "test"]), read_classes(None, storage), settings, 0)


def test_a_corpus_of_one_class_is_refused(storage):
    uri = make(storage, "probe-one", {"train": rows(6)[::2], "test": rows(6, first=6)[::2]})
    with pytest.raises(UserError, match=r"nothing to probe: heart abnormal: .*only 'normal'"):
        tasks(storage, uri)


def test_a_class_file_of_ones_own(storage, hearts, tmp_path):
    file = tmp_path / "classes.yaml"
    file.write_text(
        "instructions: {heart: Report.}\n"
        "tasks: {murmur: {kind: heart, classes: {silent: {labels: [normal], description: No murmur.},"
        " heard: {labels: [abnormal], description: A murmur.}}}}\n"
    )
    corpus, chosen = read_corpus(storage, hearts, ["train", "test"]), ProbeSettings(fit=["train"], folds=2)
    (found,) = choose_tasks(corpus, read_classes(str(file), storage), chosen, 0)
    assert found.task.name == "murmur" and found.task.classes[1].description == "A murmur."
    for text, message in (
        ("tasks: [", "is no YAML"),
        ("tasks: {}", "instructions: Field required"),
        ("instructions: {}\ntasks: {a: {kind: heart, classes: {b: {labels: [hum], description: x}}}}", "'hum' is no"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=message):
            read_classes(str(file), storage)
    with pytest.raises(UserError, match="no file nowhere"):
        read_classes("nowhere.yaml", storage)
