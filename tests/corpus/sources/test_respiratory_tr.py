"""RespiratoryDatabase@TR, in its own naming, with its table saved as CSV."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stetholm.corpus.recording import Recording
from stetholm.corpus.schema import Reject
from stetholm.corpus.sources.respiratory_tr import read
from stetholm.errors import UserError
from tests.corpus.sources.published import publish

AUDIO = {"RespiratoryDatabase@TR/H002_L1.wav": "", "RespiratoryDatabase@TR/H016_R6.wav": ""}


@pytest.mark.parametrize(
    "table",
    [
        "H002,COPD4\nH016,COPD0\n",
        "Patient ID,Diagnosis,\nH002,COPD4,\n\nH016,COPD0,\n",
        "\ufeffPatient ID;Diagnosis;\r\nH002;copd4;\r\nH016;COPD0;\r\n",
    ],
)
def test_names_and_grades(tmp_path: Path, table: str) -> None:
    first, second = read(publish(tmp_path, AUDIO | {"Labels.csv": table}))
    assert first == Recording(
        "RespiratoryDatabase@TR/H002_L1.wav", "respiratory_tr", "lung", "H002", "CC-BY-4.0",
        site="left chest", device="Littmann 3200",
        labels={"diagnosis": "COPD", "severity": "very severe", "grade": "COPD4", "channel": "L1"}, distribution="OOD",
    )  # fmt: skip
    assert isinstance(second, Recording)
    assert (second.patient, second.site, second.labels["diagnosis"]) == ("H016", "right chest", "at risk of COPD")


def test_what_makes_no_sense_is_rejected_and_the_rest_goes_on(tmp_path: Path) -> None:
    table = "H002,COPD4\nH002,COPD1\nH003,COPD9\nnobody\nH004\n"
    files = {"Labels.csv": table, "H016_R6.wav": "", "H099_L9.wav": "", "Z/H002_L1.wav": ""}
    assert list(read(publish(tmp_path, files)))[:-1] == [
        Reject("Labels.csv", 2, "patient H002 has the grade COPD4 above"),
        Reject("Labels.csv", 3, "not a patient and one of COPD0 to COPD4: 'H003,COPD9'"),
        Reject("Labels.csv", 4, "not a patient and one of COPD0 to COPD4: 'nobody'"),
        Reject("Labels.csv", 5, "not a patient and one of COPD0 to COPD4: 'H004'"),
        Reject("H016_R6.wav", 0, "Labels.csv has no grade of patient H016"),
        Reject("H099_L9.wav", 0, "the name is not patient_channel with a channel of L1 to L6 or R1 to R6"),
    ]
    assert [each.filename for each in read(publish(tmp_path, files)) if isinstance(each, Recording)] == [
        "Z/H002_L1.wav"
    ]


def test_another_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"needs its file Labels\.csv"):
        list(read(publish(tmp_path, AUDIO)))
    with pytest.raises(UserError, match="no recording below the folder has a name of RespiratoryDatabase@TR"):
        list(read(publish(tmp_path / "other", {"a0001.wav": "", "Labels.csv": ""})))


@given(st.text() | st.lists(st.sampled_from(["H002", "COPD4", "COPD1", ",", ";", '"', "\n", "\0", "é"])).map("".join))
def test_any_table_is_read_or_rejected(table: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = list(read(publish(Path(folder), {"H002_L1.wav": "", "Labels.csv": table})))
    assert found and all(isinstance(each, Recording | Reject) for each in found)
