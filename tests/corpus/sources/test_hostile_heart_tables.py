"""Heart, cough and breath readers on label files that are anything but labels."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stetholm.corpus.folder import AudioFolder
from stetholm.corpus.recording import Recording
from stetholm.corpus.schema import Reject
from stetholm.corpus.sources import bmd_hs, cinc2016, circor, coswara, coughvid, flusense, zchsound
from stetholm.errors import UserError

UUID = "00039425-7f3a-42aa-ac13-834aaa2b6b92"
CIRCOR = "Patient ID,Murmur,Murmur locations,Systolic murmur timing,Age,Outcome,Additional ID\n"
CIRCOR_ROW = "1,Present,AV,Holosystolic,Child,Normal,2\n"
COUGHVID = "uuid,cough_detected,status,age,gender,quality_1,cough_type_1,wheezing_1,diagnosis_1,severity_1\n"
WORDS = ["", "nan", "inf", "-1", "0", "1", "0.5", "1e999", "N/A", "Present", "AV", "Normal", "healthy", "\x00", '"']
Read = Callable[[AudioFolder], Iterator[Recording | Reject]]


@dataclass(frozen=True)
class Folder:
    """Files in memory."""

    texts: dict[str, str]
    local: bool = True

    def files(self) -> dict[str, int]:
        return {name: len(text) for name, text in self.texts.items()}

    def read(self, name: str, max_bytes: int) -> bytes:
        return self.texts[name].encode("utf-8", "surrogatepass")


@dataclass(frozen=True)
class Case:
    """A reader, the label file to fill, how its rows begin, and what else lies there."""

    read: Read
    table: str
    header: str
    delimiter: str
    key: str
    rest: dict[str, str]


CASES = [
    Case(circor.read, "training_data.csv", CIRCOR, ",", "1", {"1_AV.wav": "", "1_AV.tsv": "0 1 1\n"}),
    Case(circor.read, "1_AV.tsv", "", "\t", "0.1", {"1_AV.wav": "", "training_data.csv": CIRCOR + CIRCOR_ROW}),
    Case(cinc2016.read, "REFERENCE.csv", "", ",", "a0001", {"a0001.wav": ""}),
    Case(cinc2016.read, "REFERENCE-SQI.csv", "", ",", "a0001", {"a0001.wav": "", "REFERENCE.csv": "a0001,1\n"}),
    Case(zchsound.read, "Clean Heartsound Data Details.csv", "fileName;gender;age(days);diagnosis\n", ";",
         "ZCH0001.wav", {"ZCH0001.wav": ""}),
    Case(bmd_hs.read, "train.csv", "patient_id,AS,AR,MR,MS,N,recording_1\n", ",", "patient_016",
         {"AR_016_sit_Aor.wav": ""}),
    Case(bmd_hs.read, "additional_metadata.csv", "patient_id,Age,Gender,Smoker,Lives\n", ",", "patient_016",
         {"AR_016_sit_Aor.wav": "",
          "train.csv": "patient_id,AS,AR,MR,MS,N,recording_1\npatient_016,0,1,0,0,0,AR_016_sit_Aor\n"}),
    Case(coughvid.read, "metadata_compiled.csv", COUGHVID, ",", UUID, {f"{UUID}.ogg": ""}),
    Case(coswara.read, "combined_data.csv", "id,covid_status,a,g\n", ",", "anna", {"anna/cough-heavy.wav": ""}),
]  # fmt: skip
VALUES = st.sampled_from(WORDS) | st.text(max_size=12)


def all_sound(read: Read, texts: dict[str, str]) -> bool:
    """Whether, whatever the texts say, only recordings in order and rejects come, or the user is told."""
    try:
        return all(_sound(each) for each in read(Folder(texts)))
    except UserError as error:
        return "\n" not in str(error)


def _sound(found: Recording | Reject) -> bool:
    if isinstance(found, Reject):
        return bool(found.reason)
    told = all(isinstance(value, str) and value for value in found.labels.values())
    spans = all(0 <= event.start <= event.end < float("inf") for event in found.events)
    return bool(found.patient) and told and spans


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.table)
@given(text=st.text(), rows=st.lists(st.lists(VALUES, max_size=10), max_size=4))
def test_any_text_and_any_rows(case: Case, text: str, rows: list[list[str]]) -> None:
    assert all_sound(case.read, {**case.rest, case.table: text})
    lines = (case.delimiter.join([case.key, *row]) for row in rows)
    assert all_sound(case.read, {**case.rest, case.table: case.header + "\n".join(lines)})


@given(text=st.text(), intervals=st.lists(st.tuples(VALUES, VALUES, VALUES | st.just("cough")), max_size=4))
def test_any_textgrid(text: str, intervals: list[tuple[str, str, str]]) -> None:
    grid = "".join(f'intervals [1]:\n xmin = {a} \n xmax = {b} \n text = "{c}" \n' for a, b, c in intervals)
    for annotation in (text, grid):
        assert all_sound(flusense.read, {"aaaaaaaaaaa.wav": "", "aaaaaaaaaaa.TextGrid": annotation})


LABELS = [case for case in CASES if case.table not in ("1_AV.tsv", "REFERENCE-SQI.csv", "additional_metadata.csv")]
GOOD = {
    "training_data.csv": CIRCOR_ROW,
    "REFERENCE.csv": "a0001,1\n",
    "Clean Heartsound Data Details.csv": "ZCH0001.wav;M;400;ASD\n",
    "train.csv": "patient_016,0,1,0,0,0,AR_016_sit_Aor\n",
    "metadata_compiled.csv": f"{UUID},0.9,healthy\n",
    "combined_data.csv": "anna,healthy,30,male\n",
}


@pytest.mark.parametrize("bad", ["x" * (100 * 2**20), "a" * 200_000, '"nobody closes this', "\x00"], ids=len)
@pytest.mark.parametrize("case", LABELS, ids=lambda case: case.table)
def test_a_broken_line_is_one_reject(case: Case, bad: str) -> None:
    text = case.header + f"{bad}\n" + GOOD[case.table]
    found = list(case.read(Folder({**case.rest, case.table: text})))
    rejects = [(each.source, each.line) for each in found if isinstance(each, Reject)]
    assert rejects == [(case.table, 1 + bool(case.header))]
    assert len(found) == 2 and all(len(each.reason) < 200 for each in found if isinstance(each, Reject))
