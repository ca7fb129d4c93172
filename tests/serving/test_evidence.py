"""What an answer rests on, with the engine's own model and with a copy."""

import copy
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from stetholm.model.packed import can_pack, pack
from stetholm.serving.engine import EngineBusy, Request, Sampling
from stetholm.serving.evidence import Explainer, NotWanted, explainer_of
from stetholm.serving.listening import listen, stack
from stetholm.settings import AudioSettings
from tests.serving.sounds import wav
from tests.serving.tiny import tiny_model

QUESTION = "Is this heart sound normal?"


def request_of(*seconds: float) -> tuple[Request, list[float]]:
    heard = [listen(wav(one), AudioSettings()) for one in seconds]
    return Request(QUESTION, stack(heard)), [one.quality.analysed_seconds for one in heard]


def test_every_second_of_every_recording(engine):
    found = explainer_of(engine).explain(*as_asked("It is normal.", 2.4, 9.0))
    assert [len(one.seconds) for one in found] == [3, 7]
    assert [(one.start, one.end) for one in found[0].seconds] == [(0.0, 1.0), (1.0, 2.0), (2.0, 2.4)]
    values = [second.value for one in found for second in one.seconds]
    assert np.isfinite(values).all() and any(values)


def as_asked(answer: str, *seconds: float) -> tuple[Request, str, list[float]]:
    request, lengths = request_of(*seconds)
    return request, answer, lengths


def test_a_question_without_recordings_has_no_evidence(engine):
    assert explainer_of(engine).explain(Request(QUESTION), "Yes.", []) == []


def test_an_answer_that_fills_the_context_is_explained(engine):
    [found] = explainer_of(engine).explain(*as_asked("é" * 4000, 1.0))
    assert len(found.seconds) == 1


def test_an_engine_without_a_model_of_its_own_needs_a_checkpoint(parts):
    loaded = []

    class Elsewhere:
        """An engine whose model is not in this process."""

    with pytest.raises(ValueError, match="checkpoint"):
        explainer_of(Elsewhere())  # type: ignore[arg-type]
    explainer = Explainer(lambda: loaded.append(1) or parts)
    asked = as_asked("It is normal.", 2.0)
    assert not loaded and explainer.explain(*asked) == explainer.explain(*asked) and len(loaded) == 1


@pytest.mark.skipif(not can_pack(), reason="this processor or torch packs no bf16 weights")
def test_a_packed_bf16_model_explains_as_the_fp32_one():
    """As the endpoint loads it on a CPU; evidence is rounded to about a hundredth."""
    asked = as_asked("It is normal.", 3.0)
    model, processor = tiny_model()
    [exact] = Explainer(lambda: (model, processor)).explain(*asked)
    packed = copy.deepcopy(model).to(torch.bfloat16)
    pack(packed)
    [rounded] = Explainer(lambda: (packed, processor)).explain(*asked)
    differences = [abs(a.value - b.value) for a, b in zip(exact.seconds, rounded.seconds, strict=True)]
    assert max(differences) < 0.05


def test_it_explains_while_the_engine_generates(engine):
    """A tokenizer in two threads at once raises "Already borrowed": the explainer has its own."""
    request, lengths = request_of(1.0)
    explainer, failures = explainer_of(engine), []

    def generate() -> None:
        try:
            for place in range(20):
                engine.generate_many([Request(f"{QUESTION} {place}", sampling=Sampling(max_new_tokens=1))])
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=generate)
    thread.start()
    answers = [explainer.explain(request, "It is normal.", lengths) for _ in range(5)]
    thread.join()
    assert not failures and all(answer == answers[0] for answer in answers)


def test_few_may_wait_and_who_has_gone_is_not_explained(parts):
    begun, free, gone = threading.Event(), threading.Event(), threading.Event()

    def load() -> Any:
        begun.set()
        assert free.wait(60)
        return parts

    explainer, asked = Explainer(load, max_waiting=1), as_asked("It is normal.", 2.0)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(explainer.explain, *asked)
        assert begun.wait(60)
        second = pool.submit(explainer.explain, *asked, gone)
        deadline = time.monotonic() + 60
        while explainer._places._value:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with pytest.raises(EngineBusy):
            explainer.explain(*asked)
        gone.set()
        free.set()
        assert len(first.result(60)) == 1
        with pytest.raises(NotWanted):
            second.result(60)
    assert len(explainer.explain(*asked)) == 1
