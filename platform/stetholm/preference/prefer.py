"""The preference job: candidates, scores, and the pairs that mDPO learns from.

    python jobs/prefer.py --set run.name=demo --set prefer.pairs=2400

Writes ``runs/<run.name>/prefer/``: ``pairs`` (a corpus with the columns ``chosen``, ``rejected``, ``candidates`` and
``scores`` besides the usual ones) and ``candidates.parquet`` (all candidates, those of skipped examples too).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import pyarrow as pa

from stetholm.corpus.shards import SCHEMA, write_corpus
from stetholm.errors import UserError
from stetholm.evaluation.examples import choose, read_examples, read_rows
from stetholm.evaluation.generation import Answers
from stetholm.evaluation.job import GenerationJob
from stetholm.preference.candidates import Scored, gather, question
from stetholm.preference.scorers import JUDGE, CandidateScorer, scorer_of
from stetholm.runs import corpus_uri, require_checkpoint
from stetholm.settings import Settings
from stetholm.storage import Storage

JOB = "prefer"
SPLIT = "train"
HELD_OUT = "val"

HOW_MADE = {"engine", "min_replicas", "max_replicas"}
"""Settings that do not make a finished job another one."""

PAIR_COLUMNS = (
    pa.field("chosen", pa.string(), nullable=False),
    pa.field("rejected", pa.string(), nullable=False),
    pa.field("candidates", pa.list_(pa.string()), nullable=False),
    pa.field("scores", pa.list_(pa.float64()), nullable=False),
)
"""What a row of preference pairs has besides the columns of a corpus."""


def prefer(settings: Settings, storage: Storage) -> dict[str, Any]:
    """Make the run's preference pairs from its fine-tuned checkpoint.

    Returns:
        ``output`` (URI of the pairs, a corpus), ``pairs``, perhaps ``val_pairs``, ``skipped``,
        ``candidates_per_second``, ``scorer``.

    Raises:
        UserError: no checkpoint, no corpus, settings that make no pairs, or nothing but ties.
    """
    _check(settings)
    checkpoint = require_checkpoint(settings, storage, before="dpo")  # also when mDPO has been done since
    chosen = settings.prefer.model_dump(exclude=HOW_MADE)
    if not settings.prefer.val_pairs:  # as runs have it that were done before there was such a setting
        del chosen["val_pairs"]
    if settings.prefer.scorer == JUDGE:
        chosen["judge"] = scorer_of(settings, storage).name
    job = GenerationJob(JOB, settings, storage, checkpoint, corpus_uri(settings, storage), SPLIT, chosen)
    return job.once(lambda: _run(job))


def _check(settings: Settings) -> None:
    temperatures = settings.prefer.temperatures
    if not temperatures or min(temperatures) < 0:
        raise UserError("prefer.temperatures must name one temperature of at least 0, or more of them")
    if max(temperatures) == 0:
        raise UserError("prefer.temperatures are all 0: every candidate would be the same; raise one of them")


def _run(job: GenerationJob) -> dict[str, Any]:
    settings, storage = job.settings, job.storage
    scorer = scorer_of(settings, storage)
    scored = {SPLIT: _candidates(job, settings.prefer.pairs, scorer)}
    if settings.prefer.val_pairs:
        scored[HELD_OUT] = _candidates(replace(job, split=HELD_OUT), settings.prefer.val_pairs, scorer)
    everything = [one for some in scored.values() for one in some.scored]
    storage.write_table(f"{job.output}/candidates.parquet", _all_candidates(everything))
    pairs = {
        split: {one.example.sample_id: one for one in some.scored if one.pair() is not None}
        for split, some in scored.items()
    }
    if not all(pairs.values()):
        raise UserError(
            f"all {len(everything)} examples tie (equal candidates or equal scores): raise prefer.temperatures, "
            "prefer.candidates or prefer.pairs (or prefer.val_pairs)"
        )
    write_corpus(
        storage,
        f"{job.output}/pairs",
        {split: _pair_rows(storage, job.corpus, split, some) for split, some in pairs.items()},
        inputs={**job.inputs, "scorer": scorer.name},
        extra=PAIR_COLUMNS,
        shard_bytes=settings.corpus.shard_bytes,
        row_group_rows=settings.corpus.row_group_rows,
    )
    made, seconds = (sum(getattr(some.answers, name) for some in scored.values()) for name in ("made", "seconds"))
    return {
        "output": f"{job.output}/pairs",
        "pairs": len(pairs[SPLIT]),
        **({"val_pairs": len(pairs[HELD_OUT])} if HELD_OUT in pairs else {}),
        "skipped": len(everything) - sum(map(len, pairs.values())),
        "candidates_per_second": round(made / seconds, 3) if made else 0.0,
        "scorer": scorer.name,
    }


class _Made(NamedTuple):
    """Of one split: all candidates with their scores, and how they were answered."""

    scored: list[Scored]
    answers: Answers


def _candidates(job: GenerationJob, count: int, scorer: CandidateScorer) -> _Made:
    """Candidates for ``count`` examples of the job's split."""
    settings = job.settings
    everything = read_examples(job.storage, job.corpus, job.split)
    examples = choose(everything, count, settings.run.seed)
    questions = [question(example, settings.prefer, settings.run.seed) for example in examples]
    answers = job.ask(questions, examples, everything, "examples")
    texts = [answers.of(asked) for asked in questions]
    return _Made(gather(examples, texts, scorer.score(examples, texts)), answers)


def _pair_rows(storage: Storage, corpus: str, split: str, pairs: dict[str, Scored]) -> Iterator[dict[str, Any]]:
    """The corpus's rows of the pairs, audio and all, with the columns of preference."""
    for row in read_rows(storage, corpus, split, SCHEMA.names, ids=pairs.keys()):
        one = pairs[row["sample_id"]]
        pair = one.pair()
        if pair is not None:
            chosen, rejected = pair
            yield {**row, "chosen": chosen, "rejected": rejected,
                   "candidates": list(one.candidates), "scores": list(one.scores)}  # fmt: skip


def _all_candidates(scored: Sequence[Scored]) -> pa.Table:
    """Every candidate with its score, those of ties too."""
    rows = [
        {
            "sample_id": one.example.sample_id,
            "task": one.example.task,
            "instruction": one.example.instruction,
            "reference": one.example.response,
            "candidates": list(one.candidates),
            "scores": list(one.scores),
            "skipped": one.pair() is None,
        }
        for one in scored
    ]
    return pa.Table.from_pylist(rows)
