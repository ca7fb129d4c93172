"""FluSense, in its own naming and Praat's TextGrid format."""

from pathlib import Path

import pytest

from stetholm.corpus.recording import Event, Recording
from stetholm.corpus.schema import Reject
from stetholm.corpus.sources.flusense import read
from stetholm.errors import UserError
from tests.corpus.sources.published import publish


def textgrid(*intervals: tuple[float | str, float | str, str]) -> str:
    """As Praat writes it, with a blank at the end of most lines."""
    head = (
        'File type = "ooTextFile"\nObject class = "TextGrid"\n\nxmin = 0 \nxmax = 10 \ntiers? <exists> \nsize = 1 \n'
        'item []: \n    item [1]:\n        class = "IntervalTier" \n        name = "words" \n        xmin = 0 \n'
        f"        xmax = 10 \n        intervals: size = {len(intervals)} \n"
    )
    return head + "".join(
        f"        intervals [{number}]:\n            xmin = {start} \n            xmax = {end} \n"
        f'            text = "{label}" \n'
        for number, (start, end, label) in enumerate(intervals, start=1)
    )


def test_events_and_findings(tmp_path: Path) -> None:
    clip, whole, noise = "-BdPW1c_3_8_0_000-10_000", "-5dCv5_nvU8", "02Sa2hBL_48"
    events = [(0, 1.8130457166392089, "etc"), (1.8130457166392089, 3.5, "sniffle"), (3.5, 4, "cough"), (4, 10, "")]
    folder = publish(
        tmp_path,
        {
            f"flusense_audio/{clip}.wav": "",
            f"flusense_data/{clip}.TextGrid": textgrid(*events),
            f"flusense_audio/{whole}.wav": "",
            f"flusense_data/{whole}.TextGrid": textgrid((0, 9, "speech"), (9, 10, "throat-clearing")),
            f"flusense_audio/{noise}.wav": "",
            f"flusense_data/{noise}.TextGrid": textgrid((0, 10, "silence")),
        },
    )
    found = {each.patient: each for each in read(folder) if isinstance(each, Recording)}
    assert found["-BdPW1c_3_8"] == Recording(
        f"flusense_audio/{clip}.wav", "flusense", "cough", "-BdPW1c_3_8", "NOASSERTION",
        labels={"finding": "coughs and sniffles"},
        events=(Event(0, 1.8130457166392089, "other sound"), Event(1.8130457166392089, 3.5, "sniffle"),
                Event(3.5, 4, "cough")),
        distribution="OOD",
    )  # fmt: skip
    assert found[whole].labels == {"finding": "throat clearing and speech"}
    assert found[whole].events[1] == Event(9, 10, "throat clearing")
    assert found[noise].labels == {"finding": "neither coughs nor speech"}


def test_what_makes_no_sense_is_rejected_and_the_rest_goes_on(tmp_path: Path) -> None:
    grids = {
        "aaaaaaaaaaa": textgrid((0, 1, "cough")),
        "bbbbbbbbbbb": textgrid((0, 1, "yodel")),
        "ccccccccccc": textgrid((2, 1, "cough")),
        "ddddddddddd": textgrid((0, "nan", "cough")),
        "eeeeeeeeeee": "File type = 'something else'",
    }
    files = {f"{name}.TextGrid": text for name, text in grids.items()}
    files |= dict.fromkeys((f"{name}.wav" for name in (*grids, "fffffffffff", "a name of another kind")), "")
    found = list(read(publish(tmp_path, files)))
    assert [(each.source, each.reason) for each in found if isinstance(each, Reject)] == [
        ("a name of another kind.wav", "the name is not video or video_start-end"),
        ("bbbbbbbbbbb.TextGrid", "its label 'yodel' is unknown"),
        ("ccccccccccc.TextGrid", "the interval '2' to '1' is no span of time"),
        ("ddddddddddd.TextGrid", "the interval '0' to 'nan' is no span of time"),
        ("eeeeeeeeeee.TextGrid", "it has no labelled interval"),
        ("fffffffffff.wav", "there is no fffffffffff.TextGrid with its events"),
    ]
    assert [each.patient for each in found if isinstance(each, Recording)] == ["aaaaaaaaaaa"]


def test_another_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has a name of flusense"):
        list(read(publish(tmp_path, {"heart_sound.wav": ""})))
