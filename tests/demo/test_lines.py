"""Reading a job's log."""

import json

from hypothesis import given
from hypothesis import strategies as st

from stetholm.demo import lines


def test_progress_line_in_the_jobs_format():
    step = lines.progress("sft  40/120  loss 1.234  samples/s 3.2  eta 2:10")
    assert step == lines.Step("sft", 40, 120, "loss 1.234  samples/s 3.2")


def test_progress_without_a_total_and_without_numbers():
    assert lines.progress("ingest  12") == lines.Step("ingest", 12, None, "")
    assert lines.progress("evaluate: answers  3/8 questions  eta 0:05") == lines.Step("evaluate: answers", 3, 8, "")
    assert lines.progress("prefer candidates  3/8") == lines.Step("prefer candidates", 3, 8, "")


def test_a_workers_line_loses_its_prefix_and_colours():
    raw = "\x1b[36m(RayTrainWorker pid=4242, ip=192.0.2.7)\x1b[0m sft  1/2  loss 0.5\n"
    assert lines.plain(raw) == "sft  1/2  loss 0.5"
    assert lines.progress(lines.plain(raw)) == lines.Step("sft", 1, 2, "loss 0.5")


def test_other_lines_are_no_progress():
    for line in (
        "",
        "Loading weights",
        "2026-01-01 10:00:00,123\tINFO worker.py:1 -- Connected",
        "a 1/2",
        "done  soon",
    ):
        assert lines.progress(line) is None


@given(st.dictionaries(st.text(min_size=1), st.integers() | st.text() | st.floats(allow_nan=False)))
def test_a_result_line_is_read_back(held):
    assert lines.result("RESULT " + json.dumps(held)) == held


def test_what_only_looks_like_a_result_is_none():
    assert lines.result("RESULT {broken") is None
    assert lines.result("RESULT [1]") is None
    assert lines.result("the RESULT {}") is None


@given(st.text())
def test_any_line_can_be_read(line):
    plain = lines.plain(line)
    assert lines.result(plain) is None or plain.startswith("RESULT ")
    lines.progress(plain)
