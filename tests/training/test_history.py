"""The curve as data: kept with a checkpoint, up to its step."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stetholm.training.history import FILE, History, from_lines, to_lines


def test_a_checkpoint_has_what_was_known_at_its_step(tmp_path):
    history = History()
    for step in (1, 5, 10):
        history.add({"step": step, "time": 1.5, "loss": 1 / step})
    history.add({"step": 5, "time": 2.5, "val_loss": 0.4})
    history.write(tmp_path, step=5)
    again = History.read(tmp_path)
    assert [record["step"] for record in again.training()] == [1, 5]
    assert again.validation() == [{"step": 5, "time": 2.5, "val_loss": 0.4}]


def test_there_may_be_none(tmp_path):
    assert History.read(None).records == [] == History.read(tmp_path).records
    assert (tmp_path / FILE).parts[-2] == "training_state"


@given(st.lists(st.fixed_dictionaries({"step": st.integers(0, 99), "loss": st.floats(allow_nan=False)})))
def test_lines_come_back_as_they_were(records):
    assert from_lines(to_lines(records)) == records
