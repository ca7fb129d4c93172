"""The public datasets: who publishes them, and a reader for each, which makes the pairs from the labels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from stetholm.corpus.folder import AudioFolder, open_folder
from stetholm.corpus.labelled import labelled_pairs
from stetholm.corpus.recording import Recording
from stetholm.corpus.schema import Entry, Reject
from stetholm.corpus.source import Earlier, Publication, Reader, Report, Source
from stetholm.corpus.sources import (
    bmd_hs,
    cinc2016,
    circor,
    coswara,
    coughvid,
    flusense,
    hf_lung,
    icbhi,
    kauh,
    respiratory_tr,
    sprsound,
    zchsound,
)
from stetholm.corpus.splits import assign_splits
from stetholm.errors import UserError
from stetholm.settings import Settings
from stetholm.storage import Storage

PUBLICATIONS: dict[str, Publication] = {
    "icbhi": Publication("ICBHI 2017 Respiratory Sound Database", "https://bhichallenge.med.auth.gr", icbhi.read),
    "sprsound": Publication(
        "SPRSound: SJTU Paediatric Respiratory Sound Database",
        "https://github.com/SJTU-YONGFU-RESEARCH-GRP/SPRSound",
        sprsound.read,
    ),
    "kauh": Publication(
        "A dataset of lung sounds recorded from the chest wall using an electronic stethoscope (KAUH)",
        "https://data.mendeley.com/datasets/jwyy9np4gv/3",
        kauh.read,
    ),
    "hf_lung": Publication("HF_Lung_V1", "https://gitlab.com/techsupportHF/HF_Lung_V1", hf_lung.read),
    "respiratory_tr": Publication(
        "RespiratoryDatabase@TR", "https://data.mendeley.com/datasets/p9z4h98s6j/1", respiratory_tr.read
    ),
    "circor": Publication(
        "The CirCor DigiScope Phonocardiogram Dataset 1.0.3",
        "https://physionet.org/content/circor-heart-sound/1.0.3/",
        circor.read,
    ),
    "cinc2016": Publication(
        "PhysioNet/CinC Challenge 2016: Classification of Heart Sound Recordings",
        "https://physionet.org/content/challenge-2016/1.0.0/",
        cinc2016.read,
    ),
    "zchsound": Publication(
        "ZCHSound: ZJU Paediatric Heart Sound Database with Congenital Heart Disease",
        "http://zchsound.ncrcch.org.cn",
        zchsound.read,
    ),
    "bmd_hs": Publication(
        "BUET Multi-disease Heart Sound Dataset (BMD-HS)", "https://github.com/sani002/BMD-HS-Dataset", bmd_hs.read
    ),
    "coughvid": Publication("COUGHVID crowdsourcing dataset", "https://doi.org/10.5281/zenodo.4048312", coughvid.read),
    "coswara": Publication("Coswara", "https://github.com/iiscleap/Coswara-Data", coswara.read),
    "flusense": Publication("FluSense", "https://github.com/Forsad/FluSense-data", flusense.read),
}
"""By their names in ``corpus.source``."""


def reader_of_publication(name: str) -> Reader:
    """The reader of one of :data:`PUBLICATIONS`."""
    return Reader(partial(_inputs, name), partial(_open, name))


def _folder(name: str, settings: Settings, storage: Storage) -> AudioFolder:
    corpus = settings.corpus
    if corpus.jsonl:
        raise UserError(f"corpus.source = {name} reads the publisher's own labels: leave corpus.jsonl out")
    if not corpus.audio:
        publication = PUBLICATIONS[name]
        raise UserError(
            f"corpus.source = {name} needs corpus.audio, the folder as its publisher ships it (a path or an s3:// "
            f"URI): {publication.title}, {publication.homepage}"
        )
    return open_folder(corpus.audio, storage)


def _inputs(name: str, settings: Settings, storage: Storage) -> dict[str, Any]:
    folder = _folder(name, settings, storage)
    stamps = sorted(folder.stamps(folder.files()).items())
    return {"files_sha256": hashlib.sha256(json.dumps(stamps).encode()).hexdigest()}


def _open(name: str, settings: Settings, storage: Storage, scratch: Path, report: Report, earlier: Earlier) -> Source:
    folder = _folder(name, settings, storage)
    found = list(PUBLICATIONS[name].read(folder))
    recordings = [item for item in found if isinstance(item, Recording)]
    splits = assign_splits(recordings, settings.run.seed, earlier)

    def entries() -> Iterator[Entry | Reject]:
        yield from (item for item in found if isinstance(item, Reject))
        yield from labelled_pairs(recordings, splits, settings.run.seed)

    return Source(entries, folder, {recording.filename: recording for recording in recordings})
