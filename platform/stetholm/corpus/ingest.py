"""Ingest: recordings and pairs of a source become Parquet shards with a manifest. Run by ``jobs/ingest.py``.

The driver reads the pairs (text only); Ray Data tasks read, check and encode the recordings; Ray tasks write the
shards. ``manifest.json`` comes last: until it is there, there is no corpus. Ingesting again, from the same source with
more in it or from another one, adds what is new; what is there stays as it is.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stetholm.corpus import manifest as manifests
from stetholm.corpus.catalog import write_part
from stetholm.corpus.encode import Encodings, encode_recordings
from stetholm.corpus.growth import check_growth, grown, pair_id, standing
from stetholm.corpus.manifest import Manifest
from stetholm.corpus.recording import Recording
from stetholm.corpus.schema import Entry, Pair, Reject
from stetholm.corpus.sharding import Sample, plan_shards, write_shards
from stetholm.corpus.shards import merge_rejects, remove_strays, write_rejects
from stetholm.corpus.source import Earlier, Source
from stetholm.corpus.sources import reader_of, source_name
from stetholm.errors import UserError
from stetholm.progress import Progress
from stetholm.ray_session import ray_session
from stetholm.runs import corpus_uri, finished, record
from stetholm.settings import Settings
from stetholm.storage import Storage
from stetholm.storage.lease import Lease, lease

JOB = "ingest"
_REASONS_SHOWN = 3


def ingest(settings: Settings, storage: Storage) -> dict[str, Any]:
    """Bring the corpus of the settings up to date with its source.

    Returns:
        ``output`` (the corpus URI), and of the whole corpus ``recordings``, ``pairs`` and ``rejected``.

    Raises:
        UserError: the source is not as the settings say, it cannot be added to the corpus that lies at the URI, more
            than ``corpus.max_reject_fraction`` of its pairs had to be left out, or another ingest is at work there.
    """
    uri = corpus_uri(settings, storage)
    finished(settings, storage, JOB, {"corpus": uri})
    inputs = _inputs(settings, storage)
    manifest = _manifest(storage, uri)
    if manifest is None or not _up_to_date(settings, manifest, inputs):
        with lease(storage, f"{uri}/ingest-lease", f"ingest into {uri}") as held:
            manifest = _manifest(storage, uri)  # another one may just have been here
            if manifest is None or not _up_to_date(settings, manifest, inputs):
                manifest = _make(settings, storage, uri, inputs, manifest, held)
    result = {
        "output": uri,
        "recordings": manifest.recordings,
        "pairs": manifest.rows,
        "rejected": manifest.rejected,
    }
    record(settings, storage, JOB, result, {"corpus": uri})
    return result


def _inputs(settings: Settings, storage: Storage) -> dict[str, Any]:
    """What decides the content of the corpus. The recordings themselves are not read for it."""
    corpus = settings.corpus
    return {
        "sources": {source_name(settings): reader_of(settings).inputs(settings, storage)},
        "seed": settings.run.seed,
        "shard_bytes": corpus.shard_bytes,
        "row_group_rows": corpus.row_group_rows,
        "audio": settings.audio.model_dump(),
    }


def _manifest(storage: Storage, uri: str) -> Manifest | None:
    return Manifest.load(storage, uri) if storage.exists(manifests.uri(uri)) else None


def _up_to_date(settings: Settings, manifest: Manifest, inputs: dict[str, Any]) -> bool:
    """Whether there is nothing to add. What was rejected is looked at again: it may have been mended."""
    sources = manifest.inputs.get("sources", {})
    if not settings.corpus.model_fields_set & {"source", "jsonl", "audio", "synthetic"} and "synthetic" not in sources:
        return True  # a corpus of real recordings, and nobody asked for synthetic ones
    same = {**manifest.inputs, "sources": {**sources, **inputs["sources"]}} == {**inputs, "sources": sources}
    return same and not (manifest.rejected and reader_of(settings).grows)


def _make(
    settings: Settings, storage: Storage, uri: str, inputs: dict[str, Any], there: Manifest | None, held: Lease
) -> Manifest:
    name, reader = source_name(settings), reader_of(settings)
    if there is not None:
        check_growth(there, inputs, name, reader.grows, uri)
    with ray_session(), tempfile.TemporaryDirectory(prefix="stetholm-ingest-") as scratch:
        before = standing(storage, uri, there)
        source = open_source(settings, storage, Path(scratch), before.splits)
        entries, rejects = _read_entries(source)
        known = before.known(entries, source.folder, name)
        encodings = _encode(before.to_encode(entries, known), source, settings)
        good = known | {filename: encoded.recording_id for filename, encoded in encodings.good.items()}
        samples, more = resolve(entries, good, encodings, before.samples)
        total, rejects = len(entries) + len(rejects), rejects + more
        held.check()
        all_rejects = merge_rejects(storage, uri, there is not None, _origin(settings), rejects)
        where = write_rejects(storage, uri, all_rejects)
        check_rejects(rejects, total, settings.corpus.max_reject_fraction, where)
        if there is not None and not samples and len(all_rejects) == there.rejected:
            return there  # what was made of it refers to this very manifest
        splits = write_shards(settings, storage, uri, plan_shards(samples, settings, there), encodings)
        ids = before.recordings | {recording.recording_id for sample in samples for recording in sample.recordings}
        rows = catalog_rows(entries, source, encodings, name, ids)
    parts = [write_part(storage, uri, len(there.catalog) if there else 0, rows)] if rows else []
    manifest = grown(there, splits, inputs=inputs, catalog=parts, recordings=len(ids), rejected=len(all_rejects))
    held.check()
    manifest.save(storage, uri)
    held.check()  # what a process that lost its lease takes for strays may be another one's shards
    remove_strays(storage, uri, manifest)
    return manifest


def _origin(settings: Settings) -> str:
    """Where pairs come from: what is rejected of one list is not forgotten when another one is read."""
    corpus = settings.corpus
    return " ".join(filter(None, (source_name(settings), corpus.jsonl or corpus.audio)))


def open_source(settings: Settings, storage: Storage, scratch: Path, splits: Earlier) -> Source:
    """Open the source of the settings, showing progress where that takes long.

    Args:
        settings: of the run.
        storage: where ``s3://`` sources lie.
        scratch: for temporary files.
        splits: of the patients that stand in the corpus already.
    """
    reader = reader_of(settings)
    if source_name(settings) != "synthetic":
        return reader.open(settings, storage, scratch, lambda done, total: None, splits)
    with Progress("synthesise", None, "recordings") as bar:
        return reader.open(settings, storage, scratch, lambda done, total: bar.update(done, of=total), splits)


def _read_entries(source: Source) -> tuple[list[Entry], list[Reject]]:
    entries: list[Entry] = []
    rejects: list[Reject] = []
    for item in source.entries():
        if isinstance(item, Entry):
            entries.append(item)
        else:
            rejects.append(item)
    return entries, rejects


def _encode(names: Sequence[str], source: Source, settings: Settings) -> Encodings:
    with Progress("ingest", len(names), "recordings") as progress:
        return encode_recordings(names, source.folder, settings.audio, progress.update)


def resolve(
    entries: Iterable[Entry], good: Mapping[str, str], encodings: Encodings, there: Collection[str] = ()
) -> tuple[list[Sample], list[Reject]]:
    """Join pairs and recordings; a pair that lacks one, or says the same as an earlier pair, is left out.

    Args:
        entries: all pairs of the source, those that are in the corpus already among them.
        good: recording id by file.
        encodings: bytes of the files of new pairs, and what is wrong with bad files.
        there: ids of the samples that are in the corpus already, of which none is made again.
    """
    samples: list[Sample] = []
    rejects: list[Reject] = []
    first: dict[tuple[str, ...], Entry] = {}
    for entry in entries:
        pair = entry.pair
        if bad := next((name for name in pair.filenames if name not in good), None):
            rejects.append(Reject(entry.source, entry.line, f"recording {bad}: {encodings.bad[bad]}"))
            continue
        ids = [good[name] for name in pair.filenames]
        earlier = first.setdefault((*ids, pair.instruction, pair.response), entry)
        if earlier is not entry:
            rejects.append(Reject(entry.source, entry.line, f"duplicate of {earlier.source}, line {earlier.line}"))
            continue
        name = pair_id(pair, ids)
        if name not in there:
            found = tuple(encodings.good[filename] for filename in pair.filenames)
            samples.append(Sample(name, pair, found, patient_of(pair, ids)))
    return samples, rejects


def patient_of(pair: Pair, recording_ids: Sequence[str]) -> str:
    """The pair's patient, else what an ICBHI file name says (``101_1b1_…``), else the recording: never shared wrongly.

    Several patients of a comparison are joined with ``+``.
    """
    if pair.patient:
        return pair.patient
    names = [Path(name).name for name in pair.filenames]
    icbhi = [re.match(r"(\d{3})_", name) if pair.dataset.lower().startswith("icbhi") else None for name in names]
    patients = [match[1] if match else recording for match, recording in zip(icbhi, recording_ids, strict=True)]
    return "+".join(dict.fromkeys(patients))


def catalog_rows(
    entries: Iterable[Entry], source: Source, encodings: Encodings, name: str, ids: Collection[str]
) -> list[dict[str, Any]]:
    """What is known of the files that were read now and hold recordings of the corpus (``ids``), a row each.

    Of the source itself, else of the file's first pair.
    """
    pairs: dict[str, Pair] = {}
    for entry in entries:
        for filename in entry.pair.filenames:
            if filename in encodings.good and encodings.good[filename].recording_id in ids:
                pairs.setdefault(filename, entry.pair)
    stamps = source.folder.stamps(pairs.keys())
    return [
        {
            "recording_id": encodings.good[filename].recording_id,
            "source": name,
            "filename": filename,
            "stamp": stamps.get(filename, ""),
            "sampling_rate": encodings.good[filename].rate,
            "seconds": encodings.good[filename].seconds,
            **_facts(source.recordings.get(filename), pair, filename, encodings.good[filename].recording_id),
        }
        for filename, pair in pairs.items()
    ]


def _facts(known: Recording | None, pair: Pair, filename: str, recording_id: str) -> dict[str, Any]:
    common = {"split": pair.split, "distribution": pair.distribution}
    if known is not None:
        return common | {
            **{key: getattr(known, key) for key in ("dataset", "kind", "patient", "site", "device", "licence")},
            "labels": dict(known.labels),
            "events": [vars(event) for event in known.events],
        }
    alone = pair if len(pair.filenames) == 1 else _alone(pair, filename)
    return common | {
        "dataset": pair.dataset,
        "patient": patient_of(alone, [recording_id]),
        "site": alone.site,
        "device": alone.device,
    }


def _alone(pair: Pair, filename: str) -> Pair:
    """The pair as if it were about one of its recordings."""
    return pair.model_copy(update={"filenames": (filename,), "patient": None, "site": None, "device": None})


def check_rejects(rejects: Sequence[Reject], total: int, limit: float, where: str) -> None:
    """Raise a UserError if too many of the source's pairs, or all, had to be left out."""
    if not total:
        raise UserError("the source holds no pairs")
    if len(rejects) < total and len(rejects) <= limit * total:
        return
    shown = "; ".join(f"{each.source}, line {each.line}: {each.reason}" for each in rejects[:_REASONS_SHOWN])
    raise UserError(
        f"{len(rejects)} of {total} pairs are rejected, more than corpus.max_reject_fraction = {limit:g} allows: "
        f"{shown}{'; …' if len(rejects) > _REASONS_SHOWN else ''} (all of them: {where})"
    )
