"""Opening the storage that the settings name, with every usual mistake as one clear line within ten seconds."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from stetholm.settings import EMBEDDED, StorageSettings, load_settings
from stetholm.storage.embedded import BUCKET, join_server
from stetholm.storage.paths import StorageError, home
from stetholm.storage.store import Storage

PROBE_SECONDS = 3.0
"""For connecting and for each answer; the probe tries once."""


def open_storage(settings: StorageSettings) -> Storage:
    """Connect to the storage of the settings; start or join the embedded server for ``storage.uri=embedded``.

    Raises:
        StorageError: nothing answers, the keys are refused, the bucket is missing, or the server does not start.
    """
    storage = _embedded(settings) if settings.uri == EMBEDDED else _remote(settings)
    _probe(storage)
    return storage


def default_storage() -> Storage:
    """The storage of ``cluster.yaml`` in the current directory and the environment, for plain processes."""
    return open_storage(load_settings().storage)


def _embedded(settings: StorageSettings) -> Storage:
    if settings.endpoint_url is not None:
        raise StorageError("storage.endpoint_url is set, but storage.uri is 'embedded': set storage.uri=s3://<bucket>")
    server = join_server()
    return Storage(
        uri=f"s3://{BUCKET}",
        endpoint_url=server.endpoint_url,
        access_key=server.access_key,
        secret_key=server.secret_key,
        lease_folder=home(),
    )


def _remote(settings: StorageSettings) -> Storage:
    secret = settings.secret_key.get_secret_value() if settings.secret_key else None
    if (settings.access_key is None) != (secret is None):
        raise StorageError("storage.access_key and storage.secret_key go together: set both, or neither")
    if settings.endpoint_url and urlsplit(settings.endpoint_url).scheme not in ("http", "https"):
        raise StorageError(f"storage.endpoint_url={settings.endpoint_url!r} must start with http:// or https://")
    # A session token belongs to the environment's own keys; without any keys botocore finds both by itself.
    from_environment = secret is not None and secret == os.environ.get("AWS_SECRET_ACCESS_KEY")
    return Storage(
        uri=settings.uri.rstrip("/"),
        endpoint_url=settings.endpoint_url,
        access_key=settings.access_key,
        secret_key=secret,
        session_token=os.environ.get("AWS_SESSION_TOKEN") if from_environment else None,
        region=settings.region,
    )


def _probe(storage: Storage) -> None:
    """List at most one object: proves endpoint, keys and bucket at once."""
    where = storage.endpoint_url or f"AWS S3 ({storage.region})"
    if storage.endpoint_url:
        _require_listener(storage.endpoint_url)
    bucket, _, prefix = storage.key(storage.uri).partition("/")
    filesystem = storage.new_s3fs(timeout=PROBE_SECONDS, patience_s=0)
    answer = _judged(
        lambda: filesystem.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=1), bucket, where
    )
    if "IsTruncated" not in answer:
        raise StorageError(f"storage: {where} does not answer as an S3 server: check storage.endpoint_url")


def _judged(call: Callable[[], dict[str, Any]], bucket: str, where: str) -> dict[str, Any]:
    """Make the call; each way it fails is a line that says what to mend."""
    from botocore.exceptions import BotoCoreError, NoCredentialsError, PartialCredentialsError

    try:
        return call()
    except PermissionError as error:
        raise StorageError(
            f"storage: the keys for {where} were refused ({_short(error)}): set storage.access_key and "
            "storage.secret_key, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from None
    except FileNotFoundError:
        raise StorageError(f"storage: there is no bucket {bucket!r} at {where}: create it or set storage.uri") from None
    except (NoCredentialsError, PartialCredentialsError):
        raise StorageError(
            f"storage: no keys for {where}: set storage.access_key and storage.secret_key, or AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY"
        ) from None
    except (BotoCoreError, OSError, TimeoutError) as error:
        raise StorageError(f"storage: {where} does not answer as an S3 server: {_short(error)}") from None


def _require_listener(endpoint_url: str) -> None:
    parts = urlsplit(endpoint_url)
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname or "", port), timeout=PROBE_SECONDS).close()
    except (OSError, ValueError) as error:
        raise StorageError(
            f"storage: nothing answers at {endpoint_url} ({_short(error)}): check storage.endpoint_url"
        ) from None


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
