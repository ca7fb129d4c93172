"""s3fs with patience: every request of every user rides out faults, in whatever process the filesystem lands.

Patience sits below s3fs's methods, where each request passes, so it holds for our own calls and for those of Ray Train
and Ray Data alike. It is part of the class, because a pickled s3fs forgets what was set on the object. It is the only
layer that repeats: botocore's own is off and s3fs's is left with the bodies of answers, as layers would multiply.
"""

from __future__ import annotations

import functools
import io
import logging
import tempfile
from collections.abc import Awaitable, Callable
from typing import Any

import s3fs
from fsspec.asyn import sync_wrapper

from stetholm.storage.patience import PATIENCE_SECONDS, Patience, is_lost_upload, is_transient, patiently_awaited

PART_BYTES = 8 * 2**20
MAX_PARTS = 10_000
BODY_TRIES = 3
"""Of reading the body of an answer that breaks off."""

logger = logging.getLogger(__name__)


def _passes_anew(error: BaseException) -> bool:
    return is_transient(error) or is_lost_upload(error)


class PatientS3(s3fs.S3FileSystem):
    """See the module.

    Args:
        patience_s: how long a request goes on trying; 0: once.
        args: of ``s3fs.S3FileSystem``.
        kwargs: of ``s3fs.S3FileSystem``.
    """

    def __init__(self, *args: Any, patience_s: float = PATIENCE_SECONDS, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.patience_s = patience_s
        self.retries = BODY_TRIES if patience_s else 1

    async def _call_s3(self, method: str, *args: Any, **kwargs: Any) -> Any:
        call = functools.partial(super()._call_s3, method, *args, **kwargs)
        what = " ".join([method, "/".join(str(kwargs[name]) for name in ("Bucket", "Key", "Prefix") if name in kwargs)])
        return await patiently_awaited(call, self._patience(what))

    # s3fs binds its own to its own coroutine.
    call_s3 = sync_wrapper(_call_s3)

    # Whole transfers: an answer may break off in mid-body, and a restarted server may have lost a multipart upload.

    async def _put_file(self, lpath: str, rpath: str, *args: Any, **kwargs: Any) -> Any:
        return await self._anew(f"writing {rpath}", super()._put_file, lpath, rpath, *args, **kwargs)

    async def _pipe_file(self, path: str, data: bytes, *args: Any, **kwargs: Any) -> Any:
        return await self._anew(f"writing {path}", super()._pipe_file, path, data, *args, **kwargs)

    async def _get_file(self, rpath: str, lpath: str, *args: Any, **kwargs: Any) -> Any:
        return await self._anew(f"reading {rpath}", super()._get_file, rpath, lpath, *args, **kwargs)

    async def _cat_file(self, path: str, *args: Any, **kwargs: Any) -> Any:
        return await self._anew(f"reading {path}", super()._cat_file, path, *args, **kwargs)

    async def _abort_mpu(self, bucket: str, key: str, mpu: str) -> None:
        """Tidy up after a failed upload: what made it fail matters more than that this fails too."""
        try:
            await super()._call_s3("abort_multipart_upload", Bucket=bucket, Key=key, UploadId=mpu)
        except Exception as error:
            if not _passes_anew(error):
                raise
            logger.debug("not aborted: %s/%s: %s", bucket, key, error)

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        if mode == "wb" and kwargs.get("autocommit", True):
            return Upload(self, path)
        return super()._open(path, mode, **kwargs)

    async def _anew(self, what: str, transfer: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any) -> Any:
        call = functools.partial(transfer, *args, **kwargs)
        return await patiently_awaited(call, self._patience(what, transient=_passes_anew))

    def _patience(self, what: str, **changes: Any) -> Patience:
        where = self.endpoint_url or f"AWS S3 ({self.client_kwargs.get('region_name', 'default region')})"
        return Patience(what, where, patience_s=self.patience_s, **changes)


class Upload(io.RawIOBase):
    """A file to be written: kept in a temporary file and uploaded when closed, so that it can be uploaded again.

    s3fs's own sends parts as they come and forgets them: with a server that lost the upload, the file is lost too.
    """

    def __init__(self, filesystem: PatientS3, path: str) -> None:
        self.path = path
        self._filesystem = filesystem
        self._file = tempfile.NamedTemporaryFile(prefix="stetholm-upload-")  # noqa: SIM115 (closed in close)

    def writable(self) -> bool:
        """Yes."""
        return True

    def write(self, data: Any) -> int:
        """Append."""
        return self._file.write(data)

    def tell(self) -> int:
        """Bytes written so far."""
        return self._file.tell()

    def discard(self) -> None:
        """Close without uploading."""
        self._file.close()
        super().close()

    def close(self) -> None:
        """Upload; the object is there, whole, when this returns."""
        if self.closed:
            return
        try:
            self._file.flush()
            parts = max(PART_BYTES, -(-self._file.tell() // MAX_PARTS))
            self._filesystem.put_file(self._file.name, self.path, chunksize=parts)
        finally:
            self.discard()

    def __exit__(self, kind: Any, *rest: Any) -> None:
        if kind is not None:
            self.discard()
        self.close()
