"""``/v1/analyze``: one of the seven tasks on some recordings, with what the answer rests on."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from serve.backend import ModelChanged
from serve.errors import ApiError, of_exception
from serve.service import Served, Service, new_id, now, usage_of
from serve.visit import log_failure
from stetholm.serving.analysis import Analysis, Evidence, Sound, question_for, recordings_wanted
from stetholm.serving.engine import Completion, Request, Sampling, collect
from stetholm.serving.identity import ALIAS
from stetholm.serving.listening import Heard, stack
from stetholm.serving.types import MAX_RECORDINGS, MAX_TEXT_CHARS


@dataclass(frozen=True)
class Form:
    """What a client sent."""

    files: list[bytes]
    task: str
    question: str | None = None
    sound: Sound | None = None
    model: str = ALIAS
    evidence: bool = True

    def check(self) -> None:
        """Bounds that an upload form cannot express.

        Raises:
            ApiError: 422.
        """
        wanted = recordings_wanted(self.task)
        if not wanted <= len(self.files) <= MAX_RECORDINGS:
            raise ApiError(422, f"audio: {self.task} takes {wanted} to {MAX_RECORDINGS} recordings", param="audio")
        if self.question is not None and len(self.question) > MAX_TEXT_CHARS:
            raise ApiError(422, f"question: at most {MAX_TEXT_CHARS} characters", param="question")

    @property
    def asked(self) -> str:
        """The question that is put: the client's own, or the task's."""
        return (self.question or "").strip() or question_for(self.task, self.sound)


class Analyst:
    """One analysis: :meth:`prepare`, then :meth:`whole`, or :meth:`pieces` and :meth:`finish`."""

    def __init__(self, service: Service, form: Form) -> None:
        """Nothing is done yet."""
        self._service, self._form = service, form
        self.id = new_id("analysis")
        self._served: Served
        self._heard: list[Heard]
        self._request: Request
        self._answer: Completion
        self._changed = False
        self._error: str | None = None

    async def prepare(self) -> None:
        """Check the form and decode the recordings.

        Raises:
            ApiError, AudioError: the form or a recording cannot be used.
        """
        self._form.check()
        self._served = self._service.find(self._form.model)
        self._heard = await self._service.listen(self._form.files)
        sampling = Sampling(max_new_tokens=self._service.settings.max_new_tokens)
        self._request = Request(self._form.asked, stack(self._heard), sampling=sampling)

    async def whole(self) -> Analysis:
        """The result at once. If the model is changed between answer and evidence, both are asked of the new one."""
        await self.prepare()
        for _ in range(2):
            [self._answer] = await self._service.complete(self._served, self._request)
            result = await self.finish()
            if not self._changed:
                break
            self._served, self._changed = self._service.find(self._form.model), False
        return result

    async def pieces(self) -> AsyncGenerator[str, None]:
        """The answer's text as it comes."""
        deltas = []
        async with aclosing(self._service.deltas(self._served, self._request)) as stream:
            async for delta in stream:
                deltas.append(delta)
                if delta.text:
                    yield delta.text
        [self._answer] = collect(deltas, 1)

    async def finish(self) -> Analysis:
        """The result, once the answer is there."""
        evidence = await self._evidence()
        card, answer = self._served.card, self._answer
        return Analysis(
            id=self.id,
            created=now(),
            task=self._form.task,
            question=self._form.asked,
            answer=answer.text.strip(),
            finish_reason=answer.finish_reason,
            usage=usage_of([answer]),
            audio=[one.quality for one in self._heard],
            evidence=evidence,
            evidence_error=self._error,
            model=card.id,
            checkpoint=card.checkpoint,
            lineage=card.lineage,
        )

    async def _evidence(self) -> list[Evidence] | None:
        """None, if there is none to give: an answer is not lost for that."""
        settings, self._error = self._service.settings, None
        if not (settings.evidence and self._form.evidence):
            return None
        seconds = [one.quality.analysed_seconds for one in self._heard]
        try:
            async with self._service.in_time():
                return await self._served.backend.explain(self._request, self._answer.text, seconds)
        except ModelChanged:
            self._changed, self._error = True, "model_changing"
        except Exception as error:
            failed = of_exception(error)
            self._error = failed.code or "internal_error"
            if failed.status == 500:
                log_failure(error)
        return None
