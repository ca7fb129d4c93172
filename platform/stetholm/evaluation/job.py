"""The frame of the jobs that ask a checkpoint about a split: done once, going on after a restart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from stetholm.corpus.manifest import Manifest
from stetholm.evaluation.examples import Example
from stetholm.evaluation.generation import Answers, AnswerStore, Pool, Question, answer_all, feature_refs
from stetholm.progress import Progress
from stetholm.ray_session import ray_session
from stetholm.runs import digest, finished, record, run_uri
from stetholm.settings import EvaluateSettings, PreferSettings, Settings
from stetholm.storage import Storage


@dataclass(frozen=True)
class GenerationJob:
    """One such job.

    Attributes:
        name: of the job, as in ``jobs/<name>.py``.
        settings: of the run.
        storage: where everything lies.
        checkpoint: URI of the model that is asked.
        corpus: URI of the recordings.
        split: whose examples are asked about.
        chosen: the job's own settings that its result depends on.
    """

    name: str
    settings: Settings
    storage: Storage
    checkpoint: str
    corpus: str
    split: str
    chosen: dict[str, Any]

    @property
    def output(self) -> str:
        """URI of what the job writes."""
        return run_uri(self.settings, self.storage, self.name)

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """All that the result depends on.

        Raises:
            UserError: no corpus, or nothing in its split.
        """
        manifest = Manifest.load(self.storage, self.corpus)
        manifest.split(self.split)  # refuses one without rows
        seed = self.settings.run.seed
        return {"checkpoint": self.checkpoint, "corpus": manifest.sha256, "seed": seed, **self.chosen}

    @cached_property
    def answers(self) -> AnswerStore:
        """What has been answered so far; of these very inputs, so that a restart never mixes two models' answers."""
        return AnswerStore(self.storage, f"{self.output}/answers-{digest(self.inputs)}")

    def once(self, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result of ``work``, done with Ray around it unless this run has it already.

        Raises:
            UserError: the run has done this job from other inputs; no corpus, or nothing in its split.
        """
        result = finished(self.settings, self.storage, self.name, self.inputs)
        if result is None:
            with ray_session():
                result = work()
            record(self.settings, self.storage, self.name, result, self.inputs)
            self.answers.remove()
        return result

    def ask(
        self,
        questions: Sequence[Question],
        examples: Sequence[Example],
        everything: Sequence[Example],
        what: str,
        max_batch: int = 32,
    ) -> Answers:
        """Answers to ``questions`` about the recordings of ``examples``.

        Args:
            questions: those alike are asked once.
            examples: whose recordings the questions are about.
            everything: all examples of the split.
            what: the unit of progress, e.g. ``questions``.
            max_batch: answers that one engine makes together.
        """
        recordings = len({name for example in examples for name in example.recording_ids})
        with Progress(f"{self.name}: features", recordings, "recordings") as progress:
            ids = [example.sample_id for example in everything]
            features = feature_refs(self.storage, self.corpus, self.split, examples, ids, progress)
        pool = self._pool(max_batch)
        distinct = len({question.key for question in questions})
        with Progress(f"{self.name}: answers", distinct, what) as progress:
            return answer_all(questions, features, pool, self.answers, progress)

    def _pool(self, max_batch: int) -> Pool:
        """Engines as the job's own section of the settings wants them."""
        own: PreferSettings | EvaluateSettings = getattr(self.settings, self.name)
        beams = isinstance(own, EvaluateSettings) and own.num_beams > 1
        return Pool(
            self.checkpoint,
            self.storage,
            self.settings.train.use_gpu,
            max_batch,
            "transformers" if beams else own.engine,
            self.settings.engine,
            own.min_replicas,
            own.max_replicas,
        )
