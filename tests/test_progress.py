"""Progress: sparse lines in a log, a bar on a terminal."""

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stetholm.progress import LINE_SECONDS, Progress


class Clock:
    """A clock that tests move."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def lines(stream):
    return stream.getvalue().splitlines()


def test_a_log_gets_lines_with_numbers_and_eta(clock):
    stream = io.StringIO()
    with Progress("sft", 120, stream=stream, clock=clock) as progress:
        progress.update(0)
        clock.now += 65
        progress.update(40, loss=1.23412, samples_per_s=3.2, stage="x")
    assert lines(stream) == ["sft  0/120", "sft  40/120  loss 1.234  samples/s 3.2  stage x  eta 2:10"]


def test_unknown_total_and_unit(clock):
    stream = io.StringIO()
    with Progress("ingest", None, "pairs", stream=stream, clock=clock) as progress:
        progress.update(7)
    assert lines(stream) == ["ingest  7 pairs"]


def test_the_last_state_is_always_written_once(clock):
    stream = io.StringIO()
    with Progress("sft", 3, stream=stream, clock=clock) as progress:
        for done in (1, 2, 3):
            progress.update(done)
    assert [line.split()[1] for line in lines(stream)] == ["1/3", "3/3"]


def test_also_when_the_work_fails(clock):
    stream = io.StringIO()
    with pytest.raises(ValueError), Progress("sft", 3, stream=stream, clock=clock) as progress:
        progress.update(1)
        progress.update(2)
        raise ValueError
    assert lines(stream)[-1].startswith("sft  2/3")


def test_a_continued_job_counts_its_pace_from_where_it_went_on(clock):
    stream = io.StringIO()
    with Progress("sft", 120, stream=stream, clock=clock) as progress:
        progress.update(100)
        clock.now += 10
        progress.update(110)
    assert lines(stream)[-1].endswith("eta 0:10")


def test_long_times_show_hours(clock):
    stream = io.StringIO()
    with Progress("sft", 101, stream=stream, clock=clock) as progress:
        progress.update(0)
        clock.now += 60
        progress.update(1)
    assert lines(stream)[-1].endswith("eta 1:40:00")


def test_nothing_done_writes_nothing(clock):
    stream = io.StringIO()
    with Progress("sft", 3, stream=stream, clock=clock):
        pass
    assert stream.getvalue() == ""


@given(st.lists(st.floats(0, 5), min_size=1, max_size=50))
def test_lines_are_sparse_and_the_last_is_complete(pauses):
    stream, clock = io.StringIO(), Clock()
    with Progress("x", len(pauses), stream=stream, clock=clock) as progress:
        for done, pause in enumerate(pauses, start=1):
            clock.now += pause
            progress.update(done)
    assert len(lines(stream)) <= sum(pauses) / LINE_SECONDS + 2
    assert lines(stream)[-1].split()[1] == f"{len(pauses)}/{len(pauses)}"


def test_a_terminal_gets_a_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    stream = Terminal()
    with Progress("sft", 4, "steps", stream=stream) as progress:
        progress.update(4, loss=0.5)
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())
    assert "sft" in plain and "4/4" in plain and "steps" in plain and "loss 0.5" in plain
