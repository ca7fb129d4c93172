"""``Storage``: objects below one S3 URI, by s3fs for our own reads and writes and by pyarrow for Ray Data."""

from __future__ import annotations

import builtins
import contextlib
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

from stetholm.storage.embedded import hold_lease
from stetholm.storage.locks import locked
from stetholm.storage.paths import StorageError, home
from stetholm.storage.patience import PATIENCE_SECONDS, Patience, patiently

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.fs
    import s3fs

CONNECT_SECONDS = 10
READ_SECONDS = 60
NATIVE_ATTEMPTS = 4
"""Of pyarrow's filesystem, within some five seconds: see ``Storage.patiently`` for more."""
PARTS_AT_ONCE = 4
"""Of a multipart upload. s3fs's own 10 parts of 50 MiB hold half a gigabyte while a checkpoint is written."""

T = TypeVar("T")

_connections: dict[tuple[int, str, Storage], Any] = {}
"""Open filesystems by process id (they do not survive a fork), kind and storage."""


@dataclass(frozen=True)
class Storage:
    """Objects below ``uri``. Holds resolved settings only, so it can be pickled; each process connects by itself.

    Use :func:`stetholm.storage.open_storage` to make one: it checks endpoint, keys and bucket.
    """

    uri: str
    """``s3://bucket[/prefix]``, no trailing slash."""
    endpoint_url: str | None = None
    """None: AWS itself."""
    access_key: str | None = field(default=None, repr=False)
    secret_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    region: str = "us-east-1"
    lease_folder: Path | None = None
    """Of the embedded server: every process that uses it keeps it alive."""

    # --- names ---

    def join(self, *parts: str) -> str:
        """URI of something below ``self.uri``."""
        return "/".join([self.uri, *(part.strip("/") for part in parts)])

    def key(self, uri: str) -> str:
        """``bucket/key`` of an s3:// URI, as filesystems want it.

        Raises:
            StorageError: ``uri`` is anything else.
        """
        path = uri.removeprefix("s3://").rstrip("/")
        if not uri.startswith("s3://") or not path or path.startswith("/"):
            raise StorageError(f"storage: {uri!r} is not a storage URI: write it as s3://bucket/path")
        return path

    def on_this_machine(self, uri: str) -> Path | None:
        """The file or folder in which the embedded server keeps ``uri``; None with any other storage."""
        return self.lease_folder / "s3" / self.key(uri) if self.lease_folder is not None else None

    # --- filesystems ---

    @property
    def fs(self) -> s3fs.S3FileSystem:
        """This process's s3fs, patient in every request. It caches no listings: others write to the same storage."""
        return self._connected("s3fs", self.new_s3fs)

    def arrow_reader(self) -> pyarrow.fs.S3FileSystem:
        """The native filesystem of pyarrow: the fastest reader, to be used within ``patiently``.

        Not for writing (see ``arrow_writer``).
        """
        return self._connected("arrow", self._new_arrow)

    def arrow_writer(self) -> pyarrow.fs.PyFileSystem:
        """An s3fs-backed filesystem for Ray Data's writes and Ray Train.

        The native one's create_dir, delete_dir and move leave objects behind that block a prefix on some servers.
        """
        import pyarrow.fs

        return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(self.fs))

    def _connected(self, kind: str, connect: Any) -> Any:
        if self.lease_folder is not None:
            hold_lease(self.lease_folder)
        slot = (os.getpid(), kind, self)
        if slot not in _connections:
            _connections[slot] = connect()
        return _connections[slot]

    def new_s3fs(self, timeout: float | None = None, patience_s: float = PATIENCE_SECONDS) -> s3fs.S3FileSystem:
        """A fresh s3fs.

        Args:
            timeout: seconds for connecting and for reading alike.
            patience_s: how long each request goes on trying; 0: it is made once.
        """
        from stetholm.storage.s3 import PART_BYTES, PatientS3

        return PatientS3(
            patience_s=patience_s,
            key=self.access_key,
            secret=self.secret_key,
            token=self.session_token,
            endpoint_url=self.endpoint_url,
            client_kwargs={"region_name": self.region},
            config_kwargs={
                "connect_timeout": timeout or CONNECT_SECONDS,
                "read_timeout": timeout or READ_SECONDS,
                "retries": {"max_attempts": 0},
                "request_checksum_calculation": "when_required",
                "s3": {"addressing_style": "path" if self.endpoint_url else "auto"},
            },
            default_block_size=PART_BYTES,
            max_concurrency=PARTS_AT_ONCE,
            use_listings_cache=False,
            skip_instance_cache=True,
        )

    def _new_arrow(self) -> pyarrow.fs.S3FileSystem:
        import pyarrow.fs

        scheme, _, host = (self.endpoint_url or "https://").partition("://")
        return pyarrow.fs.S3FileSystem(
            access_key=self.access_key,
            secret_key=self.secret_key,
            session_token=self.session_token,
            region=self.region,
            scheme=scheme,
            endpoint_override=host.rstrip("/") or None,
            connect_timeout=CONNECT_SECONDS,
            request_timeout=READ_SECONDS,
            retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=NATIVE_ATTEMPTS),
        )

    def patiently(self, call: Callable[[], T], what: str) -> T:
        """What ``call`` returns, tried again as a whole while the storage has faults that may pass.

        For pyarrow's native filesystem, which gives up after seconds; ``fs`` and our own methods do it by themselves.

        Args:
            call: opens and reads.
            what: what that is, e.g. ``reading s3://bucket/key``.

        Raises:
            StorageError: the storage has not answered for ``PATIENCE_SECONDS``.
        """
        return patiently(call, Patience(what, self.endpoint_url or f"AWS S3 ({self.region})"))

    # --- objects ---

    def exists(self, uri: str) -> bool:
        """Whether an object is there, or anything below ``uri``."""
        with _explained(uri):
            return bool(self.fs.exists(self.key(uri)))

    def list(self, uri: str) -> builtins.list[str]:
        """URIs of all objects below ``uri``, sorted; empty if there is nothing."""
        return [f"s3://{path}" for path in sorted(self._find(uri))]

    def sizes(self, uri: str) -> dict[str, int]:
        """Bytes of all objects below ``uri`` by their URIs, sorted."""
        return {f"s3://{path}": int(info["size"]) for path, info in sorted(self._find(uri).items())}

    def written(self, uri: str) -> dict[str, datetime]:
        """When each object below ``uri`` was written last, by the server's clock."""
        return {f"s3://{path}": info["LastModified"] for path, info in sorted(self._find(uri).items())}

    def stamps(self, uri: str) -> dict[str, str]:
        """What changes when an object below ``uri`` does (its size and ETag), by their URIs."""
        return {f"s3://{path}": f"{info['size']}-{info.get('ETag')}" for path, info in self._find(uri).items()}

    def size(self, uri: str) -> int:
        """Bytes of one object."""
        with _explained(uri):
            return int(self.fs.size(self.key(uri)))

    def read_bytes(self, uri: str) -> bytes:
        """One whole object."""
        with _explained(uri):
            return bytes(self.fs.cat_file(self.key(uri)))

    def write_bytes(self, uri: str, data: bytes) -> None:
        """Write one object; readers see the old one or the new one, never a part."""
        with _explained(uri):
            self.fs.pipe_file(self.key(uri), data)

    def read_text(self, uri: str) -> str:
        """One whole object as UTF-8."""
        return self.read_bytes(uri).decode("utf-8")

    def write_text(self, uri: str, text: str) -> None:
        """Write one object as UTF-8."""
        self.write_bytes(uri, text.encode("utf-8"))

    def read_json(self, uri: str) -> Any:
        """One object as JSON.

        Raises:
            StorageError: it is not there, or not JSON.
        """
        try:
            return json.loads(self.read_bytes(uri))
        except ValueError as error:
            raise StorageError(f"storage: {uri} is not JSON: {error}") from None

    def write_json(self, uri: str, obj: Any) -> None:
        """Write one object as indented JSON."""
        self.write_text(uri, json.dumps(obj, indent=2, ensure_ascii=False) + "\n")

    def read_table(self, uri: str) -> pa.Table:
        """A small table, whole."""
        import pyarrow.parquet as pq

        return pq.read_table(io.BytesIO(self.read_bytes(uri)))

    def write_table(self, uri: str, table: pa.Table) -> None:
        """Write a small table as one Parquet object."""
        self.write_bytes(uri, parquet_bytes(table))

    # --- folders ---

    def upload_dir(self, local: Path, uri: str, last: str | None = None) -> None:
        """Upload all files below ``local``, keeping their relative paths. Other objects below ``uri`` stay.

        Args:
            local: a folder.
            uri: where its files go.
            last: a file of it that is uploaded when all others are there: whoever sees it sees all.

        Raises:
            StorageError: ``local`` holds nothing, or something else removes what is uploaded.
        """
        files = {path.relative_to(local).as_posix(): path for path in Path(local).rglob("*") if path.is_file()}
        if not files:
            raise StorageError(f"storage: nothing to upload: {local} is not a folder with files")
        end = files.pop(last) if last is not None else None
        with _explained(uri):
            keys = {f"{self.key(uri)}/{name}": str(path) for name, path in sorted(files.items())}
            if keys:
                self.fs.put(list(keys.values()), list(keys))
            if end is not None:
                gone = sorted(keys.keys() - self._find(uri).keys())
                if gone:
                    raise StorageError(f"storage: s3://{gone[0]} is gone again: does another job write there?")
                self.fs.put([str(end)], [f"{self.key(uri)}/{last}"])

    def download_dir(self, uri: str, local: Path) -> None:
        """Download all objects below ``uri`` into ``local``, keeping their relative paths.

        Raises:
            StorageError: nothing is there, or a key would land outside ``local``.
        """
        self._download(uri, self._require(uri), Path(local))

    def remove_dir(self, uri: str) -> None:
        """Remove all objects below ``uri``; fine if there are none."""
        with _explained(uri):
            found = list(self._find(uri))
            if found:
                self.fs.rm(found)

    def local_copy(self, uri: str) -> Path:
        """A folder (a checkpoint) or a single object as local files, downloaded once to the cache of this machine.

        The cache's key holds names, ETags, sizes and times of the objects, so a changed object is downloaded
        anew. Safe among processes: one downloads, the others wait; a broken download leaves nothing that looks whole.

        Raises:
            StorageError: nothing is there.
        """
        found = self._require(uri)
        cache = home() / "cache"
        cache.mkdir(exist_ok=True)
        digest = self._digest(uri, found)
        target = cache / digest / PurePosixPath(self.key(uri)).name
        if target.exists():
            return target
        with locked(cache / f"{digest}.lock"):
            if not target.exists():
                self._fill_cache(uri, found, target)
        return target

    def _fill_cache(self, uri: str, found: dict[str, Any], target: Path) -> None:
        with tempfile.TemporaryDirectory(dir=target.parent.parent, prefix="partial-") as partial:
            copy = Path(partial) / "files" / target.name
            self._download(uri, found, copy)
            # Only a killed predecessor's remains can be here, and never the target itself.
            shutil.rmtree(target.parent, ignore_errors=True)
            copy.parent.rename(target.parent)

    def _digest(self, uri: str, found: dict[str, Any]) -> str:
        """Of the objects' facts; the embedded server is known by its folder, since its port changes."""
        facts = [
            [path, info.get("ETag"), info["size"], str(info.get("LastModified"))]
            for path, info in sorted(found.items())
        ]
        server = str(self.lease_folder or self.endpoint_url)
        return hashlib.sha256(json.dumps([server, self.key(uri), facts]).encode()).hexdigest()[:32]

    def _find(self, uri: str) -> dict[str, Any]:
        """Facts about all objects below ``uri`` (or the object ``uri`` itself) by bucket/key."""
        with _explained(uri):
            found: dict[str, Any] = self.fs.find(self.key(uri), detail=True)
        return {path: info for path, info in found.items() if info["type"] == "file"}

    def _require(self, uri: str) -> dict[str, Any]:
        found = self._find(uri)
        if not found:
            raise StorageError(f"storage: there is nothing at {uri}")
        return found

    def _download(self, uri: str, found: dict[str, Any], local: Path) -> None:
        """Get the found objects into ``local``; the object ``uri`` itself becomes the file ``local``."""
        key = self.key(uri)
        targets = [local / PurePosixPath(path.removeprefix(key).lstrip("/")) for path in found]
        for path, target in zip(found, targets, strict=True):
            if ".." in target.relative_to(local).parts:
                raise StorageError(f"storage: the key s3://{path} leads outside the folder: not downloaded")
        with _explained(uri):
            self.fs.get(list(found), [str(target) for target in targets])
        for path, target in zip(found, targets, strict=True):
            if target.stat().st_size != found[path]["size"]:
                raise StorageError(f"storage: s3://{path} changed while it was downloaded; try again")


def parquet_bytes(table: pa.Table) -> bytes:
    """A table as a Parquet file."""
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


@contextlib.contextmanager
def _explained(uri: str) -> Iterator[None]:
    """Turn what s3fs raises for a missing or forbidden object into one line."""
    try:
        yield
    except FileNotFoundError:
        raise StorageError(f"storage: there is nothing at {uri}") from None
    except PermissionError as error:
        raise StorageError(f"storage: access to {uri} was refused: {error}") from None
