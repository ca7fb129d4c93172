"""The checkpoints of a stage in storage: whole or not there at all, the last ones and the best one kept.

    checkpoints = Checkpoints(storage, "s3://bucket/runs/first/sft", keep=2)
    latest = checkpoints.latest()            # None, or where to go on from
    run_stage(job, resume, checkpoints.report)

Each lies in ``<stage>/checkpoint_<step>``. Its ``config.json`` is uploaded last and removed first, and whoever reads a
checkpoint asks for that file: so nobody sees half a one, whatever dies when. What is there is read from storage alone.
No list is kept beside it that could name what is gone, or miss what a killed process has just finished.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stetholm.storage import Storage

MARKER = "config.json"
"""The file that is uploaded last and removed first."""
METRICS = "metrics.json"
"""What was known of a checkpoint when it was written, by name."""
VALIDATION = "validation"
"""Beside the checkpoints: what has been measured of each since, ``<step>.json``."""

MOST_WAITING = 4
"""Checkpoints beyond the last ones that are kept because what is measured beside the training has not come yet."""

_NAME = re.compile(r"checkpoint_(\d{8,})")


def name_of(step: int) -> str:
    """The folder of the checkpoint after ``step`` steps."""
    return f"checkpoint_{step:08d}"


@dataclass(frozen=True, order=True)
class Found:
    """A whole checkpoint."""

    step: int
    uri: str


class Checkpoints:
    """See the module.

    Args:
        storage: open storage.
        uri: the stage's folder in it.
        keep: how many of the last ones are kept.
        metric: which number says what is best, the lower the better; that one is kept besides.
        spare: URIs that are never removed, e.g. of what an earlier job has named as its result.
    """

    def __init__(
        self, storage: Storage, uri: str, keep: int, metric: str = "loss", spare: Collection[str] = ()
    ) -> None:
        self.storage, self.uri = storage, uri.rstrip("/")
        self._keep, self._metric = keep, metric
        self._spare = {each.rstrip("/") for each in spare}
        self._known: dict[str, dict[str, Any]] = {}

    def uri_of(self, step: int) -> str:
        """Where the checkpoint after ``step`` steps lies."""
        return f"{self.uri}/{name_of(step)}"

    def whole(self) -> list[Found]:
        """Those that are whole, by step."""
        return sorted(
            Found(int(match[1]), f"{self.uri}/{name}")
            for name, files in self._folders().items()
            if MARKER in files and (match := _NAME.fullmatch(name))
        )

    def latest(self) -> Found | None:
        """The whole one with most steps."""
        return max(self.whole(), default=None)

    def best(self) -> Found | None:
        """The whole one whose metric is lowest, the latest of equals; None if none has the metric."""
        return self._best(self.whole())

    def report(self, numbers: Mapping[str, Any], folder: Path | None) -> None:
        """Upload what a training step has written to ``folder`` and tidy up; see :data:`stetholm.training.loop.Report`.

        The folder is removed. Ranks that write nothing pass None.
        """
        if folder is not None:
            self.upload(folder, numbers)
            shutil.rmtree(folder)

    def upload(self, folder: Path, numbers: Mapping[str, Any]) -> str:
        """Upload a checkpoint folder with a picture of its curves, then remove what is not to be kept any longer.

        Args:
            folder: with :data:`MARKER` in it; stays as it is.
            numbers: ``step`` and what else is known of it.

        Returns:
            Its URI. It is whole when this returns; before, it is not there for any reader.
        """
        from stetholm.training.curves import draw_checkpoint  # it brings matplotlib

        uri = self.uri_of(int(numbers["step"]))
        draw_checkpoint(folder, "/".join(self.uri.split("/")[-2:]))  # here, as training does not wait for it
        (folder / METRICS).write_text(json.dumps(dict(numbers)), encoding="utf-8")
        self.storage.upload_dir(folder, uri, last=MARKER)
        self.tidy()
        return uri

    def tidy(self) -> None:
        """Remove whole ones that are neither of the last, nor the best, nor spared, nor still to be measured."""
        whole = self.whole()
        for found in whole:
            if found not in self._kept(whole):
                self._remove(found.uri)

    def remove_halves(self) -> list[str]:
        """Remove what killed processes have begun and not finished; their URIs. Call it while nobody uploads."""
        halves = [f"{self.uri}/{name}" for name, files in self._folders().items() if MARKER not in files]
        for uri in halves:
            self.storage.remove_dir(uri)
        return halves

    def _kept(self, whole: Sequence[Found]) -> set[Found]:
        kept = {*whole[-self._keep :], *(found for found in whole if found.uri in self._spare)}
        best = self._best(whole)
        measured = max((found.step for found in whole if self._metric in self._numbers(found)), default=-1)
        waiting = {found for found in whole[-self._keep - MOST_WAITING :] if found.step > measured}
        return kept | waiting | ({best} if best is not None else set())

    def _best(self, whole: Sequence[Found]) -> Found | None:
        scored = [(self._numbers(found).get(self._metric), -found.step, found) for found in whole]
        numbers = [(float(score), order, found) for score, order, found in scored if score is not None]
        return min(numbers)[2] if numbers else None

    def _numbers(self, found: Found) -> dict[str, Any]:
        """What is known of one; once it has the metric, it is not read again."""
        known = self._known.setdefault(found.uri, {})
        if not known:
            known |= self._read(f"{found.uri}/{METRICS}")
        if self._metric not in known:
            known |= self._read(f"{self.uri}/{VALIDATION}/{found.step:08d}.json")
        return known

    def _read(self, uri: str) -> dict[str, Any]:
        numbers: dict[str, Any] = self.storage.read_json(uri) if self.storage.exists(uri) else {}
        return numbers

    def _remove(self, uri: str) -> None:
        self.storage.remove_dir(f"{uri}/{MARKER}")
        self.storage.remove_dir(uri)
        self._known.pop(uri, None)

    def _folders(self) -> dict[str, set[str]]:
        """Names of the files in each checkpoint's folder, by its name."""
        folders: dict[str, set[str]] = {}
        for uri in self.storage.list(self.uri):
            folder, _, file = uri.removeprefix(f"{self.uri}/").partition("/")
            if file and _NAME.fullmatch(folder):
                folders.setdefault(folder, set()).add(file)
        return folders
