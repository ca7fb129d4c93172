"""HF_Lung_V1, in its own naming and label format."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stetholm.corpus.recording import Event, Recording
from stetholm.corpus.schema import Reject
from stetholm.corpus.sources.hf_lung import read
from stetholm.errors import UserError
from tests.corpus.sources.published import publish

NAME = "steth_20180814_09_37_11"


def test_names_events_and_split(tmp_path: Path) -> None:
    folder = publish(
        tmp_path,
        {
            f"train/{NAME}.wav": "",
            f"train/{NAME}_label.txt": "E 00:00:02.608 00:00:03.637\nI 00:00:01.500 00:00:02.457\n"
            "D 00:00:01.500 00:00:02.457\nWheeze\t00:01:00.000\t01:00:01.250\r\n",
            "test/trunc_2019-08-08-09-36-47-L1_3.wav": "",
            "test/trunc_2019-08-08-09-36-47-L1_3_label.txt": "I 00:00:00.500 00:00:01.000\n",
            "test/trunc_2019-08-08-11-02-00-Xy_4.wav": "",
            "test/trunc_2019-08-08-11-02-00-Xy_4_label.txt": "",
        },
    )
    normal, silent, first = read(folder)
    assert first == Recording(
        f"train/{NAME}.wav", "hf_lung", "lung", "steth_20180814", "CC-BY-NC-4.0", device="Littmann 3200",
        labels={"status": "abnormal", "finding": "crackles and wheezes"},
        events=(
            Event(1.5, 2.457, "inspiration"), Event(1.5, 2.457, "crackle"), Event(2.608, 3.637, "expiration"),
            Event(60.0, 3601.25, "wheeze"),
        ),
        split="train",
    )  # fmt: skip
    assert isinstance(normal, Recording) and isinstance(silent, Recording)
    assert (normal.patient, normal.split, normal.device) == ("trunc_2019-08-08", "test", "HF-Type-1")
    assert normal.site == "upper anterior right chest"
    assert normal.labels == {"status": "normal", "finding": "no added sounds"}
    assert (silent.patient, silent.site, silent.labels, silent.events) == (normal.patient, None, {}, ())


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("I 00:00:01.0", "line 2 is not a known label with its start and end: 'I 00:00:01.0'"),
        ("Cough 00:00:01.0 00:00:02.0", "line 2 is not a known label with its start and end"),
        ("I 00:00:02.0 00:00:01.0", "line 2 ends before its start"),
        ("I 1.5 2.5", "line 2 has a time that is not like 00:00:01.234"),
        ("I -00:00:01.0 00:00:02.0", "line 2 is not a known label with its start and end"),
        ("I nan inf", "line 2 is not a known label with its start and end"),
    ],
)
def test_rows_that_make_no_sense(tmp_path: Path, row: str, reason: str) -> None:
    other = "steth_20180814_09_37_33"
    files = {f"{NAME}.wav": "", f"{NAME}_label.txt": f"E 00:00:00.0 00:00:01.0\n{row}\n"}
    reject, found = read(publish(tmp_path, files | {f"{other}.wav": "", f"{other}_label.txt": ""}))
    assert isinstance(reject, Reject) and (reject.source, reject.line) == (f"{NAME}_label.txt", 0)
    assert reject.reason.startswith(reason)
    assert isinstance(found, Recording) and found.split is None


def test_names_that_make_no_sense(tmp_path: Path) -> None:
    assert list(read(publish(tmp_path, {f"{NAME}.wav": "", "steth_today.wav": ""}))) == [
        Reject(f"{NAME}_label.txt", 0, "is not there, though its recording is"),
        Reject("steth_today.wav", 0, "the name is not steth_day_time or trunc_day-time-site_piece"),
    ]
    with pytest.raises(UserError, match="no recording below the folder has a name of HF_Lung"):
        list(read(publish(tmp_path / "other", {"a0001.wav": ""})))


@given(st.text() | st.lists(st.sampled_from(["I", "D", "00:00:01.5", "99:59:59", " ", "\n", "nan", "-"])).map("".join))
def test_any_text_is_read_or_rejected(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = list(read(publish(Path(folder), {f"{NAME}.wav": "", f"{NAME}_label.txt": text})))
    assert len(found) == 1 and isinstance(found[0], Recording | Reject)
