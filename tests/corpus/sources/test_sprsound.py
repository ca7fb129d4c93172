"""SPRSound, in the folders, names and annotation format of its releases."""

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stetholm.corpus.recording import Event, Recording
from stetholm.corpus.schema import Reject
from stetholm.corpus.sources.sprsound import read
from stetholm.errors import UserError
from tests.corpus.sources.published import publish

NAME = "40890405_3.3_0_p3_3655"
NORMAL = '{"record_annotation": "Normal", "event_annotation": [{"start": "5778", "end": "7419", "type": "Normal"}]}'
_JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


def test_names_labels_events_and_folders(tmp_path: Path) -> None:
    wheezes = {
        "record_annotation": "CAS & DAS",
        "event_annotation": [
            {"start": "2557", "end": "3776", "type": "Wheeze+Crackle"},
            {"start": "342", "end": "2515", "type": "Fine Crackle"},
        ],
    }
    folder = publish(
        tmp_path,
        {
            "BioCAS2022/train2022_wav/65101170_0.4_1_p2_3246.wav": "",
            "BioCAS2022/train2022_json/65101170_0.4_1_p2_3246.json": json.dumps(wheezes),
            f"BioCAS2022/test2022_wav/{NAME}.wav": "",
            f"BioCAS2022/test2022_json/inter_test_json/{NAME}.json": NORMAL,
            "BioCAS2022/test2022_wav/65101170_0.4_1_p1_3240.wav": "",
            "BioCAS2022/test2022_json/intra_test_json/65101170_0.4_1_p1_3240.json": NORMAL,
        },
    )
    inter, intra, trained = read(folder)
    assert trained == Recording(
        "BioCAS2022/train2022_wav/65101170_0.4_1_p2_3246.wav", "sprsound", "lung", "65101170", "CC-BY-4.0",
        site="lateral left chest", device="Yunting model II",
        labels={
            "status": "abnormal", "finding": "crackles and fine crackles and wheezes",
            "age": "0.4", "sex": "female", "quality": "good",
        },
        events=(Event(0.342, 2.515, "fine crackle"), Event(2.557, 3.776, "wheeze and crackle")), split="train",
    )  # fmt: skip
    assert isinstance(inter, Recording) and isinstance(intra, Recording)
    assert (inter.split, inter.site, inter.labels["sex"]) == ("test", "posterior right chest", "male")
    assert (inter.labels["status"], inter.labels["finding"]) == ("normal", "no added sounds")
    assert inter.events == (Event(5.778, 7.419, "no added sounds"),)
    assert (intra.split, intra.patient) == (None, "65101170")


def test_a_test_recording_of_a_trained_patient_has_no_split(tmp_path: Path) -> None:
    folder = publish(
        tmp_path,
        {
            "BioCAS2022/train2022_json/40890405_3.3_0_p1_1.json": NORMAL,
            f"BioCAS2023/test2023_wav/{NAME}.wav": "",
            f"BioCAS2023/test2023_json/{NAME}.json": NORMAL,
        },
    )
    (found,) = read(folder)
    assert isinstance(found, Recording) and found.split is None


@pytest.mark.parametrize(
    ("annotation", "labels"),
    [
        ({"record_annotation": "Poor Quality", "event_annotation": []}, {"quality": "poor"}),
        (
            {"record_annotation": "DAS", "event_annotation": []},
            {"quality": "good", "status": "abnormal", "finding": "crackles"},
        ),
        (
            {"recording_annotation": "Normal", "event_annotation": [{"start": 1, "end": 2, "type": "Normal"}]},
            {"quality": "good", "status": "normal", "finding": "no added sounds"},
        ),
        (
            {"event_annotation": [{"start": "553", "end": "2535", "type": "Stridor"}]},
            {"status": "abnormal", "finding": "stridor"},
        ),
        (
            {"event_annotation": [{"start": "553", "end": "2535", "type": "Normal"}]},
            {"status": "normal", "finding": "no added sounds"},
        ),
        ({"event_annotation": []}, {}),
    ],
)
def test_what_labels_say(tmp_path: Path, annotation: dict[str, Any], labels: dict[str, str]) -> None:
    (found,) = read(publish(tmp_path, {f"{NAME}.wav": "", f"{NAME}.json": json.dumps(annotation)}))
    assert isinstance(found, Recording)
    assert found.labels == {"age": "3.3", "sex": "male"} | labels


def test_a_withheld_patient_is_each_recording_by_itself(tmp_path: Path) -> None:
    (found,) = read(publish(tmp_path, {"_5.3_0_p8_34877.wav": "", "_5.3_0_p8_34877.json": NORMAL}))
    assert isinstance(found, Recording)
    assert (found.patient, found.site) == ("_5.3_0_p8_34877", None)


@pytest.mark.parametrize(
    ("annotation", "reason"),
    [
        ("{", "Invalid JSON"),
        ("[]", "should be"),
        ('{"record_annotation": "Normal"}', "event_annotation: Field required"),
        ('{"record_annotation": "Fine", "event_annotation": []}', "record_annotation: Input should be"),
        ('{"event_annotation": [{"start": "9", "end": "2", "type": "Normal"}]}', "ends at 2 ms, before its start at 9"),
        ('{"event_annotation": [{"start": "-1", "end": "2", "type": "Normal"}]}', "0.start: Input should be greater"),
        ('{"event_annotation": [{"start": "1", "end": "inf", "type": "Normal"}]}', "0.end: Input should be a finite"),
        ('{"event_annotation": [{"start": "1", "end": "2", "type": ["Normal"]}]}', "0.type: Input should be"),
        ("[" * 5000, "Invalid JSON"),
    ],
)
def test_annotations_that_make_no_sense(tmp_path: Path, annotation: str, reason: str) -> None:
    other = "40890405_3.3_0_p3_3656"
    files = {f"{NAME}.wav": "", f"{NAME}.json": annotation, f"{other}.wav": "", f"{other}.json": NORMAL}
    reject, found = read(publish(tmp_path, files))
    assert isinstance(reject, Reject) and (reject.source, reject.line) == (f"{NAME}.json", 0)
    assert reason in reject.reason
    assert isinstance(found, Recording)


def test_names_that_make_no_sense(tmp_path: Path) -> None:
    folder = publish(tmp_path, {"notes.wav": "", f"{NAME}.wav": ""})
    assert list(read(folder)) == [
        Reject(f"{NAME}.wav", 0, f"there is no {NAME}.json with its label and events"),
        Reject("notes.wav", 0, "the name is not patient_age_sex_site_recording"),
    ]
    with pytest.raises(UserError, match="no recording below the folder has a name of SPRSound"):
        list(read(publish(tmp_path / "other", {"a0001.wav": ""})))


@given(
    st.text()
    | _JSON.map(json.dumps)
    | st.builds(lambda a, b, c: json.dumps({"event_annotation": [{"start": a, "end": b, "type": c}]}), *[_JSON] * 3)
)
def test_any_text_is_read_or_rejected(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = list(read(publish(Path(folder), {f"{NAME}.wav": "", f"{NAME}.json": text})))
    assert len(found) == 1 and isinstance(found[0], Recording | Reject)
