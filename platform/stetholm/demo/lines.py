"""What a job's log says, line by line: progress, the result, the one line that tells why it failed."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

COLOUR = re.compile(r"\x1b\[[0-9;]*m")
WORKER = re.compile(r"^\([\w .:/-]*pid=\d+[^)]*\)\s?")
"""What Ray puts before the lines of a worker's output."""
COUNT = r"(?P<done>\d+)(?:/(?P<total>\d+))?(?: (?P<unit>\S+))?"
PROGRESS = re.compile(rf"^(?P<name>[A-Za-z](?:[\w /:-]{{0,38}}\w)?)  {COUNT}(?P<rest>(?:  .*)?)$")
RESULT = "RESULT "


@dataclass(frozen=True)
class Step:
    """One line of progress: ``sft  40/120 steps  loss 1.234  eta 2:10``."""

    name: str
    done: int
    total: int | None
    numbers: str
    """The rest of the line, as the job wrote it, without the time that it expects to take."""


def plain(line: str) -> str:
    """The line without colours and without Ray's prefix for a worker's output."""
    return WORKER.sub("", COLOUR.sub("", line)).rstrip()


def progress(line: str) -> Step | None:
    """The progress that a plain line reports; None for any other line."""
    found = PROGRESS.match(line)
    if found is None:
        return None
    parts = [part.strip() for part in re.split(r"  +", found["rest"]) if part.strip()]
    kept = "  ".join(part for part in parts if not part.startswith("eta "))
    return Step(found["name"], int(found["done"]), int(found["total"]) if found["total"] else None, kept)


def result(line: str) -> dict[str, Any] | None:
    """What a plain ``RESULT {…}`` line holds; None for any other line."""
    if not line.startswith(RESULT):
        return None
    try:
        held = json.loads(line[len(RESULT) :])
    except ValueError:
        return None
    return held if isinstance(held, dict) else None
