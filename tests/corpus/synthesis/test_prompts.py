"""The prompts and what they tell."""

from pathlib import Path
from typing import get_args

import pytest

from stetholm.corpus.recording import DIAGNOSIS, FINDING, STATUS
from stetholm.corpus.synthesis.plan import Planned
from stetholm.corpus.synthesis.prompts import Prompts, Turn, file_of
from stetholm.errors import UserError
from stetholm.settings import Task
from tests.corpus.synthesis.known import recording

LABELS = {STATUS: "abnormal", FINDING: "fine crackles", DIAGNOSIS: "asthma", "age": "71", "severity": "mild"}


def user(task, *recordings, prompts=None):
    messages = (prompts or Prompts.load()).messages(Planned(task, recordings, "train"))
    assert [message["role"] for message in messages] == ["system", "user"]
    return messages[1]["content"]


@pytest.mark.parametrize("task", get_args(Task))
def test_every_task_has_its_prompt_with_the_facts(task):
    recordings = [recording(labels=LABELS)] * (2 if task == "Comparison" else 1)
    text = user(task, *recordings)
    assert text.count("fine crackles") == len(recordings) and "posterior left chest" in text and "$" not in text
    assert "71" not in text and "severity: mild" in text


def test_what_is_not_known_is_not_told():
    text = user("Classification", recording(site=None, labels={STATUS: "normal"}))
    assert "site:" not in text and "finding:" not in text and "None" not in text


def test_an_answer_that_was_not_usable_is_shown_with_the_reason():
    planned = Planned("Report", (recording(),), "train")
    messages = Prompts.load().messages(planned, [Turn("old", "too old"), Turn("a poem", "the reply is a poem")])
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert messages[2]["content"] == "a poem" and "the reply is a poem" in messages[3]["content"]


def test_prompts_of_ones_own_take_the_place_of_the_packages(tmp_path: Path):
    (tmp_path / file_of("Differential Diagnosis")).write_text("Of $facts: what else?")
    own = Prompts.load(str(tmp_path))
    assert user("Differential Diagnosis", recording(), prompts=own).startswith("Of sound: lung")
    assert user("Report", recording(), prompts=own) == user("Report", recording())
    assert own.sha256 != Prompts.load().sha256 == Prompts.load().sha256


@pytest.mark.parametrize(
    ("text", "says"),
    [("$facts and $labels", "has a .* that is none of"), ("Costs $ 5, $facts", "has a"), ("Write it.", "does not say")],
)
def test_a_prompt_that_cannot_be_filled_in_is_refused(tmp_path: Path, text, says):
    (tmp_path / "report.txt").write_text(text)
    with pytest.raises(UserError, match=f"synthesize.prompts: report.txt {says}"):
        Prompts.load(str(tmp_path))


def test_a_folder_without_prompts_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="holds none of"):
        Prompts.load(str(tmp_path))
