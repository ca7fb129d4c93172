"""Every route in this process: answers, and an OpenAI error with the right status for whatever is wrong."""

import asyncio
import base64
import io
import json
import logging
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from serve.backend import Backend
from serve.errors import overloaded
from serve.keys import ApiKey, ApiKeys
from stetholm.serving import Completion, Delta, Request
from stetholm.serving.analysis import TASKS, recordings_wanted
from stetholm.serving.listening import listen
from stetholm.serving.types import NOTICE
from stetholm.settings import AudioSettings
from tests.serving.sounds import wav

TEXT = {"type": "text", "text": "Is this normal?"}


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What the endpoint logs; by a handler of its own, for pytest's are no longer heard once this process ran a Ray."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    logger = logging.getLogger("stetholm.serve")
    logger.addHandler(handler)
    yield text
    logger.removeHandler(handler)


def audio(data: bytes | str = b"", format: str = "wav") -> dict[str, object]:
    encoded = data if isinstance(data, str) else base64.b64encode(data or wav()).decode()
    return {"type": "input_audio", "input_audio": {"data": encoded, "format": format}}


def chat(*parts: object, **more: object) -> dict[str, object]:
    return {"model": "stetholm", "messages": [{"role": "user", "content": list(parts) or [audio(), TEXT]}], **more}


def form(*files: bytes, **fields: str) -> dict[str, object]:
    return {"files": [("audio", ("a.wav", data)) for data in files], "data": {"task": "Classification", **fields}}


def call(client_of, *requests: tuple[str, str, dict[str, object]], **options: object) -> list[httpx.Response]:
    async def run() -> list[httpx.Response]:
        async with client_of(**options) as client:
            return [await client.request(method, path, **arguments) for method, path, arguments in requests]

    return asyncio.run(run())


def post(client_of, path: str, arguments: dict[str, object], **options: object) -> httpx.Response:
    return call(client_of, ("POST", path, arguments), **options)[0]


def ask(client_of, body: object, **options: object) -> httpx.Response:
    return post(client_of, "/v1/chat/completions", {"json": body}, **options)


def assert_error(response: httpx.Response, status: int) -> dict[str, object]:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    return error


def events(response: httpx.Response) -> list[dict]:
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_chat(client_of):
    answer = ask(client_of, chat(audio(), audio(wav(format="FLAC"), "flac"), TEXT, max_tokens=5, n=2)).json()
    assert [choice["finish_reason"] for choice in answer["choices"]] == ["length"] * 2
    assert answer["usage"]["completion_tokens"] == 10 and answer["notice"] == NOTICE
    assert answer["model"] == "stetholm/test/sft" and answer["object"] == "chat.completion"


def test_a_stream_is_the_answer_in_pieces(client_of):
    body = chat(max_tokens=12, n=2, temperature=1.0, seed=1)
    whole = ask(client_of, body).json()
    response = ask(client_of, {**body, "stream": True, "stream_options": {"include_usage": True}})
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, last = events(response)
    for choice in whole["choices"]:
        deltas = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
        assert "".join(c["delta"].get("content", "") for c in deltas) == choice["message"]["content"]
        assert deltas[0]["delta"]["role"] == "assistant" and deltas[-1]["finish_reason"] == choice["finish_reason"]
    assert last["usage"] == whole["usage"] and last["choices"] == []
    assert {chunk["notice"] for chunk in chunks} == {NOTICE}


def test_analyze(client_of):
    response = post(client_of, "/v1/analyze", form(wav(9.0), task="Report", sound="lung"))
    result = response.json()
    assert result["task"] == "Report" and result["question"] == "Generate a brief summary of the lung sound findings."
    assert result["audio"][0]["duration_seconds"] == 9.0 and result["audio"][0]["analysed_seconds"] == 7.0
    assert result["checkpoint"].startswith("s3://") and result["lineage"] == {"parent": None}
    assert result["answer"] and result["notice"] == NOTICE
    [evidence] = result["evidence"]
    assert (evidence["method"], evidence["unit"], len(evidence["seconds"])) == ("occlusion", "nats per token", 7)
    assert any(second["value"] for second in evidence["seconds"])


@pytest.mark.parametrize("task", TASKS)
def test_analyze_does_every_task(client_of, task):
    files = [wav()] * recordings_wanted(task)
    result = post(client_of, "/v1/analyze", form(*files, task=task, evidence="false")).json()
    assert (result["task"], result["evidence"], len(result["audio"])) == (task, None, len(files))
    assert {"duration_seconds", "clipping_fraction", "silence_fraction", "level_dbfs"} <= set(result["audio"][0])


def test_a_streamed_analysis_is_the_answer_in_pieces_then_the_result(client_of):
    asked = form(wav(), wav(1.5), task="Comparison")
    whole = post(client_of, "/v1/analyze", asked).json()
    response = post(client_of, "/v1/analyze", form(wav(), wav(1.5), task="Comparison", stream="true"))
    *pieces, last = events(response)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert "".join(piece["text"] for piece in pieces).strip() == last["answer"] == whole["answer"]
    assert {piece["object"] for piece in pieces} == {"stetholm.analysis.delta"}
    changing = {"id", "created"}
    assert {**last, **dict.fromkeys(changing)} == {**whole, **dict.fromkeys(changing)}


def test_the_endpoint_may_keep_its_evidence(client_of):
    assert post(client_of, "/v1/analyze", form(wav()), evidence=False).json()["evidence"] is None


def test_a_recording_may_not_be_longer_than_the_endpoint_allows(client_of):
    response = post(client_of, "/v1/analyze", form(wav(3.0)), max_audio_seconds=2)
    assert assert_error(response, 415)["code"] == "unusable_audio"


def test_one_model_by_name(client_of):
    paths = ["stetholm", "stetholm/test/sft", "stetholm%2Ftest%2Fsft", "gpt-4o"]
    *found, missing = call(client_of, *(("GET", f"/v1/models/{path}", {}) for path in paths))
    assert [response.json()["id"] for response in found] == ["stetholm", "stetholm/test/sft", "stetholm/test/sft"]
    assert assert_error(missing, 404)["code"] == "model_not_found"


def test_analyze_with_a_question_of_ones_own(client_of):
    result = post(client_of, "/v1/analyze", form(wav(), wav(), task="Comparison", question="Which is louder?")).json()
    assert result["question"] == "Which is louder?" and len(result["audio"]) == 2


def test_the_rest(client_of):
    paths = ["/v1/models", "/healthz", "/readyz", "/", "/openapi.json"]
    models, health, ready, page, api = call(client_of, *(("GET", path, {}) for path in paths))
    assert [model["id"] for model in models.json()["data"]] == ["stetholm", "stetholm/test/sft"]
    assert health.json() == {"status": "ok"} and ready.json()["models"] == ["stetholm/test/sft"]
    assert NOTICE in page.text and "__" not in page.text
    assert {"/v1/chat/completions", "/v1/analyze", "/v1/models", "/healthz", "/readyz"} <= set(api.json()["paths"])


CHAT_ERRORS = [
    (chat(model="gpt-4o"), 404, "model_not_found"),
    (chat(audio("no base64!"), TEXT), 400, "invalid_base64"),
    (chat(audio(b"GIF89a" * 50), TEXT), 415, "unusable_audio"),
    (chat(audio(wav()[:60]), TEXT), 415, "unusable_audio"),
    (chat(audio(wav(31.0)), TEXT), 415, "unusable_audio"),
    (chat({"type": "image_url", "image_url": {"url": "secret"}}, TEXT), 422, "union_tag_invalid"),
    (chat(max_tokens=17), 422, "less_than_equal"),
    (chat(max_tokens=10**30), 422, None),
    (chat({"type": "text", "text": "é" * 4000}), 400, "context_length_exceeded"),
    (chat({"type": "text", "text": "x" * 10_000}), 422, "string_too_long"),
    (chat(temperature=-1), 422, "greater_than_equal"),
    (chat(surprise=1), 422, "extra_forbidden"),
    ([], 422, None),
    ("text", 422, None),
    (None, 422, None),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("body", "status", "code"), CHAT_ERRORS)
def test_bad_chat_requests(client_of, body, status, code, stream):
    body = {**body, "stream": stream} if isinstance(body, dict) else body
    error = assert_error(ask(client_of, body), status)
    assert code is None or error["code"] == code
    assert "secret" not in error["message"] and "GIF89" not in error["message"]


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 422),
        (b"{", 400),
        (b"\xff\xfe\x00", 400),
        (b"[" * 100_000, 400),
        (b'{"\\ud800": 1}', 422),
        (b'{"model":"stetholm","messages":[{"role":"user","content":"\\ud800"}]}', 422),
        (b'{"model":"stetholm","temperature":NaN,"messages":[{"role":"user","content":"x"}]}', 422),
        (b'{"max_tokens":' + b"9" * 5000 + b"}", 400),
    ],
)
def test_bodies_that_are_no_requests(client_of, content, status):
    arguments = {"content": content, "headers": {"content-type": "application/json"}}
    assert_error(post(client_of, "/v1/chat/completions", arguments), status)


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (form(b"not audio"), 415),
        (form(b""), 415),
        (form(wav(), task="Guess"), 422),
        (form(wav(), sound="brain"), 422),
        (form(wav(), task="Comparison"), 422),
        (form(*[wav()] * 5), 422),
        (form(wav(), question="x" * 4001), 422),
        (form(wav(), model="gpt-4o"), 404),
        (form(wav(), evidence="perhaps"), 422),
        ({"data": {"task": "Report"}}, 422),
        ({"data": {"task": "Report", "audio": "text"}}, 422),
        ({"content": b"--x", "headers": {"content-type": "multipart/form-data; boundary=y"}}, 400),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400),
    ],
)
def test_bad_uploads(client_of, arguments, status):
    assert_error(post(client_of, "/v1/analyze", arguments), status)


def test_unknown_routes_and_methods(client_of):
    missing, wrong = call(client_of, ("GET", "/v2", {}), ("DELETE", "/v1/models", {}))
    assert_error(missing, 404)
    assert_error(wrong, 405)


def test_keys(client_of):
    keys = ApiKeys((ApiKey.of("a", "sk-a"), ApiKey.of("b", "sk-b")))
    wanted = [None, "Bearer sk-c", "Basic sk-a", "sk-a", "Bearer sk-a", "bearer sk-b"]
    requests = [("GET", "/v1/models", {"headers": {"Authorization": w} if w else {}}) for w in wanted]
    *refused, first, second = call(client_of, *requests, keys=keys)
    for response in refused:
        assert assert_error(response, 401)["code"] == "invalid_api_key"
        assert "sk-" not in response.text and response.headers["www-authenticate"] == "Bearer"
    assert first.status_code == second.status_code == 200
    page, health = call(client_of, ("GET", "/", {}), ("GET", "/healthz", {}), keys=keys)
    assert page.status_code == health.status_code == 200


def test_bodies_are_bounded_with_and_without_a_length(client_of):
    async def drip() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"x" * 100

    whole, dripped = call(
        client_of,
        ("POST", "/v1/chat/completions", {"content": b"x" * 5000}),
        ("POST", "/v1/chat/completions", {"content": drip()}),
        max_body_bytes=4096,
    )
    assert_error(whole, 413)
    assert_error(dripped, 413)


class Stub(Backend):
    """A backend that fails or hangs as told; what the replicas can do is tested on Serve."""

    def __init__(self, error: Exception | None = None, after: int = 0) -> None:
        self.error, self.after = error, after

    async def complete(self, request: Request) -> list[Completion]:
        async for _ in self.stream(request):
            pass
        return []

    async def stream(self, request: Request) -> AsyncIterator[Delta]:
        for _ in range(self.after):
            yield Delta(0, "a", None, 1, 1)
        if self.error:
            raise self.error
        await asyncio.sleep(60)
        yield Delta(0, "", "stop", 1, 1)

    async def ready(self) -> None:
        await self.complete(Request("x"))


@pytest.mark.parametrize("stream", [False, True])
def test_no_answer_in_time_is_503_with_retry_after(client_of, stream):
    response = ask(client_of, chat(TEXT, stream=stream), backend=Stub(), request_timeout_s=0.05)
    assert assert_error(response, 503)["code"] == "timeout" and response.headers["retry-after"].isdigit()


@pytest.mark.parametrize("stream", [False, True])
def test_a_busy_model_is_503_with_retry_after(client_of, stream):
    response = ask(client_of, chat(TEXT, stream=stream), backend=Stub(overloaded("busy")))
    assert_error(response, 503)
    assert response.headers["retry-after"].isdigit()


def test_an_error_in_the_middle_of_a_stream_is_an_event(client_of):
    response = ask(client_of, chat(TEXT, stream=True), backend=Stub(overloaded("gone"), after=2))
    lines = response.text.strip().split("\n\n")
    assert response.status_code == 200 and len(lines) == 3 and "[DONE]" not in response.text
    assert json.loads(lines[-1].removeprefix("data: "))["error"]["message"] == "gone"


@pytest.mark.parametrize("stream", [False, True])
def test_our_own_fault_is_told_without_what_was_sent(client_of, stream, log):
    body = chat({"type": "text", "text": "private words"}, stream=stream)
    response = ask(client_of, body, backend=Stub(RuntimeError("private words")))
    assert_error(response, 500)
    assert "private" not in response.text + log.getvalue() and "RuntimeError" in log.getvalue()


def test_our_own_fault_in_the_middle_of_a_stream_is_told_and_logged_without_what_was_sent(client_of, log):
    response = ask(client_of, chat(TEXT, stream=True), backend=Stub(RuntimeError("private words"), after=2))
    last = response.text.strip().split("\n\n")[-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "internal_error"
    assert "private" not in response.text + log.getvalue() and "RuntimeError" in log.getvalue()


def test_recordings_are_never_fetched_from_a_url(client_of):
    for url in ("http://127.0.0.1:9/a.wav", "file:///etc/passwd", "s3://stetholm/a.wav", "data:audio/wav;base64,AAAA"):
        error = assert_error(ask(client_of, chat(audio(url), TEXT)), 400)
        assert error["code"] == "invalid_base64" and url not in error["message"]


def test_the_pages_parts_and_examples(client_of):
    names = ["heart-normal", "heart-murmur", "lung-normal", "lung-wheeze"]
    paths = ["main.js", "style.css", "index.html", "..%2Fhttp.py", *(f"examples/{name}.flac" for name in names)]
    script, style, *missing_and_sounds = call(client_of, *(("GET", f"/page/{path}", {}) for path in paths))
    assert script.headers["content-type"].startswith("text/javascript") and "import" in script.text
    assert style.headers["content-type"].startswith("text/css")
    for response in missing_and_sounds[:2]:
        assert_error(response, 404)
    sounds = [listen(response.content, AudioSettings()) for response in missing_and_sounds[2:]]
    assert all(sound.quality.duration_seconds == 7.0 and sound.quality.silence_fraction < 0.5 for sound in sounds)
    assert len({response.content for response in missing_and_sounds[2:]}) == 4
    [unknown] = call(client_of, ("GET", "/page/examples/none.flac", {}))
    assert_error(unknown, 404)


def test_not_ready(client_of):
    [response] = call(client_of, ("GET", "/readyz", {}), backend=Stub(overloaded("loading")))
    assert_error(response, 503)
