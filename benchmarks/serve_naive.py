"""What a first version looks like: FastAPI, one process, a lock, and ``generate`` for one request at a time.

``python -m benchmarks.serve_naive CHECKPOINT PORT``. The same model as ours in the same number format, adapters merged,
answers streamed with transformers' own streamer. It takes the same JSON as ours, so that one client can ask both.
"""

from __future__ import annotations

import base64
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from transformers import TextIteratorStreamer

from stetholm.model.checkpoint import load_checkpoint
from stetholm.model.dtype import fast_dtype


def create_app(folder: Path, dtype: torch.dtype) -> FastAPI:
    """The application of the checkpoint in ``folder``."""
    model, processor = load_checkpoint(folder, dtype=dtype, merge=True)
    lock = threading.Lock()
    app = FastAPI()

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/v1/chat/completions")
    def chat(body: dict[str, Any]) -> StreamingResponse:
        parts = body["messages"][-1]["content"]
        text = " ".join(part["text"] for part in parts if part["type"] == "text")
        audio = [base64.b64decode(part["input_audio"]["data"]) for part in parts if part["type"] == "input_audio"]
        streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        made: list[int] = []

        def work() -> None:
            with lock:
                inputs = processor(text=text, audio=audio)
                inputs["input_features"] = inputs["input_features"].to(dtype)
                out = model.generate(**inputs, max_new_tokens=body["max_tokens"], do_sample=False, streamer=streamer)
                made.append(out.shape[1] - inputs["input_ids"].shape[1])

        worker = threading.Thread(target=work)
        worker.start()
        return StreamingResponse(_events(streamer, worker, made), media_type="text/event-stream")

    return app


def _events(streamer: TextIteratorStreamer, worker: threading.Thread, made: list[int]) -> Iterator[str]:
    for text in streamer:
        yield _event({"choices": [{"index": 0, "delta": {"content": text}}]})
    worker.join()
    yield _event({"choices": [], "usage": {"completion_tokens": made[0]}})
    yield "data: [DONE]\n\n"


def _event(fields: dict[str, Any]) -> str:
    return f"data: {json.dumps(fields)}\n\n"


if __name__ == "__main__":
    app = create_app(Path(sys.argv[1]), fast_dtype(gpu=False))
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
