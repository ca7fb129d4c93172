"""The routes."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, File, Form, Request, UploadFile
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from fastapi.security import HTTPBearer
from starlette.types import ASGIApp

from serve import errors
from serve.gate import Gate
from serve.keys import ApiKeys
from serve.service import Service
from serve.sse import ChatStream
from stetholm.serving.analysis import QUESTIONS, Analysis, Sound
from stetholm.serving.types import NOTICE, ChatCompletion, ChatRequest, ErrorResponse, ModelList
from stetholm.settings import ServeSettings, Task

PAGE = Path(__file__).with_name("page") / "index.html"
READY_TIMEOUT_S = 20.0
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse} for status in (400, 401, 404, 413, 415, 422, 429, 503)
}

v1 = APIRouter(prefix="/v1", dependencies=[Depends(HTTPBearer(auto_error=False))], responses=ERRORS)
plain = APIRouter()


def create_app(service: Service, settings: ServeSettings, keys: ApiKeys) -> ASGIApp:
    """The whole endpoint as an ASGI application."""
    app = FastAPI(title="StethoLM", description=NOTICE, version="1", docs_url=None, redoc_url=None)
    app.state.service = service
    app.include_router(v1)
    app.include_router(plain)
    errors.install(app)
    return Gate(app, keys, settings.max_body_bytes)


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


ServiceDep = Annotated[Service, Depends(_service)]


@v1.post("/chat/completions", response_model=ChatCompletion)
async def chat_completions(body: ChatRequest, service: ServiceDep) -> Response | ChatCompletion:
    """Answer a question about recordings, as OpenAI's chat completions."""
    if not body.stream:
        return await service.chat(body)
    served = service.find(body.model)
    usage = body.stream_options is not None and body.stream_options.include_usage
    stream = ChatStream(service, served, await service.chat_request(body), usage)
    await stream.open()
    return StreamingResponse(stream.events(), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


@v1.get("/models")
async def models(service: ServiceDep) -> ModelList:
    """The models that answer here."""
    return service.models()


@v1.post("/analyze")
async def analyze(
    service: ServiceDep,
    audio: Annotated[list[UploadFile], File(description="wav, flac, mp3 or ogg")],
    task: Annotated[Task, Form()],
    question: Annotated[str | None, Form()] = None,
    sound: Annotated[Sound | None, Form(description="what was listened to, where known")] = None,
) -> Analysis:
    """Do one of StethoBench's tasks on uploaded recordings."""
    return await service.analyze([await upload.read() for upload in audio], task, question, sound)


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
    return JSONResponse({"status": "ready", "models": [one.card.id for one in service.served]})


@plain.get("/", include_in_schema=False)
async def page() -> HTMLResponse:
    """The page."""
    return HTMLResponse(_PAGE_HTML, headers={"Content-Security-Policy": _PAGE_POLICY})


def _fill_page(html: str) -> str:
    """Put the tasks and the notice in; ``<`` is escaped so that JSON cannot end the script."""
    tasks = json.dumps(QUESTIONS).replace("<", "\\u003c")
    return html.replace("__TASKS__", tasks).replace("__NOTICE__", NOTICE)


def _policy(html: str) -> str:
    """A content security policy that lets exactly this page's own script and style run, and nothing be loaded."""

    def hashes(tag: str) -> str:
        blocks = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digests = (base64.b64encode(hashlib.sha256(block.encode()).digest()).decode() for block in blocks)
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    return (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; connect-src 'self'; "
        "img-src data:; media-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


_PAGE_HTML = _fill_page(PAGE.read_text(encoding="utf-8"))
_PAGE_POLICY = _policy(_PAGE_HTML)
