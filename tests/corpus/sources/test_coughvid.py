"""COUGHVID, in its own naming and table format."""

import csv
import io
from pathlib import Path

import pytest

from stetholm.corpus.recording import Recording
from stetholm.corpus.schema import Reject
from stetholm.corpus.sources.coughvid import read
from stetholm.errors import UserError
from tests.corpus.sources.published import publish

EXPERT = (
    "quality", "cough_type", "dyspnea", "wheezing", "stridor", "choking", "congestion", "nothing", "diagnosis",
    "severity",
)  # fmt: skip
COLUMNS = [
    "uuid", "datetime", "cough_detected", "SNR", "latitude", "longitude", "age", "gender", "respiratory_condition",
    "fever_muscle_pain", "status", *(f"{name}_{expert}" for expert in "1234" for name in EXPERT),
]  # fmt: skip
IDS = [f"00039425-7f3a-42aa-ac13-834aaa2b6b9{digit}" for digit in range(8)]


def table(*rows: dict[str, str]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, restval="")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def labels(tmp_path: Path, **row: str) -> dict[str, str]:
    """What the reader makes of one row."""
    files = {"metadata_compiled.csv": table({"uuid": IDS[0], **row}), f"{IDS[0]}.ogg": ""}
    (recording,) = read(publish(tmp_path, files))
    assert isinstance(recording, Recording)
    return dict(recording.labels)


def test_a_recording_that_no_expert_heard(tmp_path: Path) -> None:
    row = {"uuid": IDS[0], "cough_detected": "0.9609", "age": "15.0", "gender": "male", "status": "healthy"}
    files = {
        "metadata_compiled.csv": table(row),
        f"public_dataset/{IDS[0]}.ogg": "",
        f"public_dataset/{IDS[0]}.json": "{}",
    }
    assert list(read(publish(tmp_path, files))) == [
        Recording(
            f"public_dataset/{IDS[0]}.ogg", "coughvid", "cough", IDS[0], "CC-BY-4.0",
            labels={"finding": "a cough", "diagnosis": "no respiratory disease", "reported health": "healthy",
                    "sex": "male", "age": "15"},
        )
    ]  # fmt: skip


def test_what_most_experts_hear(tmp_path: Path) -> None:
    votes = {"cough_type_1": "dry", "cough_type_2": "dry", "cough_type_3": "wet", "wheezing_1": "True"}
    votes |= {
        "wheezing_2": "False",
        "wheezing_3": "True",
        "stridor_1": "True",
        "quality_1": "good",
        "severity_1": "mild",
    }
    votes |= {"diagnosis_1": "lower_infection", "diagnosis_2": "lower_infection", "diagnosis_3": "healthy_cough"}
    assert labels(tmp_path, status="symptomatic", **votes) == {
        "status": "abnormal", "finding": "a dry cough with wheezing and stridor",
        "diagnosis": "lower respiratory tract infection", "reported health": "symptomatic", "severity": "mild",
        "quality": "good",
    }  # fmt: skip


def test_a_tie_a_reported_infection_and_no_cough(tmp_path: Path) -> None:
    tie = labels(tmp_path, cough_type_1="dry", cough_type_2="wet", diagnosis_1="COVID-19", diagnosis_2="healthy_cough")
    assert tie == {"finding": "a cough"}
    infection = labels(tmp_path, status="COVID-19", diagnosis_1="healthy_cough", severity_1="unknown")
    assert (infection["diagnosis"], infection["status"]) == ("COVID-19", "normal") and "severity" not in infection
    assert labels(tmp_path, quality_1="no_cough")["finding"] == "no cough"


def test_what_makes_no_sense_is_rejected_and_the_rest_goes_on(tmp_path: Path) -> None:
    rows = [
        {"uuid": IDS[0], "cough_detected": "nan"}, {"uuid": IDS[1], "cough_detected": "0.02"},
        {"uuid": IDS[2], "status": "tired"}, {"uuid": IDS[3]}, {"uuid": IDS[4]}, {"uuid": IDS[6]},
    ]  # fmt: skip
    names = [*(f"{uuid}.ogg" for uuid in IDS[:3]), f"{IDS[3]}.webm", f"{IDS[4]}.webm", f"{IDS[4]}.wav", "cough.wav"]
    files = {"metadata_compiled.csv": table(*rows), **dict.fromkeys(names, "")}
    found = list(read(publish(tmp_path, files)))
    rejects = [(each.source, each.line, each.reason) for each in found if isinstance(each, Reject)]
    assert rejects[:4] == [
        ("metadata_compiled.csv", 2, "cough_detected is no probability: 'nan'"),
        ("metadata_compiled.csv", 4, "status is not healthy or symptomatic or COVID-19 or COVID: 'tired'"),
        (f"{IDS[3]}.webm", 0, "WebM cannot be decoded; convert it to WAV, FLAC or OGG"),
        ("metadata_compiled.csv", 7, f"there is no recording '{IDS[6]}', or it stood above"),
    ]
    assert [source for source, _, _ in rejects[4:]] == [f"{IDS[0]}.ogg", f"{IDS[2]}.ogg", "cough.wav"]
    assert [each.filename for each in found if isinstance(each, Recording)] == [f"{IDS[4]}.wav"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({f"{IDS[0]}.ogg": ""}, "coughvid needs its file metadata_compiled.csv"),
        ({"metadata_compiled.csv": "uuid\n", "a0001.wav": ""}, "has a name of coughvid"),
    ],
)
def test_another_folder(tmp_path: Path, files: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        list(read(publish(tmp_path, files)))
