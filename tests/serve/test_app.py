"""The whole application on Ray Serve, asked by the official client."""

import asyncio
import base64
import json
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from ray import serve

from serve import deploy as deployment
from serve.keys import ApiKey
from stetholm.errors import UserError
from stetholm.settings import Settings, load_settings
from stetholm.storage import Storage
from tests.serving.sounds import wav

ROOT = Path(__file__).resolve().parents[2]
QUESTION = {"type": "text", "text": "Is this heart sound normal or abnormal?"}
SOUND = {"type": "input_audio", "input_audio": {"data": base64.b64encode(wav()).decode(), "format": "wav"}}
MESSAGES = [{"role": "user", "content": [SOUND, SOUND, QUESTION]}]
LONG = 1500


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def settings_for(port: int, *more: str) -> Settings:
    mine = [f"serve.port={port}", "run.name=serve-test", "serve.gate=if-there"]
    return load_settings(None, [*mine, *more], {})


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


def test_the_official_client_samples_the_same_with_the_same_seed(client):
    body = {"model": "stetholm", "messages": MESSAGES, "max_tokens": 12, "temperature": 1.0, "n": 2}
    first, again, other = (client.chat.completions.create(**body, seed=seed) for seed in (7, 7, 8))
    texts = [[choice.message.content for choice in answer.choices] for answer in (first, again, other)]
    assert texts[0] == texts[1] != texts[2] and texts[0][0] != texts[0][1]
    stop = texts[0][0][3:5]
    cut = client.chat.completions.create(**body, seed=7, stop=stop).choices[0]
    assert (cut.message.content, cut.finish_reason) == (texts[0][0].split(stop)[0], "stop")


async def test_the_official_asynchronous_client(endpoint):
    async with openai.AsyncOpenAI(base_url=f"{endpoint}/v1", api_key="unused", max_retries=0) as client:
        stream = await client.chat.completions.create(model="stetholm", messages=MESSAGES, max_tokens=6, stream=True)
        chunks = [chunk async for chunk in stream]
        raw = await client.chat.completions.with_raw_response.create(model="stetholm", messages=MESSAGES, max_tokens=1)
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[-1].choices[0].finish_reason == "length"
    assert raw.headers["x-request-id"] and raw.parse().usage.total_tokens > 1


def test_the_official_client_lists_models_and_understands_errors(client):
    assert "stetholm" in [model.id for model in client.models.list()]
    assert client.models.retrieve("stetholm/serve-test/sft").id == "stetholm/serve-test/sft"
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
    assert [len(one["seconds"]) for one in result["evidence"]] == [2, 2]


def test_non_audio_and_large_bodies_over_the_wire(endpoint):
    bad = httpx.post(f"{endpoint}/v1/analyze", files=[("audio", b"GIF89a" * 9)], data={"task": "Report"}, timeout=60)
    large = httpx.post(f"{endpoint}/v1/chat/completions", content=b"x" * (33 * 2**20), timeout=60)
    assert (bad.status_code, large.status_code) == (415, 413)
    assert bad.json()["error"]["code"] == "unusable_audio" and large.json()["error"]["code"] == "request_too_large"


def stats() -> dict[str, int]:
    """Of the one replica."""
    replica = serve.get_deployment_handle("StethoLM", deployment.APP_NAME)
    found: dict[str, int] = replica.stats.remote().result(timeout_s=60)
    return found


async def until_active(count: int) -> None:
    async with asyncio.timeout(60):
        while (await asyncio.to_thread(stats))["active"] != count:
            await asyncio.sleep(0.02)


def test_a_client_that_leaves_stops_the_generation(endpoint):
    before = stats()["deltas"]
    body = {"model": "stetholm", "messages": MESSAGES, "stream": True, "max_tokens": LONG}
    with httpx.stream("POST", f"{endpoint}/v1/chat/completions", json=body, timeout=120) as response:
        lines = response.iter_lines()
        while not next(lines).startswith("data: "):
            pass

    asyncio.run(until_active(0))
    assert 0 < stats()["deltas"] - before < LONG / 2


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("chat/completions", {"json": {"model": "stetholm", "messages": MESSAGES, "max_tokens": LONG}}),
        ("analyze", {"files": [("audio", wav())], "data": {"task": "Report"}}),
    ],
)
def test_a_client_that_leaves_before_its_answer_frees_its_place(endpoint, path, body):
    before = stats()["deltas"]

    async def leave() -> None:
        async with httpx.AsyncClient(timeout=120) as client:
            asking = asyncio.create_task(client.post(f"{endpoint}/v1/{path}", **body))
            await until_active(1)
            asking.cancel()
        await until_active(0)

    asyncio.run(leave())
    assert stats()["deltas"] - before < LONG / 2


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


KEY, FREE = "sk-stetholm-of-the-clinic", "sk-stetholm-of-the-lab"


@pytest.fixture(scope="module")
def limited(endpoint: str, storage: Storage, tiny_checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same endpoint updated in place, with a key that may ask five times a minute and one without limits."""
    path = tmp_path_factory.mktemp("keys") / "keys.txt"
    path.write_text(f"{ApiKey.of('clinic', KEY, '5/minute')}\n{ApiKey.of('lab', FREE)}\n")
    more = [f"serve.model={tiny_checkpoint}", "serve.max_new_tokens=9", f"serve.api_keys_file={path}"]
    return deployment.deploy(settings_for(int(endpoint.rsplit(":", 1)[1]), *more), storage)


def test_the_endpoint_is_updated_in_place(endpoint, limited):
    body = {"model": "stetholm", "messages": MESSAGES}
    headers = {"Authorization": f"Bearer {FREE}"}
    answer = httpx.post(f"{limited}/v1/chat/completions", json=body, headers=headers, timeout=60).json()
    assert limited == endpoint and answer["usage"]["completion_tokens"] == 9


def test_limits_hold_over_all_ingress_replicas(limited):
    headers = {"Authorization": f"Bearer {KEY}"}
    statuses = [httpx.get(f"{limited}/v1/models", headers=headers, timeout=60).status_code for _ in range(12)]
    assert statuses == [200] * 5 + [429] * 7
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{limited}/v1", api_key="sk-other", max_retries=0).models.list()
    assert httpx.get(f"{limited}/", timeout=60).status_code == 200


def test_requests_pass_while_the_meter_is_away_and_are_counted_again(limited):
    headers = {"Authorization": f"Bearer {KEY}"}
    [meter] = [one for one in ray.util.list_named_actors(all_namespaces=True) if "#Meter#" in one["name"]]
    ray.kill(ray.get_actor(meter["name"], meter["namespace"]))
    statuses = [httpx.get(f"{limited}/v1/models", headers=headers, timeout=60).status_code]
    while statuses[-1] == 200 and len(statuses) < 100:
        statuses.append(httpx.get(f"{limited}/v1/models", headers=headers, timeout=60).status_code)
    assert set(statuses[:-1]) == {200} and statuses[-1] == 429


def test_logs_hold_ids_and_no_key_text_or_sound(limited):
    secret = "sk-secret-of-a-stranger"
    words = "secret words about a patient"
    for body in ({"content": words}, {"role": "user", "content": [SOUND, {"type": "text", "text": words}]}):
        for key in (KEY, secret):
            headers = {"Authorization": f"Bearer {key}", "X-Request-ID": "id-of-mine"}
            chat = {"model": "stetholm", "messages": [body], "surprise": words}
            httpx.post(f"{limited}/v1/chat/completions", json=chat, headers=headers, timeout=60)
    odd = httpx.get(f"{limited}/v1/models", headers={"X-Request-ID": words, "X-Session-ID": words}, timeout=60)
    [id] = odd.headers.get_list("x-request-id")
    folder = Path(ray._private.worker._global_node.get_session_dir_path()) / "logs"
    logs = {path: path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file()}
    assert any("access id=id-of-mine key=clinic method=POST" in text for text in logs.values())
    assert odd.status_code == 401 and any(f"access id={id} key=- method=GET" in text for text in logs.values())
    sound = SOUND["input_audio"]["data"]  # type: ignore[index]
    for hidden in (KEY, secret, words, sound[100:140], QUESTION["text"]):
        assert [path for path, text in logs.items() if hidden in text] == []


def samples() -> list[Sample]:
    """What Ray's metrics port tells Prometheus."""
    node = ray.nodes()[0]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    families = text_string_to_metric_families(httpx.get(url, timeout=60).text)
    return [sample for family in families for sample in family.samples]


def told(found: list[Sample], name: str, **labels: str) -> float:
    return sum(one.value for one in found if one.name == name and labels.items() <= one.labels.items())


def test_the_dashboard_names_only_metrics_that_exist(limited):
    """As Ray's metrics port gives them, after the requests of this module: refused ones and streams among them."""
    dashboard = json.loads((ROOT / "deploy" / "grafana" / "serving.json").read_text())
    shown = " ".join(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
    wanted = set(re.findall(r"ray_[a-z_]+", shown))
    assert len(wanted) > 10
    for _ in range(60):
        found = samples()
        missing = wanted - {sample.name for sample in found}
        refused = told(found, "ray_stetholm_limit_refusals_total", key="clinic")
        if not missing and refused >= 7:
            break
        time.sleep(1)  # Ray collects every few seconds
    assert not missing
    assert refused >= 7 and told(found, "ray_stetholm_http_requests_total", status="429") == refused
    assert told(found, "ray_stetholm_tokens_total", kind="completion") >= 9
    assert told(found, "ray_stetholm_first_token_seconds_count") >= 1 <= told(found, "ray_stetholm_audio_seconds_total")


def test_another_port_of_a_running_serve_is_refused(endpoint, storage, tiny_checkpoint):
    with pytest.raises(UserError, match="already runs"):
        deployment.deploy(settings_for(free_port(), f"serve.model={tiny_checkpoint}"), storage)
