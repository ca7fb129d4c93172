"""The examples of a split without their audio, and a seeded choice among them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stetholm.corpus.datasource import ShardReader, row_groups
from stetholm.corpus.manifest import Manifest
from stetholm.corpus.plan import Piece
from stetholm.storage import Storage

TEXT_COLUMNS = ("sample_id", "recording_ids", "instruction", "response", "task", "dataset", "distribution", "patient")


@dataclass(frozen=True)
class Example:
    """One pair of a corpus: a question about recordings and its reference answer."""

    sample_id: str
    recording_ids: tuple[str, ...]
    instruction: str
    response: str
    task: str
    dataset: str
    distribution: str = "ID"
    patient: str = field(default="", compare=False)


def read_rows(
    storage: Storage, corpus_uri: str, split: str, columns: Sequence[str], ids: Collection[str] | None = None
) -> Iterator[dict[str, Any]]:
    """Rows of a split in storage order, one row group in memory at a time.

    Args:
        storage: where the corpus lies.
        corpus_uri: its URI.
        split: ``train``, ``val``, ``test`` or ``inference``.
        columns: what to read; ``sample_id`` must be among them.
        ids: which samples; None for all.

    Raises:
        CorpusError: there is no corpus, or nothing in the split (the message names those that have rows).
    """
    info = Manifest.load(storage, corpus_uri).split(split)
    reader = ShardReader(storage, corpus_uri.rstrip("/"), tuple(columns))
    lookup = ShardReader(storage, corpus_uri.rstrip("/"), ("sample_id",))
    for index, (group, size) in enumerate(zip(*row_groups(info), strict=True)):
        places = np.arange(size)
        if ids is not None:
            found = [
                name for table in lookup.read(group, Piece(0, index, places)) for name in table["sample_id"].to_pylist()
            ]
            places = np.flatnonzero([name in ids for name in found])
        if len(places):
            for table in reader.read(group, Piece(0, index, places)):
                yield from table.to_pylist()


def read_examples(storage: Storage, corpus_uri: str, split: str) -> list[Example]:
    """All examples of a split, in storage order.

    Raises:
        CorpusError: there is no corpus, or nothing in the split.
    """
    rows = read_rows(storage, corpus_uri, split, TEXT_COLUMNS)
    return [
        Example(**{**{name: row[name] for name in TEXT_COLUMNS}, "recording_ids": tuple(row["recording_ids"])})
        for row in rows
    ]


def choose(examples: Sequence[Example], count: int | None, seed: int) -> list[Example]:
    """``count`` examples, the tasks in proportion (each with one at least while places last), in the given order.

    The choice depends on the seed and the examples' ids, not on their order in storage.
    """
    if count is None or count >= len(examples):
        return list(examples)
    by_task: dict[str, list[Example]] = defaultdict(list)
    for example in sorted(examples, key=lambda e: e.sample_id):
        by_task[example.task].append(example)
    rng = np.random.default_rng(seed)
    chosen: set[str] = set()
    for task, places in _shares({task: len(group) for task, group in sorted(by_task.items())}, count).items():
        picked = rng.permutation(len(by_task[task]))[:places]
        chosen |= {by_task[task][index].sample_id for index in picked}
    return [example for example in examples if example.sample_id in chosen]


def _shares(sizes: dict[str, int], count: int) -> dict[str, int]:
    """Divide ``count`` places, fewer than there are members: one each first, the rest in proportion."""
    if count < len(sizes):
        return dict.fromkeys(sorted(sizes, key=lambda name: (-sizes[name], name))[:count], 1)
    rest = count - len(sizes)
    open_places = sum(sizes.values()) - len(sizes)
    exact = {name: (size - 1) * rest / open_places for name, size in sizes.items()}
    shares = {name: 1 + int(share) for name, share in exact.items()}
    # By the largest remainder.
    for name in sorted(exact, key=lambda name: (int(exact[name]) - exact[name], name))[: count - sum(shares.values())]:
        shares[name] += 1
    return shares
