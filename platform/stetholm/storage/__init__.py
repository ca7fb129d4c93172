"""Object storage: the only way to corpora and checkpoints (S3, or the embedded S3 server)."""

import os

# Before any AWS library loads: with their newer default, small S3 servers answer 411 to pyarrow's writes.
os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")

from stetholm.storage.paths import StorageError, home  # noqa: E402
from stetholm.storage.connect import default_storage, open_storage  # noqa: E402, I001
from stetholm.storage.store import Storage  # noqa: E402

__all__ = ["Storage", "StorageError", "default_storage", "home", "open_storage"]
