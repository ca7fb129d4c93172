"""Recordings and pairs become shards in object storage.

python jobs/ingest.py                                                       # the embedded synthetic corpus
python jobs/ingest.py --set corpus.jsonl=pairs.jsonl --set corpus.audio=recordings/
"""

from __future__ import annotations

from typing import Any

from stetholm.corpus.ingest import ingest
from stetholm.job import run_job
from stetholm.settings import Settings
from stetholm.storage import Storage


def main(settings: Settings, storage: Storage) -> dict[str, Any]:
    """Make the corpus of the settings."""
    return ingest(settings, storage)


if __name__ == "__main__":
    run_job("ingest", main)
