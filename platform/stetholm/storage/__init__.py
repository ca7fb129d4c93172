"""Object storage: the only way to corpora and checkpoints (S3, or the embedded S3 server)."""

import os

# Before any AWS library loads: with their newer default, small S3 servers answer 411 to pyarrow's writes.
os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")

from stetholm.storage.connect import default_storage, open_storage
from stetholm.storage.paths import StorageError, home
from stetholm.storage.store import Storage

__all__ = ["Storage", "StorageError", "default_storage", "home", "open_storage"]
