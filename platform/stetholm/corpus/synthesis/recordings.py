"""The labelled recordings of a source: what its reader knows, or what the answers of a list tell."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stetholm.corpus.ingest import open_source, patient_of
from stetholm.corpus.labels import findings, status
from stetholm.corpus.ontology import Kind as ConceptKind
from stetholm.corpus.ontology import ontology
from stetholm.corpus.recording import DIAGNOSIS, FINDING, STATUS, Kind, Recording
from stetholm.corpus.schema import Entry, Pair, Reject
from stetholm.corpus.sources import source_name
from stetholm.corpus.splits import Patient, Split, assign_splits
from stetholm.corpus.templates import NORMAL, WORDINGS
from stetholm.errors import UserError
from stetholm.settings import Settings
from stetholm.storage import Storage

_KINDS: Mapping[str, Kind] = {"cinc": "heart", "bmd-hs": "heart", "coughvid": "cough", "flusense": "cough"}
_SURE_TASKS = ("Identification", "Report", "Reasoning", "Location", "Classification")
"""Whose answers speak of one recording and assert what they name."""


@dataclass(frozen=True)
class Labelled:
    """Recordings with their labels.

    Attributes:
        recordings: in the source's order.
        splits: of each patient.
        rejects: what the reader could not use.
    """

    recordings: tuple[Recording, ...]
    splits: Mapping[Patient, Split]
    rejects: tuple[Reject, ...]

    def split(self, recording: Recording) -> Split:
        """The split of a recording's patient."""
        return self.splits[recording.dataset, recording.patient]


def read_labelled(settings: Settings, storage: Storage, scratch: Path) -> Labelled:
    """The recordings of the source that ingest would read, with their labels; sound is written for ``synthetic`` only.

    Raises:
        UserError: the source is not as the settings say, or none of its recordings has a label.
    """
    source = open_source(settings, storage, scratch, {})
    items = list(source.entries())
    rejects = tuple(item for item in items if isinstance(item, Reject))
    known = source.recordings.values() or listed(item.pair for item in items if isinstance(item, Entry))
    recordings = tuple(recording for recording in known if recording.labels)
    if not recordings:
        why = f" (the first problem: {rejects[0].source}: {rejects[0].reason})" if rejects else ""
        raise UserError(f"corpus.source = {source_name(settings)}: no recording has a label to write pairs from{why}")
    return Labelled(recordings, assign_splits(recordings, settings.run.seed), rejects)


def listed(pairs: Iterable[Pair]) -> Iterator[Recording]:
    """Recordings with the labels that the answers of a StethoBench list tell, read with negation.

    Pairs about several recordings, and those of the split ``inference``, tell nothing.
    """
    found: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        if len(pair.filenames) == 1 and pair.split != "inference":
            found[pair.filenames[0]].append(pair)
    for filename, group in found.items():
        first = group[0]
        yield Recording(
            filename, first.dataset, _kind(first.dataset), patient_of(first, [filename]), "NOASSERTION",
            site=next((pair.site for pair in group if pair.site), None),
            device=next((pair.device for pair in group if pair.device), None),
            labels=_labels(_kind(first.dataset), group), split=first.split,  # type: ignore[arg-type]
            distribution=first.distribution,
        )  # fmt: skip


def _kind(dataset: str) -> Kind:
    name = dataset.lower()
    if name.startswith("heart"):
        return "heart"
    return "breath" if name.startswith("coswara") else _KINDS.get(name, "lung")


def _labels(kind: Kind, pairs: Sequence[Pair]) -> dict[str, str]:
    """Status, finding and diagnosis that the answers assert; nothing where they contradict each other."""
    told = {pair.task: pair.response for pair in pairs if pair.task in _SURE_TASKS}
    states = {state for text in told.values() if (state := status(text))}
    labels: dict[str, str] = {STATUS: states.pop()} if len(states) == 1 else {}
    asserted = frozenset().union(*map(findings, told.values()))
    parts: tuple[tuple[str, ConceptKind], ...] = ((FINDING, "finding"), (DIAGNOSIS, "diagnosis"))
    for label, concept in parts:
        names = sorted(ontology().leaves(asserted, concept))
        if names:
            healthy = "no heart disease" if kind == "heart" else "no lung disease"
            labels[label] = healthy if names == ["healthy"] else " and ".join(names)
    return labels | _in_house_words(kind, labels)


def _in_house_words(kind: Kind, labels: Mapping[str, str]) -> dict[str, str]:
    """The finding in the words of the templates ("a holosystolic murmur"), where theirs means the same."""
    condition = NORMAL if labels.get(STATUS) == NORMAL else labels.get(DIAGNOSIS, "")
    words = WORDINGS.get(kind, {}).get(condition)  # type: ignore[arg-type]
    if words is None:
        return {}
    theirs, ours = (ontology().leaves(findings(text), "finding") for text in (words.finding, labels.get(FINDING, "")))
    return {FINDING: words.finding} if theirs == ours else {}
