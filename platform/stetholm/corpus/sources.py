"""The readers by name (``corpus.source``). Each makes pairs beside a folder of recordings from a publisher's files.

A reader is a function ``(settings, storage, scratch folder, progress) -> Source``; ``READERS`` lists them all.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stetholm.corpus.folder import AudioFolder, LocalFolder, open_folder
from stetholm.corpus.stethobench import Entry, JsonLines, Reject
from stetholm.corpus.synthetic import write_synthetic_corpus
from stetholm.errors import UserError
from stetholm.settings import Settings
from stetholm.storage import Storage

Report = Callable[[int, int], None]
"""Told how many of how many recordings a reader has prepared."""


@dataclass(frozen=True)
class Source:
    """Pairs and the folder in which their recordings lie."""

    entries: Callable[[], Iterator[Entry | Reject]]
    folder: AudioFolder


@dataclass(frozen=True)
class Reader:
    """One kind of source."""

    inputs: Callable[[Settings, Storage], dict[str, Any]]
    """What the corpus is made from. Cheap, and raises UserError for what is not there."""
    open: Callable[[Settings, Storage, Path, Report], Source]
    """Opens the source; the path is a folder for temporary files."""


def reader_of(settings: Settings) -> Reader:
    """The reader that the settings ask for; ``corpus.jsonl`` alone asks for ``stethobench``.

    Raises:
        UserError: ``corpus.source`` names none.
    """
    return READERS[source_name(settings)]


def source_name(settings: Settings) -> str:
    """Name of the reader that :func:`reader_of` gives."""
    corpus = settings.corpus
    if corpus.jsonl and corpus.source == "synthetic":  # the default; it takes no file, so the file decides
        return "stethobench"
    if corpus.source not in READERS:
        near = difflib.get_close_matches(corpus.source, READERS, n=1)
        raise UserError(
            f"corpus.source: there is no reader {corpus.source!r}; choose from {', '.join(sorted(READERS))}"
            + (f" (did you mean {near[0]!r}?)" if near else "")
        )
    return corpus.source


def _stethobench_files(settings: Settings, storage: Storage) -> tuple[JsonLines, str]:
    corpus = settings.corpus
    if not corpus.jsonl or not corpus.audio:
        key = "corpus.audio" if corpus.jsonl else "corpus.jsonl"
        raise UserError(f"corpus.source = stethobench needs {key} (a path or an s3:// URI)")
    lines = JsonLines(corpus.jsonl, storage)
    lines.check()
    return lines, corpus.audio


def _stethobench_inputs(settings: Settings, storage: Storage) -> dict[str, Any]:
    lines, audio = _stethobench_files(settings, storage)
    open_folder(audio, storage)
    return {"jsonl_sha256": lines.sha256()}


def _open_stethobench(settings: Settings, storage: Storage, scratch: Path, report: Report) -> Source:
    lines, audio = _stethobench_files(settings, storage)
    return Source(lines.entries, open_folder(audio, storage))


def _synthetic_inputs(settings: Settings, storage: Storage) -> dict[str, Any]:
    return {"synthetic": settings.corpus.synthetic.model_dump()}


def _open_synthetic(settings: Settings, storage: Storage, scratch: Path, report: Report) -> Source:
    jsonl = write_synthetic_corpus(settings.corpus.synthetic, settings.run.seed, scratch, report)
    return Source(JsonLines(str(jsonl), storage, name="synthetic").entries, LocalFolder(str(scratch)))


READERS: dict[str, Reader] = {
    "stethobench": Reader(_stethobench_inputs, _open_stethobench),
    "synthetic": Reader(_synthetic_inputs, _open_synthetic),
}
"""Every reader by its name in ``corpus.source``."""
