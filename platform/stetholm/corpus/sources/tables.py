"""What the readers of public datasets share: finding files in a publisher's folder, reading small tables from it."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePosixPath

from stetholm.corpus.folder import AudioFolder, RecordingError
from stetholm.corpus.schema import MAX_LINE_BYTES
from stetholm.errors import UserError

MAX_TABLE_BYTES = 256 * 2**20
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
_TOO_LONG = b"a line of %d bytes"


def audio_files(names: Sequence[str], suffixes: tuple[str, ...] = AUDIO_SUFFIXES) -> list[str]:
    """Those of ``names`` that are recordings by their suffix, in any case of letters; hidden files are none."""
    return [name for name in names if name.lower().endswith(suffixes) and not stem(name).startswith(".")]


def stem(name: str) -> str:
    """``101_1b1_Al`` of ``a/b/101_1b1_Al.wav``."""
    return PurePosixPath(name).stem


def find(names: Sequence[str], wanted: str) -> str | None:
    """The first of ``names`` whose last part is ``wanted`` in any case of letters, the least deep one first."""
    found = [name for name in names if PurePosixPath(name).name.lower() == wanted.lower()]
    return min(found, key=lambda name: (name.count("/"), name), default=None)


def require(names: Sequence[str], wanted: str, dataset: str) -> str:
    """:func:`find`, or a UserError that says what this dataset needs."""
    found = find(names, wanted)
    if found is None:
        raise UserError(f"corpus.audio: {dataset} needs its file {wanted}, and there is none below the folder")
    return found


def require_any(names: Sequence[str], fits: Callable[[str], object], dataset: str) -> list[str]:
    """``names``, or a UserError where none of them ``fits`` this dataset's naming: it is another folder."""
    if not any(fits(name) for name in names):
        raise UserError(f"corpus.audio: no recording below the folder has a name of {dataset}")
    return list(names)


def read_text(folder: AudioFolder, name: str) -> str:
    """A text file as UTF-8 (with or without a mark), else as Windows-1252; line ends become newlines.

    A line of over ``MAX_LINE_BYTES`` comes as words that say so, which are no row of any table.

    Raises:
        UserError: it cannot be read, or is larger than ``MAX_TABLE_BYTES``.
    """
    try:
        raw = folder.read(name, MAX_TABLE_BYTES)
    except RecordingError as error:
        raise UserError(f"corpus.audio: {name} {error}") from None
    lines = raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    raw = b"\n".join(_TOO_LONG % len(line) if len(line) > MAX_LINE_BYTES else line for line in lines)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return raw.decode("cp1252", errors="replace")


def csv_rows(
    folder: AudioFolder, name: str, *, columns: Sequence[str] | None = None, delimiter: str = ","
) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows of a table as (line from 1, stripped values by column); blank rows are left out.

    Args:
        folder: where the table lies.
        name: of the table.
        columns: names of the columns of a table that has no header; None: the first row names them.
        delimiter: between values.

    A value that is missing at the end of a row is "". A line is a row: a quote that nobody closes spoils no other.
    """
    csv.field_size_limit(MAX_LINE_BYTES)  # of the whole process, and far less by default
    header = list(columns) if columns is not None else None
    for number, line in enumerate(read_text(folder, name).split("\n"), start=1):
        values = [value.strip() for value in next(csv.reader([line], delimiter=delimiter), [])]
        if not any(values):
            continue
        if header is None:
            header = values
            continue
        padded = values + [""] * (len(header) - len(values))
        yield number, dict(zip(header, padded, strict=False))
