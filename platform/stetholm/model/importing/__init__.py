"""Published weights as a StethoLM checkpoint: OPERA-CE checkpoints and the authors' StethoLM ``.pt`` files.

``import_weights(file, folder, settings)`` reads the file without running anything in it, accounts for every key, and
writes a checkpoint of ours. ``jobs/import_weights.py`` is the job; docs/published-weights.md tells the whole way.
"""

from stetholm.model.importing.importer import import_weights
from stetholm.model.importing.report import ImportReport, PartialImportError

__all__ = ["ImportReport", "PartialImportError", "import_weights"]
