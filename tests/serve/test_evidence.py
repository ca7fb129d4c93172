"""Evidence that fails costs no answer, and evidence that nobody waits for costs no time."""

import asyncio
import json
import threading
from collections.abc import Sequence

import numpy as np
import pytest

from serve.backend import EngineBackend
from serve.errors import overloaded
from stetholm.serving.analysis import Evidence
from stetholm.serving.engine import EngineBusy, Request
from stetholm.serving.transformers_engine import TransformersEngine
from tests.serving.sounds import wav


class Failing(EngineBackend):
    """Answers, and fails to explain."""

    def __init__(self, engine: TransformersEngine, error: Exception) -> None:
        super().__init__(engine)
        self._error = error

    async def explain(self, request: Request, answer: str, seconds: Sequence[float]) -> list[Evidence]:
        raise self._error


@pytest.mark.parametrize("stream", ["false", "true"])
@pytest.mark.parametrize(
    ("error", "code"),
    [
        (overloaded("too many requests are waiting"), "overloaded"),
        (overloaded("no answer in time", code="timeout"), "timeout"),
        (EngineBusy("enough answers wait"), "overloaded"),
        (MemoryError("no room"), "internal_error"),
    ],
)
async def test_an_answer_outlives_its_evidence(client_of, engine, stream, error, code):
    form = {"files": [("audio", wav())], "data": {"task": "Report", "stream": stream}}
    async with client_of(backend=Failing(engine, error)) as client:
        response = await client.post("/v1/analyze", **form)
    assert response.status_code == 200
    events = [line.removeprefix("data: ") for line in response.text.split("\n\n")] if stream == "true" else []
    result = json.loads(events[-3] if events else response.text)
    assert result["answer"] and result["evidence"] is None and result["evidence_error"] == code
    assert not events or events[-2] == "[DONE]"


async def test_there_is_no_reason_where_there_is_evidence_or_none_was_asked_for(client_of):
    async with client_of() as client:
        for wanted in ("true", "false"):
            form = {"files": [("audio", wav())], "data": {"task": "Report", "evidence": wanted}}
            result = (await client.post("/v1/analyze", **form)).json()
            assert (result["evidence"] is not None, result["evidence_error"]) == (wanted == "true", None)


async def test_who_leaves_tells_the_explainer(engine):
    seen: list[threading.Event] = []

    class Slow:
        """Explains until nobody waits for it."""

        def explain(self, request: Request, answer: str, seconds: Sequence[float], gone: threading.Event) -> None:
            seen.append(gone)
            gone.wait(60)

    request = Request("?", np.zeros((1, 64, 218), np.float32))
    asking = asyncio.create_task(EngineBackend(engine, Slow()).explain(request, "Yes.", [1.0]))  # type: ignore[arg-type]
    async with asyncio.timeout(60):
        while not seen:
            await asyncio.sleep(0.01)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert seen[0].is_set()
