"""The routes."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, File, Form, Request, UploadFile
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi.security import HTTPBearer
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from serve import analyze as analyzing
from serve import errors
from serve.gate import Gate
from serve.keys import ApiKeys
from serve.limits import Limiter
from serve.metrics import HttpMetrics
from serve.page import page
from serve.service import Service
from serve.sse import AnalysisStream, ChatStream, EventStream
from stetholm.serving.analysis import Analysis, Sound
from stetholm.serving.identity import ALIAS
from stetholm.serving.types import NOTICE, ChatCompletion, ChatRequest, ErrorResponse, Model, ModelList
from stetholm.settings import ServeSettings, Task

READY_TIMEOUT_S = 20.0
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse} for status in (400, 401, 404, 408, 413, 415, 422, 429, 503)
}

v1 = APIRouter(prefix="/v1", dependencies=[Depends(HTTPBearer(auto_error=False))], responses=ERRORS)
plain = APIRouter()


def create_app(
    service: Service,
    settings: ServeSettings,
    keys: ApiKeys,
    limiter: Limiter | None = None,
    metrics: HttpMetrics | None = None,
) -> ASGIApp:
    """The whole endpoint as an ASGI application. Without a ``limiter`` limits are counted in this process."""
    app = FastAPI(title="StethoLM", description=NOTICE, version="1", docs_url=None, redoc_url=None)
    app.state.service = service
    for router in (v1, plain, page):
        app.include_router(router)
    errors.install(app)
    gate = Gate(app, keys, settings.max_body_bytes, limiter, metrics)
    if not settings.cors_origins:
        return gate
    # Outside the gate: a browser asks without its key whether it may ask.
    return CORSMiddleware(
        gate,
        allow_origins=settings.cors_origins,
        allow_methods=["GET", "POST"],
        allow_headers=["Authorization", "Content-Type", "X-Request-ID"],
        expose_headers=["X-Request-ID", "Retry-After"],
    )


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


ServiceDep = Annotated[Service, Depends(_service)]


async def _streamed(stream: EventStream) -> StreamingResponse:
    await stream.open()
    return StreamingResponse(stream.events(), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


@v1.post("/chat/completions", response_model=ChatCompletion)
async def chat_completions(body: ChatRequest, service: ServiceDep) -> Response | ChatCompletion:
    """Answer a question about recordings, as OpenAI's chat completions."""
    if not body.stream:
        return await service.chat(body)
    served = service.find(body.model)
    usage = body.stream_options is not None and body.stream_options.include_usage
    return await _streamed(ChatStream(service, served, await service.chat_request(body), usage))


@v1.get("/models")
async def models(service: ServiceDep) -> ModelList:
    """The models that answer here."""
    return service.models()


@v1.get("/models/{model:path}")
async def model(model: str, service: ServiceDep) -> Model:
    """One of them."""
    return service.model(model)


@v1.post("/analyze", response_model=Analysis)
async def analyze(
    service: ServiceDep,
    audio: Annotated[list[UploadFile], File(description="wav, flac, mp3 or ogg")],
    task: Annotated[Task, Form()],
    question: Annotated[str | None, Form(description="default: the task's own")] = None,
    sound: Annotated[Sound | None, Form(description="what was listened to, where known")] = None,
    model: Annotated[str, Form()] = ALIAS,
    evidence: Annotated[bool, Form(description="what the answer rests on, second by second")] = True,
    stream: Annotated[bool, Form(description="server-sent events: the answer in pieces, then the result")] = False,
) -> Response | Analysis:
    """Do one of StethoBench's tasks on uploaded recordings."""
    files = [await upload.read() for upload in audio]
    analyst = analyzing.Analyst(service, analyzing.Form(files, task, question, sound, model, evidence))
    return await (_streamed(AnalysisStream(analyst)) if stream else analyst.whole())


@plain.get("/healthz")
async def healthz() -> dict[str, str]:
    """The HTTP layer is up."""
    return {"status": "ok"}


@plain.get("/readyz", responses={503: {"model": ErrorResponse}})
async def readyz(service: ServiceDep) -> JSONResponse:
    """Every model has just answered a question."""
    try:
        async with asyncio.timeout(READY_TIMEOUT_S):
            await service.ready()
    except TimeoutError as error:
        raise errors.overloaded("the model does not answer yet", code="not_ready") from error
    return JSONResponse({"status": "ready", "models": [one.listed.id for one in service.served]})
