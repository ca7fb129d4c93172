"""The local writer: a language model in Ray Data actors."""

import json
from pathlib import Path

import pyarrow as pa
import pytest

from stetholm.corpus.synthesis.local_writer import Answerer, LocalWriter
from stetholm.corpus.synthesis.prompts import Prompts
from stetholm.corpus.synthesis.rounds import Rounds
from stetholm.corpus.synthesis.store import Answer, AnswerStore
from stetholm.settings import SynthesizeSettings
from tests.corpus.synthesis.known import all_pairs, synthetic
from tests.model.tiny import tiny_base

PLAN = all_pairs(synthetic(8))[:10]


def settings(folder: Path, **changes):
    usual = {"writer": "local", "model": str(tiny_base(folder)), "batch_size": 4, "max_new_tokens": 16, "retries": 0}
    return SynthesizeSettings(**{**usual, **changes})


def test_a_batch_is_answered_the_same_way_again(tmp_path: Path):
    writer = LocalWriter(settings(tmp_path), seed=0, use_gpu=False)
    messages = [json.dumps(Prompts.load().messages(planned)) for planned in PLAN[:3]]
    batch = pa.table({"key": [f"{number:032x}" for number in range(3)], "messages": messages})
    answerer = Answerer(writer.model)
    answers = [Answer(**row) for row in answerer(batch).to_pylist()]
    assert [answer.key for answer in answers] == batch["key"].to_pylist()
    assert all(answer.tokens_in > 50 and 0 < answer.tokens_out <= 16 and answer.text for answer in answers)
    assert answers == [Answer(**row) for row in answerer(batch).to_pylist()]
    other = LocalWriter(settings(tmp_path), seed=1, use_gpu=False)
    assert answers != [Answer(**row) for row in Answerer(other.model)(batch).to_pylist()]


@pytest.mark.long
@pytest.mark.usefixtures("ray_cluster")
def test_every_question_is_answered_in_batches_and_a_second_start_asks_nothing(tmp_path: Path):
    chosen = settings(tmp_path)
    writer, store = LocalWriter(chosen, seed=0, use_gpu=False), AnswerStore()
    batches = []
    keep = store.keep
    store.keep = lambda answers: (batches.append(len(answers)), keep(answers))  # type: ignore[method-assign]
    made = Rounds(PLAN, writer, Prompts.load(), store, chosen)
    made.run()
    assert sum(batches) == len(store) == 10 and len(batches) > 1
    assert all(len(case.answers) == 1 and not case.unanswered for case in made.cases)
    assert not Rounds(PLAN, writer, Prompts.load(), store, chosen).open_questions()
