"""Job command lines, and why a job failed."""

import shlex

from hypothesis import given
from hypothesis import strategies as st

from stetholm.demo import lines, submit


@given(st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1)))
def test_overrides_reach_the_job_as_they_were_given(overrides):
    words = shlex.split(submit.command("jobs/sft.py", overrides))
    assert words[:2] == ["python", "jobs/sft.py"]
    assert words[2::2] == ["--set"] * len(overrides)
    assert words[3::2] == overrides


def test_progress_result_and_other_lines_are_told_apart():
    steps: list[lines.Step] = []
    followed = submit.Followed()
    for line in ("Connected.", "sft  1/2  loss 3", "", 'RESULT {"job": "sft"}'):
        followed.take(line, steps.append)
    assert steps == [lines.Step("sft", 1, 2, "loss 3")]
    assert followed.result == {"job": "sft"}
    assert followed.tail == ["Connected."]


def test_a_jobs_last_words_say_why_it_failed():
    followed = submit.Followed()
    for line in ("Connected.", "ingest: no such file: pairs.jsonl"):
        followed.take(line, lambda step: None)
    assert submit.why(followed, "Job entrypoint command failed") == "ingest: no such file: pairs.jsonl"
    assert submit.why(submit.Followed(), "no worker node") == "no worker node"
