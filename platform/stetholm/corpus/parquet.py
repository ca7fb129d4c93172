"""Reading parts of the Parquet files of a corpus: patiently, and with one line for a file that is not whole."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import chain, repeat
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import FileSystem

from stetholm.corpus.manifest import CorpusError
from stetholm.storage import Storage

T = TypeVar("T")


def read_parquet(storage: Storage, uri: str, read: Callable[[pq.ParquetFile], T], sha256: str | None = None) -> T:
    """What ``read`` gives of a Parquet file, of which only the parts that it asks for are fetched.

    After a fault that may pass, the file is opened and read anew.

    Args:
        storage: where it lies.
        uri: of the file.
        read: called with the open file, once or more.
        sha256: of the file; given, its footer is kept for the next call.

    Raises:
        CorpusError: the file is missing, damaged, or lacks a column.
    """
    # Again by s3fs, which repeats each request by itself: where every third one fails, no whole read gets through.
    ways = chain([storage.arrow_reader], repeat(storage.arrow_writer))

    def attempt() -> T:
        with _open(next(ways)(), storage.key(uri), sha256) as file:
            return read(file)

    return whole(lambda: storage.patiently(attempt, f"reading {uri}"), uri)


def whole(read: Callable[[], T], what: str) -> T:
    """What ``read`` gives.

    Raises:
        CorpusError: ``what`` is missing, damaged, or lacks a column.
    """
    again = "ingest the corpus again, to another corpus.uri"
    try:
        return read()
    except FileNotFoundError:
        raise CorpusError(f"{what} is missing, though the manifest names it: {again}") from None
    except (pa.ArrowInvalid, KeyError) as error:
        raise CorpusError(f"{what} cannot be read ({str(error)[:200]}): {again}") from error


_MAX_FOOTERS = 16
"""Few: each takes a quarter of a megabyte in every reading process, whose memory is not to grow with the corpus."""
_LOCK = threading.Lock()
_FOOTERS: dict[tuple[str, str], pq.FileMetaData] = {}
"""Footers of files that this process has opened. The checksum tells apart a corpus written anew at the same URI."""


def _open(filesystem: FileSystem, key: str, sha256: str | None) -> pq.ParquetFile:
    footer = _FOOTERS.get((key, sha256)) if sha256 else None
    file = pq.ParquetFile(filesystem.open_input_file(key), metadata=footer, pre_buffer=True)
    if sha256 and footer is None:
        with _LOCK:
            if len(_FOOTERS) >= _MAX_FOOTERS:
                del _FOOTERS[next(iter(_FOOTERS))]
            _FOOTERS[key, sha256] = file.metadata
    return file
