"""A folder as a publisher ships it. Readers read no audio, so recordings may be empty files."""

from collections.abc import Mapping
from pathlib import Path

from stetholm.corpus.folder import LocalFolder


def publish(folder: Path, files: Mapping[str, str]) -> LocalFolder:
    """Write ``files`` (text by name) below ``folder``."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return LocalFolder(str(folder))
