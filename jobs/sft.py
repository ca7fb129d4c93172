"""Teach the model to answer: supervised fine-tuning.

    python jobs/sft.py --set run.name=first

The same run.name again goes on from the last checkpoint.
"""

from __future__ import annotations

from typing import Any

from stetholm.job import run_job
from stetholm.settings import Settings
from stetholm.storage import Storage
from stetholm.training.stage import train_stage


def main(settings: Settings, storage: Storage) -> dict[str, Any]:
    """Run the stage; its numbers and the checkpoint's URI."""
    return train_stage(settings, storage, "sft")


if __name__ == "__main__":
    run_job("sft", main)
