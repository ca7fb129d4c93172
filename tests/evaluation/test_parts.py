"""What jobs have made already, by key: each kind of value comes back, whoever wrote it."""

import numpy as np
import pytest

from stetholm.evaluation.generation import AnswerStore
from stetholm.evaluation.parts import VectorStore
from stetholm.evaluation.verdicts import Verdict, VerdictStore

VECTORS = {"x": np.array([0.5, -1.0], np.float32), "y": np.zeros(0, np.float32)}
ANSWERS = {"x": ["a murmur", ""], "y": []}
VERDICTS = {"x": Verdict(None, None, "no answer"), "y": Verdict(True, 0.75)}


@pytest.mark.parametrize(("kind", "values"), [(VectorStore, VECTORS), (AnswerStore, ANSWERS), (VerdictStore, VERDICTS)])
def test_values_come_back_from_several_writers_until_they_are_removed(storage, kind, values):
    uri = storage.join("test-parts", kind.__name__)
    first, second = kind(storage, uri), kind(storage, uri)
    assert first.load() == {}
    first.add({"x": values["x"]})
    assert kind(storage, uri).load() == {}  # not written yet
    first.flush()
    first.flush()
    second.add({"y": values["y"]})
    second.flush()
    found = kind(storage, uri).load()
    assert found.keys() == values.keys() and len(storage.list(uri)) == 2
    for key, value in values.items():
        np.testing.assert_equal(found[key], value)
    first.remove()
    assert kind(storage, uri).load() == {}


def test_work_is_written_as_it_goes_on(storage, monkeypatch):
    monkeypatch.setattr(VectorStore, "flush_seconds", 0.0)
    store = VectorStore(storage, storage.join("test-parts", "often"))
    store.add(VECTORS)
    assert store.load().keys() == VECTORS.keys()
