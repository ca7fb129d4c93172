"""Ingest: bad input ends in rejects.parquet, the rest in shards; nothing is done twice."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from stetholm.audio.decode import decode
from stetholm.corpus.ingest import ingest
from stetholm.corpus.manifest import CorpusError, Manifest
from stetholm.corpus.manifest import uri as manifest_uri
from stetholm.errors import UserError
from stetholm.settings import Settings, SyntheticSettings
from stetholm.storage import Storage
from tests.corpus.sounds import pair, wav, write_source

pytestmark = pytest.mark.usefixtures("ray_cluster")


def with_corpus(settings: Settings, **changes: Any) -> Settings:
    return settings.model_copy(update={"corpus": settings.corpus.model_copy(update=changes)})


def table(storage: Storage, uri: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(io.BytesIO(storage.read_bytes(uri))).to_pylist()
    return rows


def rows_of(storage: Storage, uri: str) -> list[dict[str, Any]]:
    splits = Manifest.load(storage, uri).splits.values()
    return [row for split in splits for shard in split.shards for row in table(storage, f"{uri}/{shard.path}")]


def test_pairs_become_rows(tmp_path: Path, storage: Storage) -> None:
    lines = [pair(f"{number % 4}.wav", number, split=("train", "val", "test")[number % 3]) for number in range(12)]
    lines.append(pair(["1.wav", "3.wav"], 99, task="Comparison", patient="p1", site="AV", distribution="OOD"))
    settings = write_source(tmp_path / "ingest-rows", lines)
    result = ingest(settings, storage)
    assert result == {"output": storage.join("runs/ingest-rows/corpus"), "recordings": 4, "pairs": 13, "rejected": 0}
    assert table(storage, f"{result['output']}/rejects.parquet") == []
    rows = {row["instruction"]: row for row in rows_of(storage, result["output"])}
    assert len(rows) == 13
    both = rows["What is heard (99)?"]
    assert (both["patient"], both["site"], both["distribution"], both["split"]) == ("p1", "AV", "OOD", "train")
    assert both["sampling_rate"] == [4000, 4000] and both["seconds"] == [0.5, 0.5]
    for flac, seed in zip(both["audio"], (1, 3), strict=True):
        assert soundfile.info(io.BytesIO(flac)).format == "FLAC"
        np.testing.assert_array_equal(decode(flac).samples, decode(wav(seed)).samples)
    single = rows["What is heard (1)?"]
    assert single["recording_ids"] == both["recording_ids"][:1] == [single["patient"]]
    counts = Manifest.load(storage, result["output"]).splits["train"].counts
    assert counts["task"] == {"Classification": 4, "Comparison": 1}


def test_bad_input_is_rejected_with_line_and_reason(tmp_path: Path, storage: Storage) -> None:
    lines: list[Any] = [
        pair("0.wav"),
        b'{"filename": ',
        {"filename": "0.wav", "instruction": "x", "dataset": "d", "split": "train"},
        pair("none.wav"),
        pair("text.wav"),
        pair("../pairs.jsonl"),
        pair(str(tmp_path / "ingest-bad/audio/0.wav")),
        pair("link.wav"),
        pair(["1.wav", "cut.wav"]),
        b'{"filename": "\xff"}',
        pair("0.wav", task="Report"),
        pair("copy.wav"),
        pair("0.wav", 1),
        pair("1.wav"),
    ]
    settings = write_source(tmp_path / "ingest-bad", lines)
    audio = tmp_path / "ingest-bad" / "audio"
    (audio / "text.wav").write_text("not a sound")
    (audio / "cut.wav").write_bytes(wav(9)[:300])
    (audio / "copy.wav").write_bytes(wav(0))
    os.symlink(tmp_path / "ingest-bad" / "pairs.jsonl", audio / "link.wav")
    result = ingest(with_corpus(settings, max_reject_fraction=0.9), storage)
    assert (result["recordings"], result["pairs"], result["rejected"]) == (2, 3, 11)
    source = str(tmp_path / "ingest-bad" / "pairs.jsonl")
    rejects = {row["line"]: row["reason"] for row in table(storage, f"{result['output']}/rejects.parquet")}
    expected = {
        2: "not JSON",
        3: "'response' is missing",
        4: "recording none.wav: is not there",
        5: "recording text.wav: ",
        6: "leaves the audio folder",
        7: "absolute",
        8: "recording link.wav: leaves the audio folder",
        9: "recording cut.wav: ",
        10: "invalid UTF-8",
        11: f"duplicate of {source}, line 1",
        12: f"duplicate of {source}, line 1",
    }
    assert rejects.keys() == expected.keys()
    assert all(part in rejects[line] for line, part in expected.items())
    assert {row["source"] for row in table(storage, f"{result['output']}/rejects.parquet")} == {source}


def test_too_many_rejects_end_the_job_and_say_why(tmp_path: Path, storage: Storage) -> None:
    lines = [*(pair("0.wav", number) for number in range(8)), pair("none.wav"), b"{"]
    settings = with_corpus(write_source(tmp_path / "ingest-limit", lines), max_reject_fraction=0.19)
    uri = storage.join("runs/ingest-limit/corpus")
    with pytest.raises(UserError) as caught:
        ingest(settings, storage)
    for part in ("2 of 10 pairs", "0.19", "line 10: not JSON", "line 9: recording none.wav", f"{uri}/rejects.parquet"):
        assert part in str(caught.value)
    assert len(table(storage, f"{uri}/rejects.parquet")) == 2
    with pytest.raises(CorpusError):
        Manifest.load(storage, uri)
    assert ingest(with_corpus(settings, max_reject_fraction=0.2), storage)["pairs"] == 8


@pytest.mark.parametrize(("name", "lines"), [("ingest-none", [b""]), ("ingest-all-bad", [b"{"])])
def test_nothing_left_is_an_error(tmp_path: Path, storage: Storage, name: str, lines: list[bytes]) -> None:
    settings = with_corpus(write_source(tmp_path / name, lines), max_reject_fraction=1.0)
    with pytest.raises(UserError, match=r"no pairs|1 of 1 pairs"):
        ingest(settings, storage)


def test_again_does_nothing_and_other_inputs_are_refused(tmp_path: Path, storage: Storage) -> None:
    settings = write_source(tmp_path / "ingest-again", [pair("0.wav")])
    first = ingest(settings, storage)
    manifest = storage.read_bytes(manifest_uri(first["output"]))
    assert ingest(settings, storage) == first
    assert storage.read_bytes(manifest_uri(first["output"])) == manifest
    # Another run finds the corpus of the first one.
    other = settings.run.model_copy(update={"name": "ingest-other"})
    shared = with_corpus(settings.model_copy(update={"run": other}), uri=first["output"])
    assert ingest(shared, storage) == first
    (tmp_path / "ingest-again" / "pairs.jsonl").write_bytes(b"{}")
    with pytest.raises(UserError, match="jsonl_sha256"):
        ingest(settings, storage)
    third = settings.run.model_copy(update={"name": "ingest-third"})
    with pytest.raises(UserError, match="holds a corpus made from other inputs"):
        ingest(shared.model_copy(update={"run": third}), storage)
    assert storage.read_bytes(manifest_uri(first["output"])) == manifest


def test_an_attempt_that_broke_off_is_overwritten(tmp_path: Path, storage: Storage) -> None:
    settings = write_source(tmp_path / "ingest-broken", [pair("0.wav", number) for number in range(3)])
    uri = storage.join("runs/ingest-broken/corpus")
    storage.write_bytes(f"{uri}/train/part-00000.parquet", b"half a sha")
    storage.write_bytes(f"{uri}/train/part-00007.parquet", b"of an earlier attempt")
    assert ingest(settings, storage)["pairs"] == 3
    assert len(rows_of(storage, uri)) == 3
    assert storage.list(f"{uri}/train") == [f"{uri}/train/part-00000.parquet"]


def test_same_inputs_same_shards_from_disk_and_from_storage(tmp_path: Path, storage: Storage) -> None:
    lines = [pair([f"{number % 4}.wav", f"{(number + 1) % 4}.wav"], number) for number in range(20)]
    here = with_corpus(write_source(tmp_path / "ingest-disk", lines), shard_bytes=2**16)
    remote = storage.join("test-ingest-source")
    storage.upload_dir(tmp_path / "ingest-disk", remote)
    run = here.run.model_copy(update={"name": "ingest-s3"})
    there = with_corpus(here.model_copy(update={"run": run}), jsonl=f"{remote}/pairs.jsonl", audio=f"{remote}/audio")
    manifests = [Manifest.load(storage, ingest(settings, storage)["output"]) for settings in (here, there)]
    assert manifests[0].splits == manifests[1].splits
    assert len(manifests[0].splits["train"].shards) > 1
    order = [row["instruction"] for row in rows_of(storage, storage.join("runs/ingest-disk/corpus"))]
    assert order != [line["instruction"] for line in lines]  # shuffled


def test_synthetic_is_the_default(storage: Storage) -> None:
    settings = Settings()
    small = with_corpus(settings, synthetic=SyntheticSettings(patients=8, seconds=2.0))
    run = settings.run.model_copy(update={"name": "ingest-synthetic"})
    result = ingest(small.model_copy(update={"run": run}), storage)
    assert result["rejected"] == 0 and result["pairs"] > result["recordings"] > 0
    patients: dict[str, set[str]] = {}
    for row in rows_of(storage, result["output"]):
        patients.setdefault(row["patient"], set()).add(row["split"])
    assert all(len(splits) == 1 for splits in patients.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "icbih"}, "there is no reader 'icbih'; choose from"),
        ({"source": "stethobench"}, r"needs corpus\.jsonl"),
        ({"jsonl": "pairs.jsonl"}, r"needs corpus\.audio"),
        ({"jsonl": "no/such.jsonl", "audio": "."}, r"no/such\.jsonl is not a file"),
        ({"jsonl": __file__, "audio": "no/such/folder"}, "no/such/folder is not a folder"),
    ],
)
def test_bad_settings(storage: Storage, changes: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ingest(with_corpus(Settings(), **changes), storage)


def test_icbhi_patients_come_from_the_file_names(storage: Storage, recordings: Path) -> None:
    names = sorted(path.name for path in (recordings / "lung").glob("*.wav"))[:3]
    lines = [pair(f"lung/{name}", dataset="icbhi", split="test") for name in names]
    lines.append(pair([f"lung/{name}" for name in names], 1, dataset="icbhi", split="test"))
    folder = Path(os.environ["STETHOLM_HOME"]) / "ingest-icbhi"
    settings = with_corpus(write_source(folder, lines, recordings=0), audio=str(recordings))
    rows = rows_of(storage, ingest(settings, storage)["output"])
    assert sorted(row["patient"] for row in rows) == ["101", "101", "101+102", "102"]
