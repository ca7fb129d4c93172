"""Coswara, in its own folders, naming and table format."""

from pathlib import Path

import pytest

from stetholm.corpus.recording import Recording
from stetholm.corpus.schema import Reject
from stetholm.corpus.sources.coswara import read
from stetholm.errors import UserError
from tests.corpus.sources.published import publish

HEADER = "id,a,covid_status,record_date,ep,g,l_c,l_l,l_s,rU\n"
ANNA, BELA, CARL = "vK2bLRNzllXNeyOMudnNSL5cfpG2", "bH6WQVvClVRDer6iOFvaGiz0luf1", "iV3Db6t1T8b7c5HQY2TwxIhjbzD3"
SOUNDS = (
    "breathing-deep", "breathing-shallow", "cough-heavy", "cough-shallow", "counting-fast", "counting-normal",
    "vowel-a", "vowel-e", "vowel-o",
)  # fmt: skip


def test_coughs_and_breaths_but_no_speech(tmp_path: Path) -> None:
    files = {f"20200413/{ANNA}/{sound}.wav": "" for sound in SOUNDS}
    files |= {f"20200820/{BELA}/cough-heavy.wav": "", f"20200820/{BELA}/metadata.json": "{}"}
    rows = f"{ANNA},24,healthy,2020-04-13,y,male,India,,Karnataka,n\n"
    rows += f"{BELA},25,positive_mild,2020-08-20,y,female,India,Mangalore,Karnataka,n\n"
    deep, shallow, heavy, light, ill = read(publish(tmp_path, {"combined_data.csv": HEADER + rows, **files}))
    assert deep == Recording(
        f"20200413/{ANNA}/breathing-deep.wav", "coswara", "breath", ANNA, "CC-BY-4.0",
        labels={"finding": "deep breathing", "diagnosis": "no respiratory disease", "age": "24", "sex": "male"},
    )  # fmt: skip
    assert [each.labels["finding"] for each in (shallow, heavy, light) if isinstance(each, Recording)] == [
        "shallow breathing", "heavy coughs", "shallow coughs",
    ]  # fmt: skip
    assert isinstance(ill, Recording) and ill.kind == "cough"
    assert (ill.labels["diagnosis"], ill.labels["severity"]) == ("COVID-19", "mild")


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("no_resp_illness_exposed", {"diagnosis": "no respiratory disease", "covid contact": "yes"}),
        ("resp_illness_not_identified", {"diagnosis": "respiratory disease other than COVID-19"}),
        ("recovered_full", {"history": "recovered from COVID-19"}),
        ("under_validation", {}),
    ],
)
def test_statuses(tmp_path: Path, status: str, expected: dict[str, str]) -> None:
    files = {"combined_data.csv": f"id,covid_status\n{ANNA},{status}\n", f"{ANNA}/cough-heavy.wav": ""}
    (recording,) = read(publish(tmp_path, files))
    assert isinstance(recording, Recording) and recording.labels == {"finding": "heavy coughs", **expected}


def test_what_makes_no_sense_is_rejected_and_the_rest_goes_on(tmp_path: Path) -> None:
    files = {f"20200413/{who}/cough-heavy.wav": "" for who in (ANNA, BELA, CARL)} | {f"20200413/{ANNA}/song.wav": ""}
    rows = f"{ANNA},old,healthy\n{BELA},24,sleepy\nnobody,24,healthy\n"
    found = list(read(publish(tmp_path, {"combined_data.csv": HEADER + rows, **files})))
    rejects = [(each.source, each.line, each.reason) for each in found if isinstance(each, Reject)]
    assert rejects[0][:2] == (f"20200413/{ANNA}/song.wav", 0)
    assert rejects[1][:2] == ("combined_data.csv", 3) and rejects[1][2].endswith("under_validation: 'sleepy'")
    assert rejects[2] == ("combined_data.csv", 4, "there is no recording of 'nobody', or the id stood above")
    assert {reject[0] for reject in rejects[3:]} == {f"20200413/{who}/cough-heavy.wav" for who in (BELA, CARL)}
    (good,) = (each for each in found if isinstance(each, Recording))
    assert good.labels == {"finding": "heavy coughs", "diagnosis": "no respiratory disease"}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({f"{ANNA}/cough-heavy.wav": ""}, "coswara needs its file combined_data.csv"),
        ({"combined_data.csv": HEADER, "a0001.wav": ""}, "has a name of coswara"),
    ],
)
def test_another_folder(tmp_path: Path, files: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        list(read(publish(tmp_path, files)))
