"""The whole application on Ray Serve, asked by the official client."""

import asyncio
import base64
import socket
import time
from collections.abc import Iterator

import httpx
import openai
import pytest
from ray import serve

from serve import deploy as deployment
from stetholm.errors import UserError
from stetholm.settings import Settings, load_settings
from stetholm.storage import Storage
from tests.serving.sounds import wav

QUESTION = {"type": "text", "text": "Is this heart sound normal or abnormal?"}
SOUND = {"type": "input_audio", "input_audio": {"data": base64.b64encode(wav()).decode(), "format": "wav"}}
MESSAGES = [{"role": "user", "content": [SOUND, SOUND, QUESTION]}]
LONG = 1500


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def settings_for(port: int, *more: str) -> Settings:
    return load_settings(None, [f"serve.port={port}", "run.name=serve-test", *more], {})


@pytest.fixture(scope="module")
def endpoint(ray_cluster: None, storage: Storage, tiny_checkpoint: str) -> Iterator[str]:
    """Base URL of the tiny checkpoint's endpoint: one replica, two requests at a time, little patience."""
    tight = ["serve.max_replicas=1", "serve.target_ongoing_requests=1", "serve.max_queued_requests=1"]
    settings = settings_for(free_port(), f"serve.model={tiny_checkpoint}", f"serve.max_new_tokens={LONG}", *tight)
    yield deployment.deploy(settings, storage)
    deployment.shutdown()


@pytest.fixture
def client(endpoint: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{endpoint}/v1", api_key="unused", max_retries=0, timeout=120)


def test_the_official_client_asks(client):
    answer = client.chat.completions.create(
        model="stetholm", messages=MESSAGES, max_tokens=8, temperature=0.7, top_p=0.9, n=2, seed=1, stop=["\n\n\n"]
    )
    assert len(answer.choices) == 2 and answer.usage.completion_tokens == 16
    assert answer.choices[0].finish_reason == "length" and answer.notice
    assert answer.model == "stetholm/serve-test/sft"


def test_the_official_client_streams(client):
    body = {"model": "stetholm", "messages": MESSAGES, "max_completion_tokens": 20}
    whole = client.chat.completions.create(**body)
    stream = client.chat.completions.create(**body, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage and chunks[-2].choices[0].finish_reason == "length"


def test_the_official_client_lists_models_and_understands_errors(client):
    assert "stetholm" in [model.id for model in client.models.list()]
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-4o", messages=MESSAGES)
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.UnprocessableEntityError):
        client.chat.completions.create(model="stetholm", messages=MESSAGES, temperature=-1)


def test_a_prompt_beyond_the_context_is_400_through_the_replica(client):
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(
                model="stetholm", messages=[{"role": "user", "content": "é" * 4000}], stream=stream
            )
        assert caught.value.code == "context_length_exceeded" and "Traceback" not in str(caught.value)


def test_analyze_over_the_wire(endpoint):
    response = httpx.post(
        f"{endpoint}/v1/analyze",
        files=[("audio", wav()), ("audio", wav(format="FLAC"))],
        data={"task": "Comparison"},
        timeout=120,
    )
    result = response.json()
    assert response.status_code == 200 and len(result["audio"]) == 2
    assert result["lineage"]["parent"].endswith("align/checkpoint") and response.headers["x-request-id"]


def test_non_audio_and_large_bodies_over_the_wire(endpoint):
    bad = httpx.post(f"{endpoint}/v1/analyze", files=[("audio", b"GIF89a" * 9)], data={"task": "Report"}, timeout=60)
    large = httpx.post(f"{endpoint}/v1/chat/completions", content=b"x" * (33 * 2**20), timeout=60)
    assert (bad.status_code, large.status_code) == (415, 413)
    assert bad.json()["error"]["code"] == "unusable_audio" and large.json()["error"]["code"] == "request_too_large"


def test_a_client_that_leaves_stops_the_generation(endpoint):
    replica = serve.get_deployment_handle("StethoLM", deployment.APP_NAME)

    def stats() -> dict[str, int]:
        return replica.stats.remote().result(timeout_s=60)

    before = stats()["deltas"]
    body = {"model": "stetholm", "messages": MESSAGES, "stream": True, "max_tokens": LONG}
    with httpx.stream("POST", f"{endpoint}/v1/chat/completions", json=body, timeout=120) as response:
        lines = response.iter_lines()
        while not next(lines).startswith("data: "):
            pass

    while stats()["active"]:
        time.sleep(0.05)
    assert 0 < stats()["deltas"] - before < LONG / 2


def test_a_crowd_gets_answers_or_503_with_retry_after(endpoint):
    body = {"model": "stetholm", "messages": MESSAGES, "max_tokens": 300}

    async def crowd() -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=300) as client:
            return await asyncio.gather(*(client.post(f"{endpoint}/v1/chat/completions", json=body) for _ in range(16)))

    responses = asyncio.run(crowd())
    refused = [response for response in responses if response.status_code != 200]
    assert {response.status_code for response in refused} == {503} and len(refused) < len(responses)
    assert all(response.headers["retry-after"].isdigit() for response in refused)
    assert {response.json()["error"]["code"] for response in refused} == {"overloaded"}
    assert httpx.get(f"{endpoint}/readyz", timeout=60).status_code == 200


def test_the_endpoint_is_updated_in_place(endpoint, storage, tiny_checkpoint):
    settings = settings_for(int(endpoint.rsplit(":", 1)[1]), f"serve.model={tiny_checkpoint}", "serve.max_new_tokens=9")
    assert deployment.deploy(settings, storage) == endpoint
    body = {"model": "stetholm", "messages": MESSAGES}
    answer = httpx.post(f"{endpoint}/v1/chat/completions", json=body, timeout=60).json()
    assert answer["usage"]["completion_tokens"] == 9


def test_another_port_of_a_running_serve_is_refused(endpoint, storage, tiny_checkpoint):
    with pytest.raises(UserError, match="already runs"):
        deployment.deploy(settings_for(free_port(), f"serve.model={tiny_checkpoint}"), storage)
