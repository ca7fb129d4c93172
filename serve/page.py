"""The page at ``/``, its script, style and examples: read and made here, nothing from anywhere else."""

from __future__ import annotations

import json
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, Response
from starlette.concurrency import run_in_threadpool

from serve.errors import ApiError
from serve.examples import EXAMPLES, example
from stetholm.serving.analysis import QUESTIONS, recordings_wanted
from stetholm.serving.types import MAX_RECORDINGS, MAX_TEXT_CHARS, NOTICE

FOLDER = Path(__file__).with_name("page")
TYPES = {".js": "text/javascript", ".css": "text/css"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "media-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Nothing is loaded from elsewhere, and nothing inline runs."""

page = APIRouter(include_in_schema=False)


def _fill(html: str) -> str:
    """Put in what the page must know; ``<`` is escaped so that JSON cannot end its element."""
    facts = {
        "questions": QUESTIONS,
        "wanted": {task: recordings_wanted(task) for task in QUESTIONS},
        "maxRecordings": MAX_RECORDINGS,
        "examples": {name: title for name, (_, _, title) in EXAMPLES.items()},
    }
    filled = html.replace("__FACTS__", json.dumps(facts).replace("<", "\\u003c"))
    return filled.replace("__NOTICE__", NOTICE).replace("__MAX_TEXT__", str(MAX_TEXT_CHARS))


_HTML = _fill((FOLDER / "index.html").read_text(encoding="utf-8"))
_FILES = {path.name: path.read_bytes() for path in FOLDER.iterdir() if path.suffix in TYPES}


@page.get("/")
async def index() -> HTMLResponse:
    """The page."""
    return HTMLResponse(_HTML, headers={"Content-Security-Policy": POLICY})


@page.get("/page/{name}")
async def part(name: str) -> Response:
    """Its script and style."""
    if name not in _FILES:
        raise ApiError(404, "there is no such file")
    return Response(_FILES[name], media_type=TYPES[Path(name).suffix])


@page.get("/page/examples/{name}.flac")
async def recording(name: str) -> Response:
    """An example recording."""
    if name not in EXAMPLES:
        raise ApiError(404, "there is no such example")
    return Response(await run_in_threadpool(example, name), media_type="audio/flac")
