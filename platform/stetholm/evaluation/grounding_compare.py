"""Grounding of two checkpoints side by side: paired differences of their drops, example by example.

Both must have been measured on the very same examples, with the same other recording in each one's place: then a
difference of drops is one between the checkpoints alone. Intervals are by bootstrap over patients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stetholm import markdown
from stetholm.errors import UserError
from stetholm.evaluation.conditions import AUDIO
from stetholm.evaluation.earlier import find_earlier
from stetholm.evaluation.grounding import ALL, ANSWER_NAMES, CONDITIONS, LOST, drops
from stetholm.evaluation.intervals import Resampled, patient_cluster, shown_difference
from stetholm.settings import ExplainSettings
from stetholm.storage import Storage

SETTING = "explain.compare_to"
LOGP = "logp"
_SAME = ("sample_id", "shuffled")


@dataclass(frozen=True)
class Measured:
    """A measurement of grounding as it lies on storage: whose, and its rows by sample id.

    Attributes:
        uri: of the explain job's output.
        checkpoint: that was measured.
        rows: of ``grounding.parquet``, sorted by sample id.
    """

    uri: str
    checkpoint: str
    rows: Sequence[Mapping[str, Any]]

    @property
    def answers(self) -> list[str]:
        """Whose answers were scored: ``own``, ``reference`` or both."""
        return [kind for kind in ANSWER_NAMES if f"{kind}_logp_{AUDIO}" in self.rows[0]]

    def figures(self, kind: str) -> dict[str, NDArray[Any]]:
        """Log-probabilities of the answers and their drops, each (n,)."""
        logps = {name: np.array([row[f"{kind}_logp_{name}"] for row in self.rows], np.float64) for name in CONDITIONS}
        return {LOGP: logps[AUDIO], **drops(logps)}


def find_measured(chosen: ExplainSettings, storage: Storage) -> str | None:
    """URI of the measurement that ``explain.compare_to`` names; None where it names none.

    Raises:
        UserError: there is none, or these settings measure no grounding.
    """
    if chosen.compare_to is None:
        return None
    if chosen.audio or chosen.grounding == "none":
        raise UserError(f"{SETTING} compares grounding: leave out explain.audio and explain.grounding=none")
    return find_earlier(chosen.compare_to, storage, SETTING, "explain", "grounding.json")


def read_measured(uri: str, storage: Storage) -> Measured:
    """Read a measurement of grounding.

    Raises:
        UserError: it does not say what was heard instead.
    """
    table = storage.read_table(f"{uri}/grounding.parquet")
    if "shuffled" not in table.column_names:
        raise UserError(f"{uri} does not say which recordings were exchanged: measure it again, under another run.name")
    rows = sorted(table.to_pylist(), key=lambda row: str(row["sample_id"]))
    return Measured(uri, str(storage.read_json(f"{uri}/explain.json")["checkpoint"]), rows)


def compare_grounding(ours: Measured, theirs: Measured, draws: int, seed: int) -> dict[str, Any]:
    """Drops of ours less those of theirs.

    Returns:
        ``ours``, ``theirs`` (each ``output`` and ``checkpoint``), ``examples``, ``draws`` and ``answers``: by answer,
        for ``logp`` and each drop, ``ours``, ``theirs``, ``difference`` and ``interval``.

    Raises:
        UserError: they were measured on other examples or with other recordings exchanged, or have no answer in common.
    """
    kinds = [kind for kind in ours.answers if kind in theirs.answers]
    if [[row[name] for name in _SAME] for row in ours.rows] != [[row[name] for name in _SAME] for row in theirs.rows]:
        raise UserError(
            f"{SETTING}: {ours.uri} and {theirs.uri} are not of the same examples: measure both with the same corpus, "
            "explain.split, explain.grounding_examples and run.seed"
        )
    if not kinds:
        raise UserError(f"{SETTING}: {ours.uri} and {theirs.uri} have no answer in common: set explain.grounding=both")
    clusters = [patient_cluster(row["dataset"], row["patient"], row["recording_ids"]) for row in ours.rows]
    return {
        "ours": {"output": ours.uri, "checkpoint": ours.checkpoint},
        "theirs": {"output": theirs.uri, "checkpoint": theirs.checkpoint},
        "examples": len(ours.rows),
        "draws": draws,
        "answers": {kind: _differences(ours, theirs, kind, clusters, draws, seed) for kind in kinds},
    }


def _differences(
    ours: Measured, theirs: Measured, kind: str, clusters: Sequence[str], draws: int, seed: int
) -> dict[str, Any]:
    pair = [one.figures(kind) for one in (ours, theirs)]
    columns = [figures[name] for name in pair[0] for figures in pair]
    resampled = Resampled(np.stack(columns, axis=1), clusters, draws, seed)
    return {name: resampled.difference(2 * place) for place, name in enumerate(pair[0])}


def to_markdown(found: Mapping[str, Any]) -> str:
    """The comparison as a table."""
    header = ("answer", "log-probability", *(f"drop, {name}" for name in (*LOST, "mean of the three")))
    rows = [
        (ANSWER_NAMES[kind], *(shown_difference(one[name], 3) for name in (LOGP, *LOST, ALL)))
        for kind, one in found["answers"].items()
    ]
    return (
        f"**Grounding side by side. Ours: {found['ours']['checkpoint']}. Theirs: {found['theirs']['checkpoint']}.**\n\n"
        f"{markdown.table(header, rows)}\n\n"
        f"Nats a token over the same {found['examples']} examples: ours / theirs / ours less theirs, paired. In "
        f"brackets: 95 % intervals of the difference by {found['draws']} bootstrap draws over patients; one without 0 "
        "in it is a difference.\n"
    )


def brief(found: Mapping[str, Any]) -> dict[str, Any]:
    """For the RESULT line: whom it is held against, and by answer and drop the difference with its interval."""
    answers = {
        kind: {name: [each["difference"], *(each["interval"] or (None, None))] for name, each in one.items()}
        for kind, one in found["answers"].items()
    }
    return {"theirs": found["theirs"], "examples": found["examples"], **answers}
