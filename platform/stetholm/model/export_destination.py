"""Where an export goes: a new folder, or a new prefix of a bucket; whole or recognisably not."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stetholm.errors import UserError
from stetholm.storage import Storage

MARKER = "export.json"
"""What is exported here. Of a bucket written first, so that a broken export is known as ours and taken up again."""
LAST = "config.json"
"""Written last: a folder that has it is whole, and one without it is no checkpoint to any reader."""


class Destination:
    """One folder or ``s3://`` URI.

    Args:
        where: as the user gave it.
        storage: for URIs.
    """

    def __init__(self, where: str, storage: Storage) -> None:
        self._storage = storage
        self._remote = where.startswith("s3://")
        self._folder = Path() if self._remote else Path(where).expanduser().absolute()
        self.uri = where.rstrip("/") if self._remote else str(self._folder)

    def marker(self, inputs: dict[str, Any]) -> dict[str, Any] | None:
        """What ``MARKER`` says of a whole export that is already here; None: nothing, or the beginning of this one.

        Args:
            inputs: what the export is made from.

        Raises:
            UserError: something else is here.
        """
        names = self._names()
        if not names:
            return None
        if MARKER not in names:
            raise UserError(
                f"export.to: {self.uri} holds other files (e.g. {names[0]}): choose one that is not there yet"
            )
        marker = self._read_marker()
        if marker.get("inputs") != inputs:
            raise UserError(
                f"export.to: {self.uri} holds another export ({_said(marker.get('inputs'))}): choose another one"
            )
        return marker if LAST in names else None

    @contextmanager
    def filled(self) -> Iterator[Path]:
        """A folder to write the export into; at the end of the block it appears at the destination, ``LAST`` last.

        Raises:
            UserError: the destination cannot be written.
        """
        above = None if self._remote else self._folder.parent
        try:
            if above is not None:
                above.mkdir(parents=True, exist_ok=True)
            scratch = tempfile.TemporaryDirectory(dir=above, prefix=".stetholm-export-")
        except OSError as error:
            raise UserError(f"export.to: cannot write {self.uri}: {error.strerror}: choose another one") from error
        with scratch as name:
            folder = Path(name) / "model"
            folder.mkdir()
            yield folder
            if self._remote:
                self._upload(folder)
            else:
                folder.rename(self._folder)  # one step; onto an empty folder too

    def read(self, name: str) -> str:
        """The text of a file of an export."""
        if self._remote:
            return self._storage.read_text(f"{self.uri}/{name}")
        return (self._folder / name).read_text(encoding="utf-8")

    def rewrite(self, name: str, text: str) -> None:
        """Put another text into a file of a whole export."""
        if self._remote:
            self._storage.write_text(f"{self.uri}/{name}", text)
            return
        fresh = self._folder / f".{name}.new"
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(self._folder / name)

    def _upload(self, folder: Path) -> None:
        self._storage.write_bytes(f"{self.uri}/{MARKER}", (folder / MARKER).read_bytes())
        config = (folder / LAST).read_bytes()
        (folder / LAST).unlink()
        self._storage.upload_dir(folder, self.uri)
        self._storage.write_bytes(f"{self.uri}/{LAST}", config)

    def _names(self) -> list[str]:
        if self._remote:
            return [uri.removeprefix(f"{self.uri}/") for uri in self._storage.list(self.uri)]
        if self._folder.is_file():
            raise UserError(f"export.to: {self.uri} is a file: give a folder that is not there yet")
        return sorted(path.name for path in self._folder.iterdir()) if self._folder.is_dir() else []

    def _read_marker(self) -> dict[str, Any]:
        try:
            marker: dict[str, Any] = json.loads(self.read(MARKER))
        except ValueError as error:
            raise UserError(f"export.to: {self.uri}/{MARKER} is damaged: choose another one") from error
        return marker


def _said(inputs: Any) -> str:
    return ", ".join(f"{key} {value}" for key, value in inputs.items()) if isinstance(inputs, dict) else "unknown"
