"""The probe job: what reports say, and what features know, of each recording's class.

    python jobs/probe.py --set run.name=first

Writes ``runs/<run.name>/probe/``: ``report.json``, ``table.md``, ``table.png``, ``scores.parquet`` (every judged
recording's scores), and with zero-shot ``reports.parquet``. docs/probing.md says what they mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from stetholm.errors import UserError
from stetholm.evaluation.bootstrap import bootstrap, macro_auroc_of, mean_of
from stetholm.evaluation.generation import (
    Features,
    Pool,
    Question,
    answer_all,
    feature_refs,
)
from stetholm.evaluation.job import GenerationJob
from stetholm.evaluation.parts import VectorStore
from stetholm.evaluation.probing.classes import ClassFile, read_classes
from stetholm.evaluation.probing.encoders import CHECKPOINT, Encoder, parse_encoder
from stetholm.evaluation.probing.features import Matrix, Plan, embed, widths
from stetholm.evaluation.probing.labels import Corpus, Known, Labelled, choose_tasks, read_corpus
from stetholm.evaluation.probing.linear import FIXED, FOREST, LOGISTIC, Fit, Probe, judge
from stetholm.evaluation.probing.table import CROSS, draw, to_markdown
from stetholm.evaluation.probing.zero_shot import TextSimilarity, scores
from stetholm.evaluation.seen import find_seen, require_unseen
from stetholm.progress import Progress
from stetholm.runs import corpus_uri, digest, require_checkpoint, run_uri, start_checkpoint
from stetholm.serving.engine import Sampling
from stetholm.settings import ProbeSettings, Settings
from stetholm.storage import Storage

JOB = "probe"


@dataclass(frozen=True, eq=False)
class Judged:
    """Scores (n, classes) of some recordings of a task, and where they come from."""

    task: Labelled
    features: str
    method: str
    judged_on: str
    scores: NDArray[np.float64]


def probe(settings: Settings, storage: Storage) -> dict[str, Any]:
    """Probe, print the table, and return the figures.

    Returns:
        ``output`` (URI) and ``tasks``: by task, the AUROC and accuracy of each row.

    Raises:
        UserError: an unknown encoder or task, no checkpoint where one is needed or one that was trained on the test
            split's patients, no corpus, an empty split, a corpus without two classes, or too few patients.
    """
    chosen = settings.probe
    if not chosen.zero_shot and not chosen.encoders:
        raise UserError("probe.encoders is empty and probe.zero_shot is false: there is nothing to do")
    checkpoint = _checkpoint(settings, storage)
    encoders = tuple(parse_encoder(text, checkpoint) for text in dict.fromkeys(chosen.encoders))
    classes = read_classes(chosen.classes, storage)
    uri = corpus_uri(settings, storage)
    inputs = {**chosen.model_dump(mode="json", exclude={"batch_size", "classes"}), "class_file": classes.model_dump()}
    job = GenerationJob(JOB, settings, storage, checkpoint or "", uri, chosen.test, inputs)
    result = job.once(lambda: _run(job, encoders, classes))
    print(storage.read_text(f"{result['output']}/table.md"))
    return result


def _checkpoint(settings: Settings, storage: Storage) -> str | None:
    needed = settings.probe.zero_shot or CHECKPOINT in settings.probe.encoders
    return require_checkpoint(settings, storage) if needed else start_checkpoint(settings, storage)


def _run(job: GenerationJob, encoders: tuple[Encoder, ...], classes: ClassFile) -> dict[str, Any]:
    chosen, storage = job.settings.probe, job.storage
    similarity = TextSimilarity(chosen.text_model) if chosen.zero_shot else None  # a wrong name shows at once
    plan = Plan(encoders, storage, job.settings.run.seed, job.settings.train.use_gpu)
    sizes = widths(plan)
    corpus = read_corpus(storage, job.corpus, list(dict.fromkeys([*chosen.fit, chosen.test])))
    tasks = choose_tasks(corpus, classes, chosen, job.settings.run.seed)
    _require_unseen(job, encoders, corpus)
    log_mels = _log_mels(job, corpus, tasks)
    judged: list[Judged] = []
    if similarity is not None:
        judged += _zero_shot(job, classes, tasks, log_mels, similarity)
    judged += _linear(job, plan, sizes, tasks, log_mels)
    report = _report(job, tasks, judged, None if similarity is None else similarity.name)
    storage.write_table(f"{job.output}/scores.parquet", _scores_table(judged))
    storage.write_bytes(f"{job.output}/table.png", draw(report))
    storage.write_text(f"{job.output}/table.md", to_markdown(report))
    storage.write_json(f"{job.output}/report.json", report)
    return _result(job.output, report)


def _require_unseen(job: GenerationJob, encoders: tuple[Encoder, ...], corpus: Corpus) -> None:
    """Refuse any checkpoint or weights whose lineage shows patients of the test split."""
    sources = [*([job.checkpoint] if job.settings.probe.zero_shot else []), *(one.source for one in encoders)]
    for source in dict.fromkeys(source for source in sources if source):
        seen = find_seen(source, job.storage, corpus.examples[job.split])
        require_unseen(seen, source, job.split, job.settings.evaluate.allow_seen_patients)


def _log_mels(job: GenerationJob, corpus: Corpus, tasks: Sequence[Labelled]) -> Features:
    """The log-mel of every labelled recording, in Ray's object store."""
    wanted = {one.recording_id for task in tasks for one in task.recordings}
    found: dict[str, Any] = {}
    with Progress("probe: recordings", len(wanted), "recordings") as progress:
        for split, examples in corpus.examples.items():
            mine = [e for e in examples if len(e.recording_ids) == 1 and e.recording_ids[0] in wanted]
            ids = [example.sample_id for example in examples]
            if mine:
                found.update(feature_refs(job.storage, job.corpus, split, mine, ids))
            progress.update(len(found))
    return found


def _zero_shot(
    job: GenerationJob, classes: ClassFile, tasks: Sequence[Labelled], log_mels: Features, similarity: TextSimilarity
) -> list[Judged]:
    """Reports on the recordings of the test split, and their similarity with each class's description."""
    tests = [task.of([job.split]) for task in tasks]
    unique = {one.recording_id: one for task in tests for one in task.recordings}
    questions = {name: _report_question(one, classes, job.settings.probe) for name, one in unique.items()}
    pool = Pool(job.checkpoint, job.storage, job.settings.train.use_gpu, job.settings.probe.batch_size)
    with Progress("probe: reports", len(questions), "reports") as progress:
        answers = answer_all(questions.values(), log_mels, pool, job.answers, progress)
    texts = {name: answers.of(question)[0] for name, question in questions.items()}
    table = pa.table({"recording_id": list(texts), "report": list(texts.values())})
    job.storage.write_table(f"{job.output}/reports.parquet", table)
    judged = []
    for task in tests:
        close = similarity(
            [texts[one.recording_id] for one in task.recordings], [each.description for each in task.task.classes]
        )
        judged.append(Judged(task, "report of the checkpoint", "zero-shot", job.split, scores(close)))
    return judged


def _report_question(one: Known, classes: ClassFile, chosen: ProbeSettings) -> Question:
    instruction = classes.instructions.get(one.kind)
    if instruction is None:
        raise UserError(f"probe.classes: instructions has none for recordings of kind {one.kind!r}")
    return Question(instruction, one.dataset, (one.recording_id,), (Sampling(max_new_tokens=chosen.max_new_tokens),))


def _linear(
    job: GenerationJob, plan: Plan, sizes: Sequence[int], tasks: Sequence[Labelled], log_mels: Features
) -> list[Judged]:
    """Every probe of every encoder's features."""
    if not plan.encoders:
        return []
    recordings = list({one.recording_id: one for task in tasks for one in task.recordings}.values())
    made_from = {**job.inputs, "encoders": [vars(one) for one in plan.encoders]}
    store = VectorStore(job.storage, f"{run_uri(job.settings, job.storage, JOB)}/features-{digest(made_from)}")
    with Progress("probe: features", len(recordings), "recordings") as progress:
        found = embed(recordings, log_mels, plan, sizes, store, job.settings.probe.batch_size, progress)
    place = {one.recording_id: number for number, one in enumerate(recordings)}
    work = [
        (task, encoder, matrix[[place[one.recording_id] for one in task.recordings]], one, on)
        for task in tasks
        for encoder, matrix in zip(plan.encoders, found, strict=True)
        for one in probes_of(encoder, job.settings)
        for on in (job.split, *([CROSS] if job.settings.probe.cross_validate else []))
    ]
    return list(_fitted(work, job.settings.probe))


def probes_of(encoder: Encoder, settings: Settings) -> list[Probe]:
    """Which probes an encoder's features get: of log-mel statistics two more, as references."""
    chosen = settings.probe
    methods = [LOGISTIC]
    if encoder.weights == "none":
        methods += [FIXED, *([FOREST] if chosen.trees else [])]
    return [
        Probe(method, tuple(chosen.c), chosen.folds, chosen.inner_folds, chosen.trees, settings.run.seed)
        for method in methods
    ]


Work = tuple[Labelled, Encoder, Matrix, Probe, str]


def _fitted(work: Sequence[Work], chosen: ProbeSettings) -> Iterable[Judged]:
    """Each piece of work as a Ray task of one core, in order."""
    task_of = ray.remote(num_cpus=1)(judge)
    refs = [task_of.remote(_fit(task, matrix, probe, on, chosen)) for task, _, matrix, probe, on in work]
    with Progress("probe: fits", len(work), "probes") as progress:
        for number, ((task, encoder, _, probe, on), ref) in enumerate(zip(work, refs, strict=True)):
            part = task if on == CROSS else task.of([on])
            yield Judged(part, encoder.shown, probe.method, on, ray.get(ref))
            progress.update(number + 1)


def _fit(task: Labelled, matrix: Matrix, probe: Probe, on: str, chosen: ProbeSettings) -> Fit:
    """The work of one row: a split judged by what is fitted on others, or all by cross-validation."""
    parts = None
    if on != CROSS:
        splits = np.array([one.split for one in task.recordings])
        parts = np.flatnonzero(np.isin(splits, chosen.fit)), np.flatnonzero(splits == on)
    return Fit(probe, matrix, task.y, task.patients, len(task.task.classes), parts)


def _report(
    job: GenerationJob, tasks: Sequence[Labelled], judged: Sequence[Judged], text_model: str | None
) -> dict[str, Any]:
    chosen, seed = job.settings.probe, job.settings.run.seed
    return {
        "corpus": job.corpus,
        "checkpoint": job.checkpoint or None,
        "text_model": text_model,
        "settings": chosen.model_dump(mode="json"),
        "tasks": [
            {
                **_about(task, job.split),
                "rows": [_row(one, chosen.draws, seed) for one in judged if one.task.task is task.task],
            }
            for task in tasks
        ],
    }


def _about(task: Labelled, split: str) -> dict[str, Any]:
    names = [each.name for each in task.task.classes]
    test = task.of([split])
    return {
        "name": task.task.name,
        "classes": {name: int((task.y == number).sum()) for number, name in enumerate(names)},
        "patients": task.patients_by_class(),
        "dropped": task.dropped,
        "test": split,
        "majority": float(np.bincount(test.y).max() / len(test.y)),
    }


def _row(one: Judged, draws: int, seed: int) -> dict[str, Any]:
    """A row of the table, with its intervals."""
    y, patients = one.task.y, one.task.patients
    width = len(one.task.task.classes)
    full = np.zeros((len(y), width))
    full[:, : one.scores.shape[1]] = one.scores
    hits = (full.argmax(axis=1) == y).astype(float)
    return {
        "features": one.features,
        "method": one.method,
        "judged_on": one.judged_on,
        "n": len(y),
        "patients": len(set(patients)),
        "auroc": bootstrap(macro_auroc_of(full, y), patients, draws, seed).to_dict(),
        "accuracy": bootstrap(mean_of(hits), patients, draws, seed).to_dict(),
    }


def _scores_table(judged: Sequence[Judged]) -> pa.Table:
    """A row a judged recording and probe."""
    rows = [
        {
            "task": one.task.task.name, "features": one.features, "method": one.method, "judged_on": one.judged_on,
            "recording_id": known.recording_id, "patient": known.patient, "class": one.task.task.classes[label].name,
            "scores": given.tolist(),
        }
        for one in judged
        for known, label, given in zip(one.task.recordings, one.task.y, one.scores, strict=True)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows)


def _result(output: str, report: dict[str, Any]) -> dict[str, Any]:
    """What the job prints."""
    tasks = {
        task["name"]: [
            {
                **{key: row[key] for key in ("features", "method", "judged_on", "n")},
                "auroc": row["auroc"]["value"],
                "accuracy": row["accuracy"]["value"],
            }
            for row in task["rows"]
        ]
        for task in report["tasks"]
    }
    return {"output": output, "tasks": tasks}
