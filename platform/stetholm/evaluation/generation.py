"""Answers to many questions: a Ray Data actor pool of generation engines, which a restart goes on with.

    recordings = feature_refs(stream, ...)            # log-mel of every recording, once, in Ray's object store
    answers = answer_all(questions, recordings, pool, store, progress)

Questions that are the same (an instruction without audio asked for a hundred examples) are answered once. Answers are
written to storage as they come, so that a job started again asks only what is still open.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import pyarrow as pa
import ray
import torch
from ray.data import ActorPoolStrategy
from transformers.utils import logging as hf_logging

from stetholm.corpus.datasource import quiet
from stetholm.corpus.ledger import Ledger
from stetholm.corpus.stream import CorpusStream, read_features
from stetholm.evaluation.examples import Example
from stetholm.evaluation.parts import PartStore
from stetholm.progress import Progress
from stetholm.roles import gpu_nodes
from stetholm.serving.engine import Request, Sampling
from stetholm.serving.load import choose_engine, load_engine
from stetholm.settings import EngineKind, EngineSettings
from stetholm.storage import Storage

CALLS_TOGETHER = 4
"""How many times the answers that vLLM computes together go into one call."""

Features = Mapping[str, "ray.ObjectRef[np.ndarray]"]
"""Recording id -> its log-mel (64, 218) in the object store."""


@dataclass(frozen=True)
class Question:
    """An instruction about some recordings (or none), with the sampling of each answer that is wanted."""

    instruction: str
    dataset: str | None
    recordings: tuple[str, ...]
    samplings: tuple[Sampling, ...]

    def to_json(self) -> str:
        """The question as JSON text: equal questions give equal text."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Question:
        """Read back what :meth:`to_json` wrote."""
        raw = json.loads(text)
        samplings = tuple(Sampling(**{**sampling, "stop": tuple(sampling["stop"])}) for sampling in raw["samplings"])
        return cls(raw["instruction"], raw["dataset"], tuple(raw["recordings"]), samplings)

    @property
    def key(self) -> str:
        """32 hex digits that depend on the content alone."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Pool:
    """What the engines of the actor pool load and how large the pool is."""

    checkpoint: str
    storage: Storage
    use_gpu: bool = False
    max_batch: int = 32
    """Answers that one engine makes together."""
    engine: EngineKind = "auto"
    limits: EngineSettings = field(default_factory=EngineSettings)
    min_replicas: int | None = None
    """Engines at least; None: as many as at most, so that the pool does not change."""
    max_replicas: int | None = None
    """Engines at most; None: as many as fit the cluster."""

    @property
    def kind(self) -> EngineKind:
        """``transformers`` or ``vllm``."""
        return choose_engine(self.engine, self.use_gpu)

    def size(self, questions: int, answers: int) -> tuple[int, int]:
        """Engines at most, and questions a call, for what the cluster has free."""
        together = self.max_batch
        if self.kind == "vllm":  # it keeps its batch full as long as there is more: few calls, few ends
            together = CALLS_TOGETHER * self.limits.max_num_seqs
        per_call = max(1, together // max(1, math.ceil(answers / max(questions, 1))))
        most = max(1, min(self.max_replicas or self._places(), math.ceil(questions / per_call)))
        return most, per_call

    def _places(self) -> int:
        """Engines that fit. On one machine Ray's CPUs may be more than its cores, which an engine needs for itself."""
        free = ray.available_resources()
        if self.use_gpu:
            return int(free.get("GPU", 1.0))
        alone = sum(node["Alive"] for node in ray.nodes()) == 1
        return int(min(free.get("CPU", 1.0), (os.cpu_count() or 1) if alone else math.inf))


class Answerer:
    """A member of the pool: loads the engine once, answers batches of questions."""

    def __init__(self, pool: Pool, features: dict[str, ray.ObjectRef]) -> None:
        hf_logging.disable_progress_bar()
        if not pool.use_gpu:
            torch.set_num_threads(1)
        device = "cuda" if pool.use_gpu else "cpu"
        self._engine = load_engine(
            pool.checkpoint, pool.storage, pool.engine, device=device, max_batch=pool.max_batch, settings=pool.limits
        )
        self._features = features

    def __call__(self, batch: pa.Table) -> pa.Table:
        """``key`` and ``question`` (JSON) in; ``key``, ``texts`` (list) and ``tokens`` (generated, in all) out."""
        questions = [Question.from_json(text) for text in batch["question"].to_pylist()]
        completions = iter(self._engine.generate_many(self._requests(questions)))
        answers = [[next(completions)[0] for _ in question.samplings] for question in questions]
        texts = pa.array([[one.text.strip() for one in answer] for answer in answers], pa.list_(pa.string()))
        tokens = pa.array([sum(one.completion_tokens for one in answer) for answer in answers], pa.int64())
        return pa.table({"key": batch["key"], "texts": texts, "tokens": tokens})

    def __del__(self) -> None:
        """Ray calls this when the pool is done with its member."""
        if hasattr(self, "_engine"):
            self._engine.close()

    def _requests(self, questions: Sequence[Question]) -> list[Request]:
        """One request an answer; those of a question share one array, so that an engine can encode it once."""
        wanted = list(dict.fromkeys(name for question in questions for name in question.recordings))
        sounds = dict(zip(wanted, ray.get([self._features[name] for name in wanted]), strict=True))
        requests = []
        for question in questions:
            stacked = np.zeros((0, 64, 218), np.float32)
            if question.recordings:
                stacked = np.stack([sounds[name] for name in question.recordings])
            requests += [Request(question.instruction, stacked, question.dataset, one) for one in question.samplings]
        return requests


def feature_refs(
    storage: Storage,
    corpus_uri: str,
    split: str,
    examples: Sequence[Example],
    all_ids: Iterable[str],
    progress: Progress | None = None,
) -> Features:
    """The log-mel of every recording of ``examples``, each computed once, streamed into Ray's object store.

    Args:
        storage: where the corpus lies.
        corpus_uri: its URI.
        split: of the examples.
        examples: those whose recordings are wanted.
        all_ids: sample ids of the whole split.
        progress: told how many recordings are done.
    """
    carriers, wanted = _carriers(examples)
    ledger = Ledger()
    ledger.add(0, set(all_ids) - carriers)
    stream = CorpusStream(storage, corpus_uri, split=split, seed=0, training=False, ledger=ledger)
    refs: dict[str, ray.ObjectRef] = {}
    for row in stream.rows():
        for name, spectrogram in zip(row["recording_ids"], read_features(row), strict=True):
            if name in wanted and name not in refs:
                refs[name] = ray.put(spectrogram)
        if progress is not None:
            progress.update(len(refs))
    return refs


def _carriers(examples: Sequence[Example]) -> tuple[set[str], set[str]]:
    """Samples that together hold every recording, and those recordings."""
    carriers: set[str] = set()
    recordings: set[str] = set()
    for example in examples:
        if not recordings.issuperset(example.recording_ids):
            carriers.add(example.sample_id)
            recordings.update(example.recording_ids)
    return carriers, recordings


class AnswerStore(PartStore[list[str]]):
    """Answers by question; the URI must belong to one checkpoint alone."""

    def columns(self, values: Sequence[list[str]]) -> dict[str, pa.Array]:
        """Texts of each answer."""
        return {"texts": pa.array(values, pa.list_(pa.string()))}

    def values(self, table: pa.Table) -> list[list[str]]:
        """The answers of a part."""
        found: list[list[str]] = table["texts"].to_pylist()
        return found


@dataclass(frozen=True)
class Answers:
    """Texts by question key, and what making them took in this attempt."""

    texts: dict[str, list[str]]
    made: int
    """Answers generated now (others were there already)."""
    tokens: int
    seconds: float
    """From the first answers asked for to the last, the loading of the engines included."""

    def of(self, question: Question) -> list[str]:
        """The answers to a question, one for each of its samplings."""
        return self.texts[question.key]


def answer_all(
    questions: Iterable[Question], features: Features, pool: Pool, store: AnswerStore, progress: Progress
) -> Answers:
    """Answer every distinct question that the store does not hold yet.

    Raises:
        RequestError: a question that the model cannot take (its prompt is longer than the context).
    """
    texts = store.load()
    distinct = {question.key: question for question in questions}
    # Alike beside alike, so that a batch has little padding.
    todo = sorted(
        (question for key, question in distinct.items() if key not in texts),
        key=lambda question: (len(question.recordings), len(question.instruction), question.key),
    )
    started, made, tokens = time.monotonic(), 0, 0
    for table in _generate(todo, features, pool):
        found = dict(zip(table["key"].to_pylist(), table["texts"].to_pylist(), strict=True))
        store.add(found)
        texts.update(found)
        made += sum(len(answer) for answer in found.values())
        tokens += sum(table["tokens"].to_pylist())
        rate = made / (time.monotonic() - started)
        progress.update(len(texts.keys() & distinct.keys()), answers_per_s=rate)
    store.flush()
    return Answers(texts, made, tokens, time.monotonic() - started)


def _generate(todo: Sequence[Question], features: Features, pool: Pool) -> Iterable[pa.Table]:
    """Tables of answers as the actors make them."""
    if not todo:
        return
    most, per_call = pool.size(len(todo), sum(len(question.samplings) for question in todo))
    rows = [{"key": question.key, "question": question.to_json()} for question in todo]
    dataset = ray.data.from_items(rows, override_num_blocks=math.ceil(len(rows) / per_call)).map_batches(
        Answerer,
        fn_constructor_args=(pool, dict(features)),
        batch_size=per_call,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(min_size=min(pool.min_replicas or most, most), max_size=most),
        num_cpus=0 if pool.use_gpu else 1,
        num_gpus=1 if pool.use_gpu else 0,
        label_selector=gpu_nodes(pool.use_gpu),
    )
    yield from quiet(dataset).iter_batches(batch_size=None, batch_format="pyarrow")
