"""CirCor DigiScope 1.0.3, in its own naming, table and segmentation format."""

from pathlib import Path

import pytest

from stetholm.corpus.recording import Event, Recording
from stetholm.corpus.schema import Reject
from stetholm.corpus.sources.circor import read
from stetholm.errors import UserError
from tests.corpus.sources.published import publish

HEADER = (
    "Patient ID,Recording locations:,Age,Sex,Height,Weight,Pregnancy status,Murmur,Murmur locations,"
    "Most audible location,Systolic murmur timing,Systolic murmur shape,Systolic murmur grading,"
    "Systolic murmur pitch,Systolic murmur quality,Diastolic murmur timing,Diastolic murmur shape,"
    "Diastolic murmur grading,Diastolic murmur pitch,Diastolic murmur quality,Outcome,Campaign,Additional ID\n"
)
NONE = "nan,nan,nan,nan,nan"
MURMUR = "Holosystolic,Diamond,III/VI,High,Harsh"
PHASES = "0\t0.25\t0\n0.25\t0.4\t1\n0.4\t0.6\t2\n0.6\t0.7\t3\n0.7\t1.1\t4\n"


def row(patient: int, murmur: str, sites: str, systolic: str = NONE, diastolic: str = NONE, other: str = "nan") -> str:
    about = f"{patient},AV+MV,Child,Female,123.0,13.5,False,{murmur},{sites},nan"
    return f"{about},{systolic},{diastolic},Abnormal,CC2014,{other}\n"


def test_the_murmur_is_heard_only_where_the_table_says(tmp_path: Path) -> None:
    folder = publish(
        tmp_path,
        {
            "training_data.csv": HEADER + row(50115, "Present", "MV", MURMUR, other="50001.0"),
            "training_data/50115_AV.wav": "",
            "training_data/50115_AV.tsv": PHASES,
            "training_data/50115_MV_1.wav": "",
            "training_data/50115_MV_1.tsv": "0.1 0.2 3\n0.0 0.1 2\n",
        },
    )
    silent, murmur = read(folder)
    common = {"outcome": "abnormal", "age": "child", "sex": "female"}
    assert silent == Recording(
        "training_data/50115_AV.wav", "heart-circor", "heart", "50001", "ODC-By-1.0",
        site="aortic area", device="Littmann 3200",
        labels={"status": "normal", "finding": "clear S1 and S2 with silent intervals", **common},
        events=(Event(0.25, 0.4, "S1"), Event(0.4, 0.6, "systole"), Event(0.6, 0.7, "S2"), Event(0.7, 1.1, "diastole")),
    )  # fmt: skip
    assert isinstance(murmur, Recording)
    assert (murmur.site, murmur.patient) == ("mitral area", "50001")
    assert murmur.labels == {
        "status": "abnormal", "finding": "a systolic murmur", "murmur timing": "holosystolic",
        "murmur shape": "diamond", "murmur grade": "III/VI", "murmur pitch": "high", "murmur quality": "harsh",
        **common,
    }  # fmt: skip
    assert murmur.events == (Event(0.0, 0.1, "systole"), Event(0.1, 0.2, "S2"))


@pytest.mark.parametrize(
    ("columns", "finding"),
    [
        (("Absent", "nan"), "clear S1 and S2 with silent intervals"),
        (("Unknown", "nan"), None),
        (("Present", "nan", MURMUR), None),
        (("Present", "AV+Phc", NONE, MURMUR), "a diastolic murmur"),
        (("Present", "AV+Phc", MURMUR, MURMUR), "a murmur"),
    ],
)
def test_findings(tmp_path: Path, columns: tuple[str, ...], finding: str | None) -> None:
    files = {"training_data.csv": HEADER + row(9983, *columns), "9983_Phc.wav": "", "9983_Phc.tsv": PHASES}
    (recording,) = read(publish(tmp_path, files))
    assert isinstance(recording, Recording) and recording.site is None
    assert recording.labels.get("finding") == finding


def test_what_makes_no_sense_is_rejected_and_the_rest_goes_on(tmp_path: Path) -> None:
    table = HEADER + "".join(row(patient, "Absent", "nan") for patient in (1, 2, 3, 5)) + row(4, "Loud", "AV")
    files = {f"{patient}_AV.wav": "" for patient in (1, 2, 3, 4)}
    files |= {"1_AV.tsv": PHASES, "3_AV.tsv": "0.5\t0.25\t1\n", "4_AV.tsv": PHASES, "1_XX.wav": ""}
    found = list(read(publish(tmp_path, {"training_data.csv": table, **files})))
    assert [(each.source, each.line, each.reason) for each in found if isinstance(each, Reject)] == [
        ("training_data.csv", 5, "there is no recording of patient '5'"),
        ("training_data.csv", 6, "Murmur is not Present or Absent or Unknown: 'Loud'"),
        ("1_XX.wav", 0, "the name is not patient_site or patient_site_index"),
        ("2_AV.wav", 0, "there is no 2_AV.tsv with its heart sounds"),
        ("3_AV.tsv", 0, "line 1 is not 'start end code' in seconds: '0.5\\t0.25\\t1'"),
        ("4_AV.wav", 0, "training_data.csv has no usable row of patient 4"),
    ]
    assert [each.patient for each in found if isinstance(each, Recording)] == ["1"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"9983_AV.wav": ""}, "heart-circor needs its file training_data.csv"),
        ({"training_data.csv": HEADER, "a0001.wav": ""}, "has a name of heart-circor"),
    ],
)
def test_another_folder(tmp_path: Path, files: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        list(read(publish(tmp_path, files)))
