"""What the job writes: pairs in StethoBench's format, rejects with their reasons, and a table of both."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

from stetholm.corpus.synthesis.cost import price
from stetholm.corpus.synthesis.plan import Planned
from stetholm.corpus.synthesis.rounds import Case
from stetholm.corpus.synthesis.validation import Draft
from stetholm.markdown import table
from stetholm.settings import SynthesizeSettings, Task

DUPLICATE = "duplicate"
REFUSED = "refused"


def lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """JSON Lines."""
    return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)


def pair_row(planned: Planned, draft: Draft, writer: str) -> dict[str, Any]:
    """A StethoBench row; ``labels`` is for people, ingest does not read it."""
    recordings = planned.recordings
    first = recordings[0]
    names = [recording.filename for recording in recordings]
    return {
        "filename": names[0] if len(names) == 1 else names,
        "instruction": draft.instruction,
        "response": draft.response,
        "dataset": first.dataset,
        "split": planned.split,
        "task": planned.task,
        "distribution": first.distribution,
        "model": writer,
        "patient": _joined(recording.patient for recording in recordings),
        "site": _joined(recording.site for recording in recordings),
        "device": _joined(recording.device for recording in recordings),
        "labels": [dict(recording.labels) for recording in recordings],
    }


def _joined(values: Iterable[str | None]) -> str | None:
    """What is known of the recordings of a pair, each value once; None where nothing is."""
    return "+".join(dict.fromkeys(value for value in values if value)) or None


def reject_row(case: Case, reason: str, rule: str) -> dict[str, Any]:
    """A pair that is left out, with all that was answered."""
    return {
        "filename": [recording.filename for recording in case.planned.recordings],
        "task": case.planned.task,
        "dataset": case.planned.recordings[0].dataset,
        "rule": rule,
        "reason": reason,
        "answers": [answer.text for answer in case.answers],
    }


def sort_out(cases: Sequence[Case], writer: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[Case]]:
    """Rows of pairs, rows of rejects, and the cases that got no answer."""
    pairs, rejects, open_cases = [], [], []
    seen: set[tuple[str, ...]] = set()
    for case in cases:
        if case.unanswered is not None:
            open_cases.append(case)
        elif case.draft is None:
            rule = REFUSED if case.refused is not None else case.rules[-1]
            rejects.append(reject_row(case, case.refused or case.turns[-1].reason, rule))
        else:
            names = (one.filename for one in case.planned.recordings)
            same = (*names, case.draft.instruction, case.draft.response)
            if same in seen:
                rejects.append(reject_row(case, "says the same as another pair of this recording", DUPLICATE))
            else:
                seen.add(same)
                pairs.append(pair_row(case.planned, case.draft, writer))
    return pairs, rejects, open_cases


def summary(
    cases: Sequence[Case], pairs: Sequence[Mapping[str, Any]], rejects: Sequence[Mapping[str, Any]],
    chosen: SynthesizeSettings,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Per task: asked, valid (at once and in all), rejected by rule, tokens, cost; ``all`` sums them up."""
    tasks: list[Task | None] = [task for task in get_args(Task) if any(case.planned.task == task for case in cases)]
    return {task or "all": _counts(task, cases, pairs, rejects, chosen) for task in [*tasks, None]}


def _counts(
    task: Task | None, cases: Sequence[Case], pairs: Sequence[Mapping[str, Any]], rejects: Sequence[Mapping[str, Any]],
    chosen: SynthesizeSettings,
) -> dict[str, Any]:  # fmt: skip
    own = [case for case in cases if task in (None, case.planned.task)]
    tokens_in, tokens_out = (sum(getattr(one, name) for case in own for one in case.answers)
                             for name in ("tokens_in", "tokens_out"))  # fmt: skip
    return {
        "asked": len(own),
        "valid": sum(task in (None, row["task"]) for row in pairs),
        "valid_at_once": sum(case.draft is not None and not case.turns for case in own),
        "retried": sum(len(case.answers) > 1 for case in own),
        "rejected": dict(Counter(row["rule"] for row in rejects if task in (None, row["task"]))),
        "unanswered": sum(case.unanswered is not None for case in own),
        "tokens_in": tokens_in,
        "tokens_out": tokens_out,
        "cost": round(price(tokens_in, tokens_out, chosen), 6),
    }


def markdown(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """The summary as a table."""
    header = ("task", "rejected by rule", "asked", "valid at once", "valid", "share", "unanswered", "tokens", "cost")
    rows = []
    for task, one in figures.items():
        rejected = ", ".join(f"{rule} {count}" for rule, count in sorted(one["rejected"].items())) or "–"
        share = f"{one['valid'] / one['asked']:.2f}" if one["asked"] else "–"
        tokens = one["tokens_in"] + one["tokens_out"]
        rows.append((task, rejected, one["asked"], one["valid_at_once"], one["valid"], share, one["unanswered"],
                     f"{tokens:,}", f"{one['cost']:.2f}"))  # fmt: skip
    return table(header, rows, texts=2)
