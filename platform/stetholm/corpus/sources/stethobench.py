"""Reader of StethoBench's own format: one JSON Lines file beside a folder of recordings."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from stetholm.corpus.folder import open_folder
from stetholm.corpus.schema import MAX_LINE_BYTES, Entry, PairError, Reject, parse_line
from stetholm.corpus.source import Earlier, Reader, Report, Source
from stetholm.errors import UserError
from stetholm.settings import Settings
from stetholm.storage import Storage

_BOM = b"\xef\xbb\xbf"
_CHUNK = 2**20


@dataclass(frozen=True)
class JsonLines:
    """A StethoBench file at a path or an ``s3://`` URI."""

    where: str
    storage: Storage
    name: str | None = None
    """What ``rejects.parquet`` calls it, where that is not ``where``."""

    def check(self) -> None:
        """Raise a UserError if the file is not there."""
        there = self.storage.exists(self.where) if self._remote else Path(self.where).is_file()
        if not there:
            raise UserError(f"corpus.jsonl: {self.where} is not a file")

    def sha256(self) -> str:
        """SHA-256 of the file, read once in pieces."""
        digest = hashlib.sha256()
        with self._open() as file:
            while piece := file.read(_CHUNK):
                digest.update(piece)
        return digest.hexdigest()

    def entries(self) -> Iterator[Entry | Reject]:
        """Each line's pair, or why it is none. Blank lines do not count as pairs."""
        source = self.name or self.where
        with self._open() as file:
            for line, raw in enumerate(bounded_lines(file), start=1):
                raw = raw.removeprefix(_BOM) if line == 1 else raw
                if len(raw) <= MAX_LINE_BYTES and not raw.strip():
                    continue
                try:
                    yield Entry(source, line, parse_line(raw, line))
                except PairError as error:
                    yield Reject(source, line, error.reason)

    @property
    def _remote(self) -> bool:
        return self.where.startswith("s3://")

    def _open(self) -> BinaryIO:
        if self._remote:
            raw = self.storage.fs.open(self.storage.key(self.where), "rb")
            return io.BufferedReader(cast(io.RawIOBase, raw), _CHUNK)  # fsspec's own readline takes no limit
        return open(self.where, "rb")


def bounded_lines(file: BinaryIO, limit: int = MAX_LINE_BYTES) -> Iterator[bytes]:
    """Lines of ``file``; of one longer than ``limit`` bytes the first ``limit + 1``, so that no line fills memory."""
    while line := file.readline(limit + 1):
        yield line
        while len(line) > limit and not line.endswith(b"\n"):
            line = file.readline(limit + 1)


def _files(settings: Settings, storage: Storage) -> tuple[JsonLines, str]:
    corpus = settings.corpus
    if not corpus.jsonl or not corpus.audio:
        key = "corpus.audio" if corpus.jsonl else "corpus.jsonl"
        raise UserError(f"corpus.source = stethobench needs {key} (a path or an s3:// URI)")
    lines = JsonLines(corpus.jsonl, storage)
    lines.check()
    return lines, corpus.audio


def _inputs(settings: Settings, storage: Storage) -> dict[str, Any]:
    lines, audio = _files(settings, storage)
    open_folder(audio, storage)
    return {"jsonl_sha256": lines.sha256()}


def _open(settings: Settings, storage: Storage, scratch: Path, report: Report, earlier: Earlier) -> Source:
    lines, audio = _files(settings, storage)
    return Source(lines.entries, open_folder(audio, storage))


READER = Reader(_inputs, _open)
