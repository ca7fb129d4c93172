"""Ingest: bad input ends in rejects.parquet, the rest in shards; nothing is done twice."""

from __future__ import annotations

import hashlib
import io
import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from stetholm.audio.decode import decode
from stetholm.corpus import ingest as ingest_module
from stetholm.corpus.catalog import read_catalog
from stetholm.corpus.ingest import ingest
from stetholm.corpus.manifest import CorpusError, Manifest
from stetholm.corpus.manifest import uri as manifest_uri
from stetholm.errors import UserError
from stetholm.settings import Settings, SyntheticSettings
from stetholm.storage import Storage
from stetholm.storage.lease import LeaseHeld
from tests.corpus.sounds import pair, wav, write_source
from tests.corpus.sources.published import publish

ROW_GROUPS = {"row_group_rows": 4}
"""As ``write_source`` sets it."""

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
    # Again, with the same outcome for every line: the corpus stays as it is, to the byte.
    before = {uri: storage.read_bytes(uri) for uri in storage.list(result["output"])}
    assert ingest(with_corpus(settings, max_reject_fraction=0.9), storage) == result
    assert {uri: storage.read_bytes(uri) for uri in storage.list(result["output"])} == before


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


def test_again_does_nothing(tmp_path: Path, storage: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    settings = write_source(tmp_path / "ingest-again", [pair("0.wav")])
    first = ingest(settings, storage)
    manifest = storage.read_bytes(manifest_uri(first["output"]))
    capsys.readouterr()
    assert ingest(settings, storage) == first
    # Another run finds the corpus of the first one.
    other = settings.run.model_copy(update={"name": "ingest-other"})
    shared = with_corpus(settings.model_copy(update={"run": other}), uri=first["output"])
    assert ingest(shared, storage) == first
    assert storage.read_bytes(manifest_uri(first["output"])) == manifest
    assert capsys.readouterr().err == ""


def test_again_takes_only_what_is_new(tmp_path: Path, storage: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [pair(f"{number}.wav", number, split=("train", "test")[number % 2]) for number in range(4)]
    settings = write_source(tmp_path / "ingest-grow", lines, recordings=6)
    uri = ingest(settings, storage)["output"]
    before = Manifest.load(storage, uri)
    capsys.readouterr()
    lines += [pair("4.wav", 4), pair("0.wav", 5), pair("1.wav", 1, split="test")]  # new, new question, duplicate
    write_source(tmp_path / "ingest-grow", lines, recordings=0)
    result = ingest(with_corpus(settings, max_reject_fraction=0.5), storage)
    assert (result["recordings"], result["pairs"], result["rejected"]) == (5, 6, 1)
    assert "ingest  2/2 recordings" in capsys.readouterr().err
    after = Manifest.load(storage, uri)
    assert after.splits["train"].shards[:1] == before.splits["train"].shards
    assert after.splits["test"] == before.splits["test"]
    assert after.splits["train"].counts["task"] == {"Classification": 4}
    rows = rows_of(storage, uri)
    assert sorted(row["instruction"] for row in rows) == [f"What is heard ({number})?" for number in range(6)]
    recordings = list(read_catalog(storage, uri, after))
    assert len({row["recording_id"] for row in recordings}) == 5


def test_what_was_rejected_is_looked_at_again(tmp_path: Path, storage: Storage) -> None:
    settings = write_source(tmp_path / "ingest-mended", [pair("0.wav"), pair("late.wav", 1)], recordings=1)
    settings = with_corpus(settings, max_reject_fraction=0.5)
    first = ingest(settings, storage)
    assert (first["pairs"], first["rejected"]) == (1, 1)
    manifest = storage.read_bytes(manifest_uri(first["output"]))
    assert ingest(settings, storage) == first
    assert storage.read_bytes(manifest_uri(first["output"])) == manifest  # nothing new: it stays as it is
    (tmp_path / "ingest-mended" / "audio" / "late.wav").write_bytes(wav(9))
    assert ingest(settings, storage) == {**first, "recordings": 2, "pairs": 2, "rejected": 0}


def test_a_real_corpus_is_not_mixed_with_synthetic_recordings_unasked(tmp_path: Path, storage: Storage) -> None:
    made = ingest(write_source(tmp_path / "ingest-real", [pair("0.wav")]), storage)
    unasked = Settings.model_validate({"run": {"name": "ingest-unasked"}, "corpus": {"uri": made["output"]}})
    assert ingest(unasked, storage) == made
    asked = {"uri": made["output"], "source": "synthetic", "synthetic": {"patients": 8, "seconds": 2.0}}
    mixed = ingest(Settings.model_validate({"run": {"name": "ingest-asked"}, "corpus": asked | ROW_GROUPS}), storage)
    assert mixed["pairs"] > made["pairs"]


def test_a_changed_recording_is_new(tmp_path: Path, storage: Storage) -> None:
    settings = write_source(tmp_path / "ingest-changed", [pair("0.wav")])
    uri = ingest(settings, storage)["output"]
    (tmp_path / "ingest-changed" / "audio" / "0.wav").write_bytes(wav(77))
    write_source(tmp_path / "ingest-changed", [pair("0.wav"), pair("1.wav")], recordings=0)
    assert ingest(settings, storage)["pairs"] == 3
    assert len({row["recording_ids"][0] for row in rows_of(storage, uri)}) == 3


def test_a_corpus_of_two_sources(tmp_path: Path, storage: Storage) -> None:
    settings = write_source(tmp_path / "ingest-two", [pair("0.wav"), b"{}"])
    settings = with_corpus(settings, max_reject_fraction=0.9)
    uri = ingest(settings, storage)["output"]
    cycles = {"101_1b1_Al_sc_Meditron.txt": "0 1 1 0", "102_1b1_Al_sc_Meditron.txt": "0 1 0 0"}
    folder = publish(tmp_path / "icbhi", cycles)
    for name in ("101_1b1_Al_sc_Meditron.wav", "102_1b1_Al_sc_Meditron.wav"):
        Path(folder.root, name).write_bytes(wav(len(name) + int(name[:3])))
    result = ingest(with_corpus(settings, source="icbhi", jsonl=None, audio=folder.root), storage)
    manifest = Manifest.load(storage, uri)
    assert result["recordings"] == 3 and manifest.inputs["sources"].keys() == {"stethobench", "icbhi"}
    origins = [row["origin"] for row in table(storage, f"{uri}/rejects.parquet")]
    assert origins == [f"stethobench {settings.corpus.jsonl}"]
    recordings = {row["filename"]: row for row in read_catalog(storage, uri, manifest)}
    first = recordings["101_1b1_Al_sc_Meditron.wav"]
    assert (first["patient"], first["licence"], first["labels"]["finding"]) == ("101", "CC0-1.0", "crackles")
    assert first["events"] == [{"start": 0.0, "end": 1.0, "label": "crackles"}]
    assert recordings["0.wav"]["labels"] is None


def test_what_cannot_be_added(tmp_path: Path, storage: Storage) -> None:
    settings = write_source(tmp_path / "ingest-other-seed", [pair("0.wav")])
    uri = ingest(settings, storage)["output"]
    manifest = storage.read_bytes(manifest_uri(uri))
    seeded = settings.model_copy(update={"run": settings.run.model_copy(update={"seed": 1})})
    with pytest.raises(UserError, match=r"holds a corpus made from other inputs \(seed\)"):
        ingest(seeded, storage)
    elsewhere = with_corpus(settings, uri=storage.join("test-ingest-elsewhere"))
    with pytest.raises(UserError, match=r"with other inputs \(corpus\)"):
        ingest(elsewhere, storage)
    assert storage.read_bytes(manifest_uri(uri)) == manifest


def test_two_at_once_one_wins(tmp_path: Path, storage: Storage) -> None:
    settings = write_source(tmp_path / "ingest-race", [pair(f"{number % 4}.wav", number) for number in range(40)])
    start = threading.Barrier(3)
    outcomes: list[dict[str, Any] | UserError] = []

    def run() -> None:
        start.wait()
        try:
            outcomes.append(ingest(settings, storage))
        except UserError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done = [outcome for outcome in outcomes if isinstance(outcome, dict)]
    held = [outcome for outcome in outcomes if isinstance(outcome, LeaseHeld)]
    assert done and len(done) + len(held) == 3
    assert all("is at it; wait until it is done" in str(error) for error in held)
    assert len(rows_of(storage, done[0]["output"])) == 40


def test_one_that_wakes_after_another_took_its_lease_leaves_that_ones_corpus_whole(
    tmp_path: Path, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = write_source(tmp_path / "ingest-woken", [pair("0.wav", number) for number in range(6)])
    uri = storage.join("runs/ingest-woken/corpus")
    write = ingest_module.write_shards

    def sleep_first(*arguments: Any) -> Any:
        monkeypatch.setattr(ingest_module, "write_shards", write)
        storage.remove_dir(f"{uri}/ingest-lease")  # as one who finds it stale does
        write_source(tmp_path / "ingest-woken", [pair("1.wav", number) for number in range(4)], recordings=0)
        ingest(settings, storage)
        return write(*arguments)

    monkeypatch.setattr(ingest_module, "write_shards", sleep_first)
    with pytest.raises(LeaseHeld, match="lost its lease"):
        ingest(settings, storage)
    assert len(rows_of(storage, uri)) == 4
    for shard in Manifest.load(storage, uri).split("train").shards:
        assert hashlib.sha256(storage.read_bytes(f"{uri}/{shard.path}")).hexdigest() == shard.sha256


def test_rejects_of_one_list_outlive_the_next(tmp_path: Path, storage: Storage) -> None:
    first = with_corpus(write_source(tmp_path / "ingest-lists", [pair("0.wav"), b"{}"]), max_reject_fraction=0.9)
    second = tmp_path / "second.jsonl"
    second.write_text(json.dumps(pair("1.wav")) + "\n[]\n")
    uri = ingest(first, storage)["output"]
    assert ingest(with_corpus(first, jsonl=str(second)), storage)["rejected"] == 2
    assert [row["source"] for row in table(storage, f"{uri}/rejects.parquet")] == [first.corpus.jsonl, str(second)]


def test_an_attempt_that_broke_off_is_overwritten(tmp_path: Path, storage: Storage) -> None:
    settings = write_source(tmp_path / "ingest-broken", [pair("0.wav", number) for number in range(3)])
    uri = storage.join("runs/ingest-broken/corpus")
    storage.write_bytes(f"{uri}/train/part-00000.parquet", b"half a sha")
    storage.write_bytes(f"{uri}/train/part-00007.parquet", b"of an earlier attempt")
    assert ingest(settings, storage)["pairs"] == 3
    assert len(rows_of(storage, uri)) == 3
    (shard,) = Manifest.load(storage, uri).split("train").shards
    assert storage.list(f"{uri}/train") == [f"{uri}/{shard.path}"]


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
