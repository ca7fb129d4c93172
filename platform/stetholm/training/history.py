"""The curve of a stage as data: one record a log line, kept with each checkpoint and carried on by a resumed run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from stetholm.training.lineage import STATE_FOLDER

FILE = f"{STATE_FOLDER}/history.jsonl"
"""Below a checkpoint."""

Record = dict[str, Any]
"""``step``, ``time`` (seconds since 1970) and numbers by name; of a checkpoint's evaluation, ``val_…`` alone."""


class History:
    """Records in the order in which they were made; steps of training go up by each."""

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self.records: list[Record] = list(records)

    def add(self, record: Record) -> None:
        """Append ``record``."""
        self.records.append(record)

    def training(self) -> list[Record]:
        """Records of steps."""
        return [record for record in self.records if not is_validation(record)]

    def validation(self) -> list[Record]:
        """Records of checkpoints' evaluations, by step."""
        return sorted(filter(is_validation, self.records), key=lambda record: record["step"])

    def write(self, folder: Path, step: int) -> None:
        """Write what is known up to ``step`` below the checkpoint ``folder``."""
        path = folder / FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(to_lines([record for record in self.records if record["step"] <= step]), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path | None) -> History:
        """What the checkpoint ``folder`` knows; nothing without one, or of one made before there was a history."""
        path = folder / FILE if folder is not None else None
        return cls(from_lines(path.read_text(encoding="utf-8"))) if path is not None and path.exists() else cls()


def is_validation(record: Record) -> bool:
    """Whether it is of a checkpoint's evaluation."""
    return any(name.startswith("val_") for name in record)


def to_lines(records: Sequence[Record]) -> str:
    """JSON Lines."""
    return "".join(f"{json.dumps(record)}\n" for record in records)


def from_lines(text: str) -> list[Record]:
    """The records of JSON Lines."""
    return [json.loads(line) for line in text.splitlines()]
