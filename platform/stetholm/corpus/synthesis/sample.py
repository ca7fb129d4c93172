"""A sample of synthesised pairs with their labels, as a Markdown table.

python -m stetholm.corpus.synthesis.sample s3://stetholm/runs/first/synthesize/pairs.jsonl --count 20
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stetholm.errors import UserError
from stetholm.markdown import table
from stetholm.settings import StorageSettings
from stetholm.storage import open_storage


def choose(rows: Sequence[Mapping[str, Any]], count: int, seed: int = 0) -> list[Mapping[str, Any]]:
    """``count`` rows in a random order of the seed's, the tasks in turn."""
    by_task: dict[str, list[Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: _place(seed, row)):
        by_task.setdefault(row["task"], []).append(row)
    turns = max(map(len, by_task.values()), default=0)
    dealt = [group[turn] for turn in range(turns) for _, group in sorted(by_task.items()) if turn < len(group)]
    return dealt[:count]


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The pairs beside what the labels say."""
    header = ("task", "recordings", "labels", "instruction", "response")
    return table(header, [_cells(row) for row in rows], texts=len(header))


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    names = row["filename"] if isinstance(row["filename"], list) else [row["filename"]]
    sites = (row["site"] or "").split("+")
    labels = " / ".join("; ".join(labels.values()) for labels in row["labels"])
    site = f" ({', '.join(sites)})" if sites[0] else ""
    return row["task"], ", ".join(names), labels + site, row["instruction"], row["response"]


def _place(seed: int, row: Mapping[str, Any]) -> str:
    return hashlib.sha256(f"{seed}/{json.dumps([row['filename'], row['task']])}".encode()).hexdigest()


def read(where: str) -> list[dict[str, Any]]:
    """The rows of ``pairs.jsonl`` at a path or an ``s3://`` URI of the embedded storage.

    Raises:
        UserError: it is not there.
    """
    if where.startswith("s3://"):
        text = open_storage(StorageSettings()).read_text(where)
    elif Path(where).is_file():
        text = Path(where).read_text(encoding="utf-8")
    else:
        raise UserError(f"there is no file {where}")
    return [json.loads(line) for line in text.splitlines()]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", help="pairs.jsonl of a synthesize job: a path or an s3:// URI")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    try:
        print(markdown(choose(read(chosen.pairs), chosen.count, chosen.seed)))
    except UserError as error:
        parser.exit(2, f"sample: {error}\n")


if __name__ == "__main__":
    main()
