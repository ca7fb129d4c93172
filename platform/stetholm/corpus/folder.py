"""The folder below which a source's recordings lie: on this machine's disk or in object storage."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from stetholm.corpus.schema import check_filename
from stetholm.errors import UserError
from stetholm.storage import Storage


class RecordingError(Exception):
    """A recording that cannot be had; the message is the reason that ``rejects.parquet`` records."""


class AudioFolder(Protocol):
    """Reads files below one folder and no others. Picklable: Ray tasks read with it."""

    @property
    def local(self) -> bool:
        """Whether only this machine can read it."""
        ...

    def files(self) -> dict[str, int]:
        """Name and bytes of every file below the folder, sorted by name."""
        ...

    def stamps(self, names: Collection[str]) -> dict[str, str]:
        """What changes when a file does, for those of ``names`` that are there. No content is read."""
        ...

    def read(self, name: str, max_bytes: int) -> bytes:
        """Bytes of the file ``name``.

        Raises:
            RecordingError: it is missing, no file, outside the folder, or larger than ``max_bytes``.
        """
        ...


@dataclass(frozen=True)
class LocalFolder:
    """A folder on disk. Links may point anywhere inside it, and nowhere else."""

    root: str
    local: bool = True

    def files(self) -> dict[str, int]:
        """See :meth:`AudioFolder.files`. A link that leads nowhere counts 0 bytes; reading it says what is wrong."""
        root = Path(self.root)
        paths = (Path(at) / name for at, _, names in os.walk(root) for name in names)
        return dict(sorted((path.relative_to(root).as_posix(), _bytes(path)) for path in paths))

    def stamps(self, names: Collection[str]) -> dict[str, str]:
        """See :meth:`AudioFolder.stamps`: size and time of the last change."""
        found = {}
        for name in names:
            with contextlib.suppress(OSError, ValueError):  # not there, too long a name: reading it says so
                status = os.stat(Path(self.root) / name)
                found[name] = f"{status.st_size}-{status.st_mtime_ns}"
        return found

    def read(self, name: str, max_bytes: int) -> bytes:
        """See :meth:`AudioFolder.read`."""
        path = self._inside(name)
        try:
            if not path.is_file():  # also: a pipe or a device would block or never end
                raise RecordingError("is not there" if not path.exists() else "is not a file")
            with path.open("rb") as file:
                data = file.read(max_bytes + 1)
        except OSError as error:
            raise RecordingError(f"cannot be read: {error.strerror or error}") from error
        return _bounded(data, max_bytes)

    def _inside(self, name: str) -> Path:
        _check(name)
        root = Path(self.root).resolve()
        try:
            path = (root / name).resolve()
        except (OSError, RuntimeError) as error:  # a loop of links, a name too long
            raise RecordingError(f"cannot be read: {error}") from error
        if not path.is_relative_to(root):
            raise RecordingError("leaves the audio folder through a link")
        return path


@dataclass(frozen=True)
class StorageFolder:
    """A prefix in object storage."""

    root: str
    storage: Storage
    local: bool = False

    def files(self) -> dict[str, int]:
        """See :meth:`AudioFolder.files`."""
        base = self.root.rstrip("/")
        return {uri.removeprefix(f"{base}/"): size for uri, size in self.storage.sizes(base).items()}

    def stamps(self, names: Collection[str]) -> dict[str, str]:
        """See :meth:`AudioFolder.stamps`: size and ETag."""
        base = self.root.rstrip("/")
        found = {uri.removeprefix(f"{base}/"): stamp for uri, stamp in self.storage.stamps(base).items()}
        return {name: found[name] for name in names if name in found}

    def read(self, name: str, max_bytes: int) -> bytes:
        """See :meth:`AudioFolder.read`."""
        _check(name)
        where = f"{self.root.rstrip('/')}/{name}"
        if not self.storage.fs.isfile(self.storage.key(where)):
            raise RecordingError("is not there")
        if (size := self.storage.size(where)) > max_bytes:
            raise RecordingError(f"of {size} bytes is larger than audio.max_bytes = {max_bytes}")
        return self.storage.read_bytes(where)


def open_folder(where: str, storage: Storage) -> AudioFolder:
    """The folder at a path or an ``s3://`` URI.

    Raises:
        UserError: there is none.
    """
    if where.startswith("s3://"):
        if not storage.list(where):
            raise UserError(f"corpus.audio: nothing lies below {where}")
        return StorageFolder(where, storage)
    if not Path(where).is_dir():
        raise UserError(f"corpus.audio: {where} is not a folder")
    return LocalFolder(str(Path(where).resolve()))


def _bytes(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:
        return 0


def _check(name: str) -> None:
    try:
        check_filename(name)
    except ValueError as error:
        raise RecordingError(str(error)) from error


def _bounded(data: bytes, max_bytes: int) -> bytes:
    if len(data) > max_bytes:
        raise RecordingError(f"is larger than audio.max_bytes = {max_bytes}")
    return data
