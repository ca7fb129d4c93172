"""What every reader gives ingest: pairs, the folder of their recordings, and what is known of these."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stetholm.corpus.folder import AudioFolder
from stetholm.corpus.recording import Recording
from stetholm.corpus.schema import Entry, Reject
from stetholm.corpus.splits import Patient, Split
from stetholm.settings import Settings
from stetholm.storage import Storage

Report = Callable[[int, int], None]
"""Told how many of how many recordings a reader has prepared."""
Earlier = Mapping[Patient, Split]


@dataclass(frozen=True)
class Source:
    """Pairs and the folder in which their recordings lie."""

    entries: Callable[[], Iterator[Entry | Reject]]
    folder: AudioFolder
    recordings: Mapping[str, Recording] = field(default_factory=dict)
    """What is known of the recordings, by their names in the folder."""


@dataclass(frozen=True)
class Reader:
    """One kind of source."""

    inputs: Callable[[Settings, Storage], dict[str, Any]]
    """What the corpus is made from. Cheap, and raises UserError for what is not there."""
    open: Callable[[Settings, Storage, Path, Report, Earlier], Source]
    """Opens the source. The path is a folder for temporary files; the last one tells in which splits the patients of
    the corpus stand already."""
    grows: bool = True
    """Whether its files may have become more since an earlier ingest; else other inputs are another corpus."""


@dataclass(frozen=True)
class Publication:
    """A public dataset as its publisher ships it.

    Attributes:
        title: its full name.
        homepage: where to get it.
        read: describes every recording below the folder (``corpus.audio``) from its name and the publisher's tables.
            It reads no audio. A row or a file that makes no sense comes as a Reject and the rest goes on; a folder
            that is not this dataset at all (no audio file of its naming, or a required table missing) is a UserError.
    """

    title: str
    homepage: str
    read: Callable[[AudioFolder], Iterator[Recording | Reject]]
