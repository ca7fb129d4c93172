"""Which recordings stand for a corpus on a sheet, and their cached spectrograms."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stetholm.corpus.derived import unpack_log_mel
from stetholm.corpus.parquet import read_parquet
from stetholm.corpus.recording import FINDING, STATUS
from stetholm.corpus.survey import Known, Place, Survey
from stetholm.storage import Storage


def choose(survey: Survey, count: int, seed: int) -> list[tuple[str, Known]]:
    """At most ``count`` recordings with a split of theirs, sorted by dataset, label and split.

    They are dealt in turn among the datasets, there among the label values, and there among the splits, so that each
    of them is seen as long as there is room; within these a hash of seed and recording decides.
    """
    tree: dict[str, dict[str, dict[str, list[tuple[str, Known]]]]] = {}
    for split, members in survey.members.items():
        for known in sorted(members, key=lambda known: _hash(seed, known.recording_id)):
            by_label = tree.setdefault(known.dataset, {})
            by_label.setdefault(main_label(known), {}).setdefault(split, []).append((split, known))
    datasets = [_in_turn([_in_turn(list(splits.values())) for splits in labels.values()]) for labels in tree.values()]
    taken: dict[str, tuple[str, Known]] = {}
    for split, known in _in_turn(datasets):
        if len(taken) < count:
            taken.setdefault(known.recording_id, (split, known))
    order = {split: number for number, split in enumerate(survey.splits)}
    return sorted(taken.values(), key=lambda item: (item[1].dataset, main_label(item[1]), order[item[0]]))


def main_label(known: Known) -> str:
    """The label by which recordings are chosen: status and finding, else the first there is."""
    labels = known.labels or {}
    values = [labels[name] for name in (STATUS, FINDING) if name in labels] or list(labels.values())[:1]
    return ", ".join(values)


def _in_turn(lists: Sequence[list[Any]]) -> list[Any]:
    """One of each list, then a second one of each, and so on."""
    longest = max(map(len, lists), default=0)
    return [items[place] for place in range(longest) for items in lists if place < len(items)]


def _hash(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}/{name}".encode()).digest()


def read_log_mels(storage: Storage, corpus_uri: str, places: Sequence[Place]) -> list[NDArray[np.float32]]:
    """The cached spectrograms ``(64, 218)`` at ``places``; each row group that holds one is read once."""
    found: dict[Place, NDArray[np.float32]] = {}
    for path in sorted({place.shard for place in places}):
        wanted = [place for place in places if place.shard == path]
        found.update(read_parquet(storage, f"{corpus_uri}/{path}", partial(_cached, places=wanted)))
    return [found[place] for place in places]


def _cached(file: pq.ParquetFile, places: Iterable[Place]) -> dict[Place, NDArray[np.float32]]:
    starts = np.cumsum([0, *(file.metadata.row_group(index).num_rows for index in range(file.num_row_groups))])
    groups: dict[int, list[Place]] = {}
    for place in places:
        groups.setdefault(int(np.searchsorted(starts, place.row, side="right")) - 1, []).append(place)
    found = {}
    for group, inside in groups.items():
        column = file.read_row_group(group, columns=["log_mel"])["log_mel"]
        for place in inside:
            packed = column[place.row - int(starts[group])][place.position]
            found[place] = unpack_log_mel(packed.as_py())
    return found
