"""The endpoint's work, without its routes: a parsed request in, an answer out."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace

from serve.backend import Backend, ReplicaBackend
from serve.canary import Canary, CanaryBackend
from serve.errors import ApiError, of_exception, overloaded
from serve.metrics import HttpMetrics, arrived
from stetholm.audio.decode import AudioError
from stetholm.serving.engine import Completion, Delta, Request, Sampling
from stetholm.serving.identity import ALIAS, ModelCard
from stetholm.serving.listening import Heard, listen, stack
from stetholm.serving.types import AnswerMessage, ChatCompletion, ChatRequest, Choice, Model, ModelList, Usage
from stetholm.settings import AudioSettings, ServeSettings


@dataclass(frozen=True)
class Served:
    """A model that can be asked."""

    listed: ModelCard
    backend: Backend
    name: str = ALIAS
    """What clients call it, beside the id of its checkpoint."""

    @property
    def card(self) -> ModelCard:
        """Who answered, once that is known; before, who is there to answer."""
        told = self.backend.told if isinstance(self.backend, ReplicaBackend | CanaryBackend) else None
        return told or self.listed

    def for_request(self, name: str) -> Served:
        """The same for one request by that name. By a checkpoint's id no other checkpoint may answer."""
        if not isinstance(self.backend, ReplicaBackend):
            return replace(self, name=name)
        only = None if name == self.name else self.listed.checkpoint
        return replace(self, name=name, backend=self.backend.for_request(only))


class Service:
    """Answers chat requests with the models it is given, and has what :class:`serve.analyze.Analyst` works with."""

    def __init__(
        self,
        served: Sequence[Served],
        serve: ServeSettings,
        audio: AudioSettings,
        metrics: HttpMetrics | None = None,
        canary: Canary | None = None,
    ) -> None:
        """The first of ``served`` is the default model, in whose place ``canary`` may answer."""
        self.served = tuple(served)
        self.settings = serve
        names = [(one.name, one) for one in self.served] + [(one.listed.id, one) for one in self.served]
        self._by_name = dict(reversed(names))  # of two versions with one checkpoint the first answers to its id
        self._canary = canary
        longest = min(audio.max_seconds, serve.max_audio_seconds)
        self._limits = audio.model_copy(update={"max_seconds": longest})
        self._metrics = metrics or HttpMetrics()

    def models(self) -> ModelList:
        """Every name under which a model answers."""
        return ModelList(data=[self.model(name) for name in reversed(self._by_name)])

    def model(self, name: str) -> Model:
        """The model of that name.

        Raises:
            ApiError: 404, there is none.
        """
        card = self._known(name).listed
        return Model(id=name, created=card.created, checkpoint=card.checkpoint, lineage=card.lineage)

    async def ready(self) -> None:
        """Return when every model answers that does not sleep."""
        await asyncio.gather(*(one.backend.ready() for one in self.served))

    def find(self, name: str) -> Served:
        """Who answers this request, which names ``name``.

        Raises:
            ApiError: 404, nobody.
        """
        found = self._known(name)
        mine = found.for_request(name)
        if self._canary and name == ALIAS and isinstance(mine.backend, ReplicaBackend) and self._canary.takes():
            return replace(mine, backend=self._diverted(self._canary, mine.backend))
        return mine

    def _diverted(self, canary: Canary, default: ReplicaBackend) -> CanaryBackend:
        """The canary in the place of ``default``; its failures are counted as its own."""
        model = next(one.listed.id for one in self.served if one.backend is canary.backend)
        return CanaryBackend(canary.backend.for_request(), default, lambda error: self._failed(model, ALIAS, error))

    def _known(self, name: str) -> Served:
        if name not in self._by_name:
            known = ", ".join(reversed(self._by_name))
            raise ApiError(404, f"no such model; there are: {known}", code="model_not_found", param="model")
        return self._by_name[name]

    # --- chat ---

    async def chat_request(self, body: ChatRequest) -> Request:
        """Decode the recordings and put the request together."""
        budget = self._budget(body)
        heard = await self.listen([recording.to_bytes() for recording in body.recordings])
        sampling = Sampling(
            max_new_tokens=budget,
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
        answers = await self.complete(served, await self.chat_request(body))
        choices = [
            Choice(index=index, message=AnswerMessage(content=one.text), finish_reason=one.finish_reason)
            for index, one in enumerate(answers)
        ]
        return ChatCompletion(
            id=new_id("chatcmpl"), created=now(), model=served.card.id, choices=choices, usage=usage_of(answers)
        )

    # --- shared ---

    async def listen(self, files: list[bytes]) -> list[Heard]:
        """Decode one after the other, off the event loop.

        Raises:
            AudioError: one of them cannot be used; its number is named.
        """
        heard = []
        for number, data in enumerate(files, 1):
            try:
                heard.append(await asyncio.to_thread(listen, data, self._limits))
            except AudioError as error:
                raise AudioError(f"recording {number}: {error}") from error
            self._metrics.audio.inc(heard[-1].quality.duration_seconds)
        return heard

    async def complete(self, served: Served, request: Request) -> list[Completion]:
        """All answers at once.

        Raises:
            ApiError: 503, it took too long.
        """
        with self._counted(served):
            async with self.in_time():
                return await served.backend.complete(request)

    async def deltas(self, served: Served, request: Request) -> AsyncGenerator[Delta, None]:
        """The answer as it comes, all of it within the request's time.

        Raises:
            ApiError: 503, it took too long.
        """
        with self._counted(served):
            async with aclosing(served.backend.stream(request)) as stream:
                while True:
                    async with self.in_time():
                        delta = await anext(stream, None)
                    if delta is None:
                        break
                    yield delta

    @asynccontextmanager
    async def in_time(self) -> AsyncIterator[None]:
        """Whatever is done within, the request's time, which began when it arrived, ends it.

        Raises:
            ApiError: 503, it took too long.
        """
        since = arrived.get()
        left = self.settings.request_timeout_s - (0.0 if since is None else time.time() - since)
        try:
            async with asyncio.timeout(max(0.0, left)):
                yield
        except TimeoutError as error:
            raise self.too_slow() from error

    @contextmanager
    def _counted(self, served: Served) -> Iterator[None]:
        """An answer: whose it was, and whether it came to its end. One whose client has left is none."""
        try:
            yield
        except Exception as error:
            self._failed(served.card.id, served.name, error)
            raise
        self._metrics.answers.inc(1, {"model": served.card.id, "asked": served.name})

    def _failed(self, model: str, asked: str, error: Exception) -> None:
        answer = of_exception(error)
        if answer.status >= 500:
            self._metrics.failures.inc(1, {"model": model, "asked": asked, "code": answer.code or "other"})

    def too_slow(self) -> ApiError:
        """503 for what took longer than a request may."""
        return overloaded(f"no answer within {self.settings.request_timeout_s:g} s", code="timeout")

    def _budget(self, body: ChatRequest) -> int:
        most, asked = self.settings.max_new_tokens, body.budget
        if asked is not None and asked > most:
            name = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
            raise ApiError(422, f"{name}: at most {most}", code="less_than_equal", param=name)
        return asked or most


def usage_of(answers: Sequence[Completion | Delta]) -> Usage:
    """Tokens of all answers to one prompt; the prompt is read once."""
    return Usage.of(answers[0].prompt_tokens, sum(one.completion_tokens for one in answers))


def new_id(kind: str) -> str:
    """A fresh id, e.g. ``chatcmpl-…``."""
    return f"{kind}-{uuid.uuid4().hex}"


def now() -> int:
    """Unix seconds."""
    return int(time.time())
