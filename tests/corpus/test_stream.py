"""The streaming reader over S3 and Ray: the plan's rows, exactly once, the same again, with features."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
from ray.data.exceptions import ExecutionTimeoutError

from stetholm.audio.decode import AudioError, decode
from stetholm.audio.features import crop, log_mel
from stetholm.audio.resample import resample
from stetholm.corpus.datasource import SoundColumns
from stetholm.corpus.ledger import Ledger
from stetholm.corpus.manifest import CorpusError, Manifest
from stetholm.corpus.plan import Piece
from stetholm.corpus.shards import write_corpus
from stetholm.corpus.stream import CorpusStream, read_features
from stetholm.job import find_user_error
from stetholm.settings import Augmentation
from stetholm.storage import Storage
from tests.corpus.sounds import rows

pytestmark = pytest.mark.usefixtures("ray_cluster")

ROWS = rows(50)
LONG = rows(6, seconds=9.0)


@pytest.fixture(scope="module")
def corpus(storage: Storage) -> str:
    uri = storage.join("test-stream")
    write_corpus(
        storage, uri, {"train": ROWS, "test": ROWS[:7], "val": LONG}, inputs={}, shard_bytes=20_000, row_group_rows=4
    )
    assert len(Manifest.load(storage, uri).splits["train"].shards) > 1
    return uri


def ids(found: list[dict[str, Any]]) -> list[str]:
    return [row["sample_id"] for row in found]


def contents(found: list[dict[str, Any]]) -> dict[tuple[str, int], bytes]:
    """Features by sample and epoch."""
    return {(row["sample_id"], row["epoch"]): read_features(row).tobytes() for row in found}


def test_every_row_once_and_whole(storage: Storage, corpus: str) -> None:
    stream = CorpusStream(storage, corpus, split="train", seed=1)
    found = list(stream.rows())
    assert stream.rows_of(0) == len(found) == len(ROWS)
    given = {row["sample_id"]: row for row in ROWS}
    assert ids(found) != list(given)  # shuffled
    assert sorted(ids(found)) == sorted(given)
    for row in found:
        source = given[row["sample_id"]]
        for column in ("recording_ids", "instruction", "response", "task", "dataset", "distribution", "patient"):
            assert row[column] == source[column]
        assert row["epoch"] == 0 and row["recordings"] == len(source["audio"])
        assert "audio" not in row
        sound = decode(source["audio"][-1])
        expected = log_mel(crop(resample(sound.samples, sound.rate), None))
        np.testing.assert_allclose(read_features(row)[-1], expected, atol=1e-5)


def test_two_ranks_and_epochs_then_resume_with_three(storage: Storage, corpus: str) -> None:
    def stream(rank: int, world_size: int, ledger: Ledger | None = None) -> CorpusStream:
        return CorpusStream(
            storage, corpus, split="train", seed=5, epochs=2, rank=rank, world_size=world_size, ledger=ledger
        )

    ledger = Ledger()
    seen: Counter[tuple[int, str]] = Counter()
    for rank, steps in [(0, 30), (1, 27)]:  # killed in the second epoch
        found = list(islice(stream(rank, 2).rows(), steps))
        assert len(found) == steps
        for row in found:
            ledger.add(row["epoch"], [row["sample_id"]])
            seen[row["epoch"], row["sample_id"]] += 1
    restored = Ledger.from_json(ledger.to_json())
    left = [stream(rank, 3, restored).rows_of(rank) for rank in range(3)]
    assert sum(left) == 100 - 57
    for rank in range(3):
        found = list(stream(rank, 3, restored).rows())
        assert len(found) == left[rank]
        seen.update((row["epoch"], row["sample_id"]) for row in found)
    assert seen == Counter((epoch, row["sample_id"]) for epoch in range(2) for row in ROWS)


def test_nothing_left(storage: Storage, corpus: str) -> None:
    ledger = Ledger()
    ledger.add(0, [row["sample_id"] for row in ROWS])
    stream = CorpusStream(storage, corpus, split="train", seed=5, ledger=ledger)
    assert stream.rows_of(0) == 0
    assert list(stream.rows()) == []
    assert stream.dataset().count() == 0


def test_order_and_crops_are_the_same_again_and_differ_by_epoch(storage: Storage, corpus: str) -> None:
    def run(seed: int, world_size: int = 1, augmentation: Augmentation = "none") -> list[dict[str, Any]]:
        streams = [
            CorpusStream(
                storage,
                corpus,
                split="val",
                seed=seed,
                epochs=2,
                rank=rank,
                world_size=world_size,
                augmentation=augmentation,
            )
            for rank in range(world_size)
        ]
        return [row for stream in streams for row in stream.rows()]

    first, again, other = run(1), run(1), run(2)
    assert first == again
    features = contents(first)
    assert len(set(features.values())) == len(features)  # random crops of 9 s
    assert features != contents(other)
    # The crop depends on the sample, not on who reads it.
    assert features == contents(run(1, world_size=2))
    assert features != contents(run(1, augmentation="label-keeping"))


def test_evaluation_keeps_storage_order_and_the_first_seconds(storage: Storage, corpus: str) -> None:
    found = list(CorpusStream(storage, corpus, split="val", seed=1, training=False).rows())
    assert ids(found) == [row["sample_id"] for row in LONG]
    sound = decode(LONG[0]["audio"][0])
    expected = log_mel(crop(resample(sound.samples, sound.rate)))
    np.testing.assert_allclose(read_features(found[0])[0], expected, atol=1e-5)


def test_prepare_runs_in_the_tasks_and_adds_columns(storage: Storage, corpus: str) -> None:
    def prepare(row: dict[str, Any]) -> dict[str, Any]:
        assert "features" not in row
        return {"input_ids": [len(row["instruction"]), row["recordings"]], "response": row["response"].upper()}

    stream = CorpusStream(
        storage, corpus, split="test", seed=0, training=False, prepare=prepare, extra_columns=("audio", "sampling_rate")
    )
    for row, source in zip(stream.rows(), ROWS, strict=False):
        assert row["input_ids"] == [len(source["instruction"]), len(source["audio"])]
        assert row["response"] == source["response"].upper()
        assert (row["audio"], row["sampling_rate"]) == (source["audio"], source["sampling_rate"])


def test_dataset_feeds_other_ray_data_steps(storage: Storage, corpus: str) -> None:
    dataset = CorpusStream(storage, corpus, split="test", seed=0, training=False).dataset()
    counted = dataset.map_batches(lambda batch: {"n": np.array([len(batch["sample_id"])])}, batch_size=4)
    assert sum(row["n"] for row in counted.take_all()) == 7


def test_several_streams_at_once_when_cpus_are_scarce(storage: Storage, corpus: str) -> None:
    """Training workers hold nearly all CPUs and read inside their own processes."""
    free = ray.available_resources().get("CPU", 0)
    worker = ray.remote(num_cpus=(free - 0.5) / 2)(_read_in_worker)
    halves = ray.get([worker.remote(storage, corpus, rank) for rank in range(2)])
    assert sorted(halves[0] + halves[1]) == sorted(ids(ROWS))


def _read_in_worker(storage: Storage, corpus: str, rank: int) -> list[str]:
    return ids(list(CorpusStream(storage, corpus, split="train", seed=0, rank=rank, world_size=2).rows()))


def test_errors(storage: Storage, corpus: str) -> None:
    with pytest.raises(CorpusError, match="no rows in split 'inference'"):
        CorpusStream(storage, corpus, split="inference", seed=0)
    with pytest.raises(CorpusError, match="no corpus at"):
        CorpusStream(storage, storage.join("test-stream-none"), split="train", seed=0)
    with pytest.raises(CorpusError, match="no column 'chosen'"):
        CorpusStream(storage, corpus, split="train", seed=0, extra_columns=("chosen",))
    damaged = [{**row, "log_mel": [b"short"] * len(row["audio"]), "audio_16khz": row["audio"]} for row in ROWS[:3]]
    uri = storage.join("test-stream-damaged")
    write_corpus(storage, uri, {"val": damaged}, inputs={})
    with pytest.raises(ray.exceptions.RayTaskError) as caught:
        list(CorpusStream(storage, uri, split="val", seed=0, training=False).rows())
    assert isinstance(find_user_error(caught.value), AudioError)  # so that a job can say it in one line


def test_only_some_tasks(storage: Storage) -> None:
    uri = storage.join("test-stream-tasks")
    mixed = [{**row, "task": "Report" if index % 3 else "Location"} for index, row in enumerate(rows(20))]
    write_corpus(storage, uri, {"train": mixed}, inputs={}, row_group_rows=4)
    ledger = Ledger()
    ledger.add(0, [mixed[1]["sample_id"]])
    wanted = {"Report"}
    stream = CorpusStream(storage, uri, split="train", seed=0, epochs=2, tasks=wanted, ledger=ledger)
    found = list(stream.rows())
    assert {row["task"] for row in found} == wanted
    assert len(found) == stream.rows_of(0) == 13 + 12


def test_only_in_domain(storage: Storage) -> None:
    uri = storage.join("test-stream-domains")
    mixed = [{**row, "distribution": "OOD" if index % 4 == 0 else "ID"} for index, row in enumerate(rows(20))]
    write_corpus(storage, uri, {"train": mixed}, inputs={}, row_group_rows=4)
    stream = CorpusStream(storage, uri, split="train", seed=0, distributions=("ID",))
    found = list(stream.rows())
    assert {row["distribution"] for row in found} == {"ID"}
    assert len(found) == stream.rows_of(0) == 15


def test_only_the_columns_that_are_needed_are_read(storage: Storage, corpus: str) -> None:
    """What a stream asks of storage: with augmentation the training copy, else what is kept of log-mels."""
    read = {
        name: CorpusStream(storage, corpus, split="train", seed=0, **options)._reader.sounds
        for name, options in (
            ("evaluation", {"training": False}),
            ("augmented", {"augmentation": "label-keeping"}),
            ("plain", {}),
            ("anew", {"from_waveforms": True}),
        )
    }
    assert read["evaluation"].always == ("log_mel",) and not read["evaluation"].by_length
    assert read["augmented"].always == ("audio_16khz",) and not read["augmented"].by_length
    assert read["anew"] == read["augmented"]
    assert read["plain"].always == () and read["plain"].by_length
    lengths = pa.chunked_array([[[3.0], [2.0, 7.0]], [[9.0]]])
    assert SoundColumns.needed(lengths) == ["decibels", "log_mel"]
    assert SoundColumns.needed(lengths.slice(0, 2)) == ["log_mel"]
    assert SoundColumns.needed(lengths.slice(2)) == ["decibels"]


def test_a_stream_that_stands_still_goes_on_where_it_is(
    storage: Storage, corpus: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray Data's watchdog fires twice, each time after a block: nothing is lost, nothing comes twice."""
    whole = ids(list(CorpusStream(storage, corpus, split="train", seed=3).rows()))
    stream = CorpusStream(storage, corpus, split="train", seed=3)
    tables, calls = stream._tables, []

    def breaks(pieces: list[Piece]) -> Iterator[pa.Table]:
        calls.append(len(pieces))
        left = tables(pieces)
        if len(calls) < 3:
            yield next(left)
            raise ExecutionTimeoutError("no progress")
        yield from left

    monkeypatch.setattr(stream, "_tables", breaks)
    assert ids(list(stream.rows())) == whole
    assert len(calls) == 3 and calls == sorted(calls, reverse=True)
