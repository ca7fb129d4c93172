"""One number for grounding: what an answer's log-probability loses when the model does not hear its recording.

With lp(y | a) the length-averaged log-probability of the answer y under the recordings a,

    drop = lp(y | a) - lp(y | a')        in nats a token

where a' is no recording (withheld), another one of the same dataset (shuffled), or the same with 10 to 20 % of its
spectrogram gone, as in mDPO (degraded). A model that does not listen has drops of 0.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from numpy.typing import NDArray
from ray.data import ActorPoolStrategy

from stetholm import markdown
from stetholm.audio.degrade import degrade
from stetholm.corpus.datasource import quiet
from stetholm.evaluation.bootstrap import Estimate, bootstrap, mean_of
from stetholm.evaluation.conditions import AUDIO, SHUFFLED, WITHHELD, derangement, question
from stetholm.evaluation.examples import Example, choose, read_examples
from stetholm.evaluation.generation import Features, Pool, answer_all, feature_refs
from stetholm.evaluation.intervals import patient_cluster
from stetholm.evaluation.job import GenerationJob
from stetholm.evaluation.parts import VectorStore, column, vectors
from stetholm.evaluation.probing.features import places
from stetholm.model.checkpoint import load_checkpoint
from stetholm.model.explain.scoring import Answered, answer_logps
from stetholm.progress import Progress
from stetholm.roles import gpu_nodes
from stetholm.runs import digest
from stetholm.serving.engine import Sampling
from stetholm.settings import ExplainSettings
from stetholm.storage import Storage

DEGRADED, ALL = "degraded", "all"
CONDITIONS = (AUDIO, WITHHELD, SHUFFLED, DEGRADED)
LOST = CONDITIONS[1:]
ANSWER_NAMES = {"own": "the model's own", "reference": "the reference"}
_ROWS_PER_CALL = 64


@dataclass(frozen=True)
class Scoring:
    """An answer under one condition.

    Attributes:
        instruction: the question.
        dataset: of the example.
        recordings: what is heard.
        answer: whose log-probability is wanted.
        degraded: sample id that seeds the degradation; None: as they are.
    """

    instruction: str
    dataset: str
    recordings: tuple[str, ...]
    answer: str
    degraded: str | None = None

    @property
    def key(self) -> str:
        """32 hex digits that depend on the content alone."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:32]

    def to_json(self) -> str:
        """As JSON text."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Scoring:
        """Read back what :meth:`to_json` wrote."""
        raw = json.loads(text)
        return cls(**{**raw, "recordings": tuple(raw["recordings"])})


@dataclass(frozen=True)
class Scorers:
    """What the members of the pool load."""

    checkpoint: str
    storage: Storage
    precision: str
    batch_size: int
    use_gpu: bool


class Scorer:
    """A member of the pool: loads the model once, scores answers."""

    def __init__(self, scorers: Scorers, features: dict[str, ray.ObjectRef]) -> None:
        if not scorers.use_gpu:
            torch.set_num_threads(1)
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[scorers.precision]
        self._model: Any
        self._model, self._processor = load_checkpoint(scorers.checkpoint, scorers.storage, dtype=dtype, merge=True)
        self._model.to("cuda" if scorers.use_gpu else "cpu")
        self._batch_size, self._features = scorers.batch_size, features

    def __call__(self, batch: pa.Table) -> pa.Table:
        """``key`` and ``scoring`` (JSON) in; ``key`` and ``vector`` (the log-probability) out."""
        rows = [self._answered(Scoring.from_json(text)) for text in batch["scoring"].to_pylist()]
        logps = answer_logps(self._model, self._processor, rows, self._batch_size)
        return pa.table({"key": batch["key"], "vector": column([np.array([one], np.float32) for one in logps])})

    def _answered(self, one: Scoring) -> Answered:
        sounds = [np.asarray(sound) for sound in ray.get([self._features[name] for name in one.recordings])]
        if one.degraded is not None:
            sounds = [degrade(sound, one.degraded, 0) for sound in sounds]
        stacked = np.stack(sounds) if sounds else np.zeros((0, 64, 218), np.float32)
        return Answered(one.instruction, one.answer, stacked, one.dataset)


def ground(job: GenerationJob) -> dict[str, Any]:
    """Measure grounding on examples of a split; needs Ray.

    Writes ``grounding.md``, ``grounding.json`` and ``grounding.parquet`` (a row an example) to the job's output.

    Returns:
        What ``grounding.json`` holds.
    """
    chosen, seed = job.settings.explain, job.settings.run.seed
    everything = read_examples(job.storage, job.corpus, job.split)
    examples = choose(everything, chosen.grounding_examples, seed)
    exchanged = derangement(examples, seed)
    recordings = len({name for example in examples for name in example.recording_ids})
    with Progress("explain: features", recordings, "recordings") as progress:
        ids = [example.sample_id for example in everything]
        features = feature_refs(job.storage, job.corpus, job.split, examples, ids, progress)
    answers = {
        kind: _own_answers(job, examples, features) if kind == "own" else [one.response for one in examples]
        for kind in (("own", "reference") if chosen.grounding == "both" else (chosen.grounding,))
    }
    wanted = {kind: _scorings(examples, texts, exchanged) for kind, texts in answers.items()}
    logps = _score(job, wanted.values(), features)
    found = {kind: _values(columns, logps) for kind, columns in wanted.items()}
    report = _report(examples, found, chosen, seed)
    job.storage.write_table(f"{job.output}/grounding.parquet", _table(examples, answers, found, exchanged))
    job.storage.write_text(f"{job.output}/grounding.md", to_markdown(report))
    job.storage.write_json(f"{job.output}/grounding.json", report)
    return report


def forget(job: GenerationJob) -> None:
    """Remove the parts of a measurement that is done."""
    job.answers.remove()
    _store(job).remove()


def _store(job: GenerationJob) -> VectorStore:
    """Log-probabilities of an attempt, for the next one."""
    return VectorStore(job.storage, f"{job.output}/scores-{digest(job.inputs)}")


def _own_answers(job: GenerationJob, examples: Sequence[Example], features: Features) -> list[str]:
    sampling = Sampling(max_new_tokens=job.settings.explain.max_new_tokens)
    questions = [question(example, AUDIO, {}, sampling) for example in examples]
    asked = [one for one in questions if one is not None]
    pool = Pool(job.checkpoint, job.storage, job.settings.train.use_gpu, job.settings.explain.batch_size)
    with Progress("explain: answers", len({one.key for one in asked}), "questions") as progress:
        answers = answer_all(asked, features, pool, job.answers, progress)
    return [answers.of(one)[0] for one in asked]


def _scorings(
    examples: Sequence[Example], answers: Sequence[str], exchanged: Mapping[str, str]
) -> dict[str, list[Scoring | None]]:
    """By condition, one for each example; None where it has no other recording to be exchanged with."""
    return {
        condition: [_scoring(one, text, condition, exchanged) for one, text in zip(examples, answers, strict=True)]
        for condition in CONDITIONS
    }


def _scoring(example: Example, answer: str, condition: str, exchanged: Mapping[str, str]) -> Scoring | None:
    heard = question(example, AUDIO if condition == DEGRADED else condition, exchanged, Sampling())
    if heard is None:
        return None
    seed = example.sample_id if condition == DEGRADED else None
    return Scoring(example.instruction, example.dataset, heard.recordings, answer, seed)


def _score(
    job: GenerationJob, wanted: Iterable[Mapping[str, Sequence[Scoring | None]]], features: Features
) -> dict[str, float]:
    """Log-probabilities by key; those that an earlier attempt has computed are not computed again."""
    distinct = {one.key: one for columns in wanted for rows in columns.values() for one in rows if one is not None}
    store = _store(job)
    found = {key: float(value[0]) for key, value in store.load().items()}
    # Alike beside alike, so that a batch has little padding.
    todo = sorted(
        (one for key, one in distinct.items() if key not in found),
        key=lambda one: (len(one.recordings), len(one.instruction) + len(one.answer), one.key),
    )
    with Progress("explain: grounding", len(distinct), "answers") as progress:
        for table in _scored(job, todo, features):
            made = dict(zip(table["key"].to_pylist(), vectors(table["vector"]), strict=True))
            store.add(made)
            found.update({key: float(value[0]) for key, value in made.items()})
            progress.update(len(found.keys() & distinct.keys()))
    store.flush()
    return found


def _scored(job: GenerationJob, todo: Sequence[Scoring], features: Features) -> Iterable[pa.Table]:
    """Tables of log-probabilities as the actors make them."""
    if not todo:
        return
    chosen, use_gpu = job.settings.explain, job.settings.train.use_gpu
    scorers = Scorers(job.checkpoint, job.storage, chosen.precision, chosen.batch_size, use_gpu)
    calls = math.ceil(len(todo) / _ROWS_PER_CALL)
    rows = [{"key": one.key, "scoring": one.to_json()} for one in todo]
    dataset = ray.data.from_items(rows, override_num_blocks=calls).map_batches(
        Scorer,
        fn_constructor_args=(scorers, dict(features)),
        batch_size=_ROWS_PER_CALL,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=min(places(use_gpu), calls)),
        num_cpus=0 if use_gpu else 1,
        num_gpus=1 if use_gpu else 0,
        label_selector=gpu_nodes(use_gpu, job.settings.train.label_selector),
    )
    yield from quiet(dataset).iter_batches(batch_size=None, batch_format="pyarrow")


def _values(columns: Mapping[str, Sequence[Scoring | None]], logps: Mapping[str, float]) -> dict[str, NDArray[Any]]:
    """By condition (n,) log-probabilities; NaN where there is none."""
    return {
        name: np.array([math.nan if one is None else logps[one.key] for one in rows]) for name, rows in columns.items()
    }


def drops(logps: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """What each answer loses under each condition, and as :data:`ALL` the mean of the three (n,)."""
    lost = {name: logps[AUDIO] - logps[name] for name in LOST}
    return {**lost, ALL: np.mean(list(lost.values()), axis=0)}


def _report(
    examples: Sequence[Example], found: Mapping[str, Mapping[str, NDArray[Any]]], chosen: ExplainSettings, seed: int
) -> dict[str, Any]:
    tasks = sorted({one.task for one in examples})
    of_task = {name: np.array([one.task == name for one in examples]) for name in tasks}
    return {
        "split": chosen.split,
        "examples": len(examples),
        "patients": len({_patient(one) for one in examples}),
        "draws": chosen.draws,
        "answers": {
            kind: {
                "logp": _estimate(logps[AUDIO], examples, chosen.draws, seed),
                "drop": {
                    name: {**_estimate(lost, examples, chosen.draws, seed), "fell": _share(lost > 0, lost)}
                    for name, lost in drops(logps).items()
                },
                "tasks": {
                    task: {name: _share(lost[rows], lost[rows]) for name, lost in drops(logps).items()}
                    for task, rows in of_task.items()
                },
            }
            for kind, logps in found.items()
        },
    }


def _patient(example: Example) -> str:
    return patient_cluster(example.dataset, example.patient, example.recording_ids)


def _estimate(values: NDArray[Any], examples: Sequence[Example], draws: int, seed: int) -> dict[str, Any]:
    return bootstrap(mean_of(values), [_patient(one) for one in examples], draws, seed).to_dict()


def _share(values: NDArray[Any], among: NDArray[Any]) -> float | None:
    """The mean of ``values`` where ``among`` is a number."""
    known = values[np.isfinite(among)]
    return round(float(known.mean()), 5) if len(known) else None


def _table(
    examples: Sequence[Example],
    answers: Mapping[str, Sequence[str]],
    found: Mapping[str, Mapping[str, NDArray[Any]]],
    exchanged: Mapping[str, str],
) -> pa.Table:
    """A row an example; ``shuffled`` are the recordings that took the place of its own."""
    columns: dict[str, Any] = {
        name: [getattr(one, name) for one in examples] for name in ("sample_id", "task", "dataset", "patient")
    }
    columns["recording_ids"] = [list(one.recording_ids) for one in examples]
    columns["shuffled"] = [[exchanged.get(name) for name in one.recording_ids] for one in examples]
    for kind, logps in found.items():
        columns[f"{kind}_answer"] = list(answers[kind])
        columns |= {f"{kind}_logp_{name}": values for name, values in logps.items()}
    return pa.table(columns)


def to_markdown(report: Mapping[str, Any]) -> str:
    """The table."""
    header = ("answer", "log-probability", *(f"drop, {name}" for name in (*LOST, "mean of the three")))
    rows = [
        (
            ANSWER_NAMES[kind],
            _shown(one["logp"]),
            *(_shown(one["drop"][name]) for name in (*LOST, ALL)),
        )
        for kind, one in report["answers"].items()
    ]
    return (
        f"**Grounding on {report['examples']} examples of {report['patients']} patients of split "
        f"{report['split']!r}**\n\n{markdown.table(header, rows)}\n\n"
        "Nats a token, the mean over examples. Drop: what the answer's length-averaged log-probability loses when the "
        "recording is withheld, is another one of the same dataset, or lacks 10 to 20 % of its spectrogram. In "
        f"brackets: 95 % intervals by {report['draws']} bootstrap draws over patients. 0 means that the answer does "
        "not depend on the recording.\n"
    )


def _shown(figure: Mapping[str, Any]) -> str:
    return Estimate(figure["value"], figure["low"], figure["high"]).plain()


def brief(report: Mapping[str, Any]) -> dict[str, Any]:
    """For the RESULT line: by answer, the drops and, as ``all``, their mean; each with its interval."""
    return {
        kind: {name: [each["value"], each["low"], each["high"]] for name, each in one["drop"].items()}
        for kind, one in report["answers"].items()
    }
