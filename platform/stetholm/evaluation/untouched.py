"""The control row "language model untouched": what the checkpoint's language model answers without training or audio.

It is loaded as it was before training, without adapters, and asked in its own chat template, with the published domain
sentence before the instruction: the paper's text-only row. A question is asked once, however many recordings it is
about.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stetholm.completions import Message
from stetholm.evaluation.chat import ChatPool, chat
from stetholm.evaluation.examples import Example
from stetholm.evaluation.generation import AnswerStore
from stetholm.evaluation.job import GenerationJob
from stetholm.model.prompts import domain_sentence
from stetholm.progress import Progress
from stetholm.runs import digest
from stetholm.storage import Storage

SETTING = "evaluate.untouched"
"""Which takes the row out, where the language model is not at hand."""


def base_model(checkpoint: str, storage: Storage) -> str | None:
    """The language model that a checkpoint was made from, as the settings named it; None where it does not say."""
    if checkpoint.startswith("s3://"):
        config = storage.read_json(f"{checkpoint.rstrip('/')}/config.json")
    else:
        config = json.loads(Path(checkpoint, "config.json").read_text("utf-8"))
    name: Any = config.get("language_model")
    return str(name) if name else None


def untouched_answers(job: GenerationJob, examples: Sequence[Example], model: str) -> list[str]:
    """One answer for each example.

    Raises:
        UserError: the language model cannot be loaded.
    """
    chosen = job.settings.evaluate
    texts = {example.sample_id: _asked(example) for example in examples}
    distinct = sorted(set(texts.values()))
    store = untouched_store(job)
    answers = {key: found[0] for key, found in store.load().items()}
    todo: dict[int, list[Message]] = {
        place: [{"role": "user", "content": text}] for place, text in enumerate(distinct) if text not in answers
    }
    pool = ChatPool(model, chosen.max_new_tokens, 0.0, chosen.batch_size, job.settings.train.use_gpu, SETTING)
    with Progress(f"{job.name}: untouched", len(distinct), "questions") as progress:
        for place, answer in chat(todo, pool):
            answers[distinct[place]] = answer
            store.add({distinct[place]: [answer]})
            progress.update(len(answers))
    store.flush()
    return [answers[texts[example.sample_id]] for example in examples]


def untouched_store(job: GenerationJob) -> AnswerStore:
    """What has been answered so far."""
    return AnswerStore(job.storage, f"{job.output}/untouched-{digest(job.inputs)}")


def _asked(example: Example) -> str:
    return f"{domain_sentence(example.dataset, example.instruction)} {example.instruction}".strip()
