"""The endpoint's work, without its routes: a parsed request in, an answer out."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from serve.backend import Backend
from serve.errors import ApiError, overloaded
from stetholm.audio.decode import AudioError
from stetholm.serving.analysis import Analysis, Sound, question_for, recordings_wanted
from stetholm.serving.engine import Completion, Delta, Request, Sampling
from stetholm.serving.identity import ALIAS, ModelCard
from stetholm.serving.listening import Heard, listen, stack
from stetholm.serving.types import (
    MAX_RECORDINGS,
    MAX_TEXT_CHARS,
    AnswerMessage,
    ChatCompletion,
    ChatRequest,
    Choice,
    Model,
    ModelList,
    Usage,
)
from stetholm.settings import AudioSettings, ServeSettings


@dataclass(frozen=True)
class Served:
    """A model that can be asked."""

    card: ModelCard
    backend: Backend


class Service:
    """Answers chat and analysis requests with the models it is given."""

    def __init__(self, served: Sequence[Served], serve: ServeSettings, audio: AudioSettings) -> None:
        """The first of ``served`` also answers to the alias ``stetholm``."""
        self.served = tuple(served)
        self._by_name = {ALIAS: self.served[0], **{one.card.id: one for one in self.served}}
        self._serve, self._audio = serve, audio

    def models(self) -> ModelList:
        """Every name under which a model answers."""
        return ModelList(
            data=[
                Model(id=name, created=one.card.created, checkpoint=one.card.checkpoint, lineage=one.card.lineage)
                for name, one in self._by_name.items()
            ]
        )

    async def ready(self) -> None:
        """Return when every model answers."""
        await asyncio.gather(*(one.backend.ready() for one in self.served))

    def find(self, name: str) -> Served:
        """The model of that name.

        Raises:
            ApiError: 404, there is none.
        """
        if name not in self._by_name:
            known = ", ".join(self._by_name)
            raise ApiError(404, f"no such model; there are: {known}", code="model_not_found", param="model")
        return self._by_name[name]

    # --- chat ---

    async def chat_request(self, body: ChatRequest) -> Request:
        """Decode the recordings and put the request together."""
        heard = await self._listen([recording.to_bytes() for recording in body.recordings])
        sampling = Sampling(
            max_new_tokens=self._budget(body.budget),
            temperature=body.temperature or 0.0,
            top_p=1.0 if body.top_p is None else body.top_p,
            n=body.n or 1,
            seed=body.seed,
            stop=body.stops,
        )
        return Request(body.instruction, stack(heard), sampling=sampling)

    async def chat(self, body: ChatRequest) -> ChatCompletion:
        """The whole answer."""
        served = self.find(body.model)
        answers = await self._complete(served, await self.chat_request(body))
        choices = [
            Choice(index=index, message=AnswerMessage(content=one.text), finish_reason=one.finish_reason)
            for index, one in enumerate(answers)
        ]
        return ChatCompletion(
            id=new_id("chatcmpl"), created=now(), model=served.card.id, choices=choices, usage=usage_of(answers)
        )

    async def deltas(self, served: Served, request: Request) -> AsyncGenerator[Delta, None]:
        """The answer as it comes, all of it within the request's time.

        Raises:
            ApiError: 503, it took too long.
        """
        deadline = asyncio.get_running_loop().time() + self._serve.request_timeout_s
        async with aclosing(served.backend.stream(request)) as stream:
            while True:
                try:
                    async with asyncio.timeout_at(deadline):
                        delta = await anext(stream, None)
                except TimeoutError as error:
                    raise self._too_slow() from error
                if delta is None:
                    return
                yield delta

    # --- analyze ---

    async def analyze(self, files: list[bytes], task: str, question: str | None, sound: Sound | None) -> Analysis:
        """One task on some recordings."""
        check_analysis(files, task, question)
        served = self.served[0]
        heard = await self._listen(files)
        asked = (question or "").strip() or question_for(task, sound)
        sampling = Sampling(max_new_tokens=self._serve.max_new_tokens)
        [answer] = await self._complete(served, Request(asked, stack(heard), sampling=sampling))
        return Analysis(
            id=new_id("analysis"),
            created=now(),
            task=task,
            question=asked,
            answer=answer.text.strip(),
            finish_reason=answer.finish_reason,
            usage=usage_of([answer]),
            audio=[one.quality for one in heard],
            model=served.card.id,
            checkpoint=served.card.checkpoint,
            lineage=served.card.lineage,
        )

    # --- shared ---

    async def _listen(self, files: list[bytes]) -> list[Heard]:
        """Decode one after the other, off the event loop."""
        heard = []
        for number, data in enumerate(files, 1):
            try:
                heard.append(await asyncio.to_thread(listen, data, self._audio))
            except AudioError as error:
                raise AudioError(f"recording {number}: {error}") from error
        return heard

    async def _complete(self, served: Served, request: Request) -> list[Completion]:
        try:
            async with asyncio.timeout(self._serve.request_timeout_s):
                return await served.backend.complete(request)
        except TimeoutError as error:
            raise self._too_slow() from error

    def _too_slow(self) -> ApiError:
        return overloaded(f"no answer within {self._serve.request_timeout_s:g} s", code="timeout")

    def _budget(self, asked: int | None) -> int:
        most = self._serve.max_new_tokens
        if asked is not None and asked > most:
            raise ApiError(422, f"max_tokens: at most {most}", code="less_than_equal", param="max_tokens")
        return asked or most


def check_analysis(files: list[bytes], task: str, question: str | None) -> None:
    """Bounds that a form cannot express.

    Raises:
        ApiError: 422.
    """
    wanted = recordings_wanted(task)
    if not wanted <= len(files) <= MAX_RECORDINGS:
        raise ApiError(422, f"audio: {task} takes {wanted} to {MAX_RECORDINGS} recordings", param="audio")
    if question is not None and len(question) > MAX_TEXT_CHARS:
        raise ApiError(422, f"question: at most {MAX_TEXT_CHARS} characters", param="question")


def usage_of(answers: Sequence[Completion | Delta]) -> Usage:
    """Tokens of all answers to one prompt; the prompt is read once."""
    return Usage.of(answers[0].prompt_tokens, sum(one.completion_tokens for one in answers))


def new_id(kind: str) -> str:
    """A fresh id, e.g. ``chatcmpl-…``."""
    return f"{kind}-{uuid.uuid4().hex}"


def now() -> int:
    """Unix seconds."""
    return int(time.time())
