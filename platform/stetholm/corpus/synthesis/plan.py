"""Which pairs to write: for each recording some of the tasks that its labels can answer, and comparisons.

All choices hang on the seed and the names alone: more recordings, or more pairs of each, keep what was chosen before.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from stetholm.corpus.recording import DIAGNOSIS, FINDING, STATUS, Recording
from stetholm.corpus.splits import Split
from stetholm.corpus.synthesis.recordings import Labelled
from stetholm.settings import SynthesizeSettings, Task

NEEDS: Mapping[Task, tuple[str, ...]] = {
    "Classification": (STATUS,),
    "Identification": (FINDING,),
    "Report": (STATUS, FINDING),
    "Reasoning": (DIAGNOSIS, FINDING),
    "Differential Diagnosis": (DIAGNOSIS,),
    "Location": (FINDING,),
}
"""Labels without which a task is not asked; Location needs the site besides, Comparison two recordings."""
COMPARISON: Task = "Comparison"
COMPARABLE = (DIAGNOSIS, FINDING, STATUS)
"""Two recordings are compared by the first of these labels that both have."""
_ALIKE = 0.25
"""Share of comparisons that may be of two recordings with the same label, which train to say so."""

_CANDIDATES = 32
"""Recordings among which the other one is chosen: a site may have thousands."""


@dataclass(frozen=True)
class Planned:
    """One pair to be written.

    Attributes:
        task: one of the seven.
        recordings: that it is about; two for Comparison, in the order of the prompt.
        split: of their patients.
    """

    task: Task
    recordings: tuple[Recording, ...]
    split: Split

    @property
    def name(self) -> str:
        """What it is called in messages, unique in a plan."""
        return f"{'+'.join(recording.filename for recording in self.recordings)} / {self.task}"


def answerable(recording: Recording) -> list[Task]:
    """The tasks about one recording that its labels can answer."""
    tasks = [task for task, needs in NEEDS.items() if all(recording.labels.get(label) for label in needs)]
    if not recording.site and "Location" in tasks:
        tasks.remove("Location")
    # Of a healthy recording there is nothing to differentiate, but that what is heard is normal: a finding says so.
    if "Differential Diagnosis" not in tasks and recording.labels.get(FINDING) and recording.labels.get(STATUS):
        tasks.append("Differential Diagnosis")
    return tasks


def plan_pairs(labelled: Labelled, chosen: SynthesizeSettings, seed: int) -> list[Planned]:
    """Every pair to be written, in a random order that mixes tasks and datasets."""
    recordings = [one for one in labelled.recordings if labelled.split(one) in chosen.splits]
    recordings.sort(key=lambda one: _place(seed, "recording", one.dataset, one.filename))
    recordings = recordings[: chosen.max_recordings]
    plan = [
        Planned(task, (recording,), labelled.split(recording))
        for recording in recordings
        for task in _tasks(recording, chosen, seed)
    ]
    if COMPARISON in chosen.tasks:
        wanted = round(chosen.comparisons_per_recording * len(recordings))
        plan += _comparisons(recordings, labelled, wanted, seed)
    return sorted(plan, key=lambda planned: _place(seed, "pair", planned.name))


def _tasks(recording: Recording, chosen: SynthesizeSettings, seed: int) -> list[Task]:
    tasks = [task for task in answerable(recording) if task in chosen.tasks]
    tasks.sort(key=lambda task: _place(seed, "task", recording.dataset, recording.filename, task))
    return tasks[: chosen.pairs_per_recording]


def comparable(one: Recording, other: Recording) -> bool:
    """Whether a comparison makes sense: the same kind of sound, and the same site or the same patient."""
    if one.filename == other.filename or (one.dataset, one.kind) != (other.dataset, other.kind):
        return False
    near = one.patient == other.patient or (one.site is not None and one.site == other.site)
    return near and basis(one, other) is not None


def basis(one: Recording, other: Recording) -> str | None:
    """The label by which two recordings are compared; None where they share none."""
    return next((label for label in COMPARABLE if one.labels.get(label) and other.labels.get(label)), None)


def _comparisons(recordings: Sequence[Recording], labelled: Labelled, wanted: int, seed: int) -> list[Planned]:
    """Up to ``wanted`` comparisons within a split; each recording comes first in one at most."""
    groups: dict[tuple[str, ...], list[Recording]] = defaultdict(list)
    for recording in recordings:
        for kind, value in (("site", recording.site), ("patient", recording.patient)):
            if value is not None:
                groups[labelled.split(recording), recording.dataset, recording.kind, kind, value].append(recording)
    made: dict[tuple[str, str], Planned] = {}
    for recording in recordings:
        if len(made) >= wanted:
            break
        other = _partner(recording, groups, labelled, made.keys(), seed)
        if other is None:
            continue
        pair = (recording, other)
        if _place(seed, "order", recording.filename, other.filename) < 0.5:
            pair = (other, recording)
        made[_both(*pair)] = Planned(COMPARISON, pair, labelled.split(recording))
    return list(made.values())


def _partner(
    recording: Recording,
    groups: Mapping[tuple[str, ...], Sequence[Recording]],
    labelled: Labelled,
    made: Collection[tuple[str, str]],
    seed: int,
) -> Recording | None:
    """Another recording for a comparison, in most cases one with another label."""
    split = labelled.split(recording)
    near = [
        other
        for kind, value in (("patient", recording.patient), ("site", recording.site))
        if value is not None
        for other in _some(groups[split, recording.dataset, recording.kind, kind, value], recording, seed)
        if comparable(recording, other) and _both(recording, other) not in made
    ]
    differing = [other for other in near if _label(recording, other) != _label(other, recording)]
    same_too = _place(seed, "alike", recording.filename) < _ALIKE
    pool = near if same_too else differing or near
    return min(pool, key=lambda other: _place(seed, "partner", recording.filename, other.filename), default=None)


def _some(group: Sequence[Recording], recording: Recording, seed: int) -> Sequence[Recording]:
    """At most ``_CANDIDATES`` of a group, which is in random order already, from a random place on."""
    start = int(_place(seed, "start", recording.filename) * len(group))
    return [*group[start:], *group[:start]][:_CANDIDATES] if len(group) > _CANDIDATES else group


def _label(one: Recording, other: Recording) -> str | None:
    return one.labels.get(basis(one, other) or "")


def _both(one: Recording, other: Recording) -> tuple[str, str]:
    first, second = sorted((one.filename, other.filename))
    return first, second


def _place(seed: int, *names: str) -> float:
    """A number in [0, 1) that depends on the seed and the names alone."""
    digest = hashlib.sha256("\0".join([str(seed), *names]).encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64
