"""Limits, bodies that never end or are too many, the access log, and other origins."""

import asyncio
import io
import json
import logging
import socket
from collections.abc import Iterator

import httpx
import pytest

from serve.app import INGRESS_CONCURRENCY, INGRESS_QUEUE, Ingress
from serve.gate import BODIES_AT_ONCE, SLOW_AT_ONCE, Gate
from serve.keys import ApiKey, ApiKeys
from serve.visit import route_of
from tests.serve.running import listening

KEY = {"Authorization": "Bearer sk-clinic"}


@pytest.fixture
def access() -> Iterator[io.StringIO]:
    """The access log."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    logger = logging.getLogger("stetholm.serve.access")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield text
    logger.removeHandler(handler)


async def get(client_of, *paths: str, headers: dict[str, str] = KEY, **options: object) -> list[httpx.Response]:
    async with client_of(**options) as client:
        return [await client.get(path, headers=headers) for path in paths]


async def test_a_key_may_ask_so_often(client_of):
    keys = ApiKeys((ApiKey.of("clinic", "sk-clinic", "3/minute; 100/day"), ApiKey.of("lab", "sk-lab")))
    *good, refused = await get(client_of, *["/v1/models"] * 4, keys=keys)
    assert [response.status_code for response in good] == [200] * 3
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["type"]) == (429, "rate_limit_exceeded", "rate_limit_error")
    assert 0 < int(refused.headers["retry-after"]) <= 60


async def test_a_quota_is_another_error_and_other_keys_go_on(client_of):
    keys = ApiKeys((ApiKey.of("clinic", "sk-clinic", "2/day"), ApiKey.of("lab", "sk-lab")))
    async with client_of(keys=keys) as client:
        answers = [await client.get("/v1/models", headers=KEY) for _ in range(3)]
        other = await client.get("/v1/models", headers={"Authorization": "Bearer sk-lab"})
    assert [response.status_code for response in answers] == [200, 200, 429] and other.status_code == 200
    assert answers[-1].json()["error"]["code"] == "insufficient_quota"
    assert int(answers[-1].headers["retry-after"]) > 3600


async def test_the_access_log_has_ids_and_names_and_nothing_else(client_of, access):
    keys = ApiKeys((ApiKey.of("clinic", "sk-clinic"),))
    sent = {**KEY, "X-Request-ID": "abc-1"}
    [answered] = await get(client_of, "/v1/models?private=words", headers=sent, keys=keys)
    [refused] = await get(client_of, "/v1/models", headers={"X-Request-ID": "a b\x7f" + "c" * 300}, keys=keys)
    [other] = await get(client_of, "/private/words", keys=keys)
    lines = access.getvalue().splitlines()
    assert answered.status_code == 200 and refused.status_code == 401 and other.status_code == 404
    assert lines[0].startswith("access id=abc-1 key=clinic method=GET route=/v1/models status=200 bytes=0 seconds=")
    assert "key=- method=GET route=/v1/models status=401" in lines[1] and "ccc" not in lines[1]
    assert "route=other status=404" in lines[2] and other.headers["x-request-id"] in lines[2]
    assert not any(word in access.getvalue() for word in ("private", "words", "sk-"))


@pytest.mark.parametrize(
    ("path", "route"),
    [("/v1/models/a/b", "/v1/models"), ("/page/main.js", "/page"), ("/", "/"), ("/v1/modelsx", "other"), ("//", "/")],
)
def test_routes_of_log_and_metrics_are_few(path, route):
    assert route_of(path) == route


async def test_no_other_origin_may_read_unless_it_is_named(client_of):
    asked = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
    keys = ApiKeys((ApiKey.of("clinic", "sk-clinic"),))
    for origins, allowed in (((), None), (("https://app.example",), "https://app.example")):
        async with client_of(keys=keys, cors_origins=origins) as client:
            before = await client.options("/v1/analyze", headers=asked)
            models = await client.get("/v1/models", headers={**KEY, "Origin": "https://app.example"})
            other = await client.get("/v1/models", headers={**KEY, "Origin": "https://evil.example"})
        assert before.headers.get("access-control-allow-origin") == allowed
        assert models.headers.get("access-control-allow-origin") == allowed
        assert "access-control-allow-origin" not in other.headers


async def test_every_answer_has_safe_headers(client_of):
    for response in await get(client_of, "/", "/page/main.js", "/page/style.css", "/v1/models", "/nowhere", "/healthz"):
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["x-frame-options"] == "DENY" and response.headers["referrer-policy"] == "no-referrer"
    [page] = await get(client_of, "/")
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'")
    assert "http" not in policy and "unsafe" not in policy


def scope() -> dict[str, object]:
    return {"type": "http", "method": "POST", "path": "/v1/analyze", "headers": []}


async def never(*_: object) -> None:
    raise AssertionError("the application must not be reached")


def test_a_body_that_drips_for_ever_is_ended():
    sent: list[dict] = []

    async def receive() -> dict:
        await asyncio.sleep(0.01)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def send(message: dict) -> None:
        sent.append(message)

    asyncio.run(Gate(never, ApiKeys(), 10_000, body_timeout_s=0.1)(scope(), receive, send))
    assert sent[0]["status"] == 408 and (b"connection", b"close") in sent[0]["headers"]


async def test_bodies_together_are_bounded():
    """Each is within its limit, but all at once would fill the memory: the last are asked to come again."""
    statuses: list[int] = []
    release = asyncio.Event()

    async def app(_: object, receive: object, send: object) -> None:
        await release.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def one(gate: Gate) -> None:
        async def receive() -> dict:
            return {"type": "http.request", "body": b"x" * 1000, "more_body": False}

        async def send(message: dict) -> None:
            if "status" in message:
                statuses.append(message["status"])

        await gate(scope(), receive, send)

    gate = Gate(app, ApiKeys(), 1000)
    crowd = [asyncio.create_task(one(gate)) for _ in range(BODIES_AT_ONCE + 2)]
    await asyncio.sleep(0.05)
    assert statuses == [503, 503]
    release.set()
    await asyncio.gather(*crowd)
    await one(gate)
    assert statuses[2:] == [200] * (BODIES_AT_ONCE + 1)


async def answered(_: object, __: object, send: object) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body"})


def test_slow_bodies_beyond_a_number_are_asked_to_come_again_and_hold_nobody_up():
    """Over real connections: half of them send nothing of their body, half a byte."""
    head = b"POST /v1/analyze HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"
    with listening(Gate(answered, ApiKeys(), 10_000, body_timeout_s=60)) as url:
        address = httpx.URL(url)
        slow = [socket.create_connection((address.host, address.port), timeout=60) for _ in range(SLOW_AT_ONCE + 6)]
        for number, one in enumerate(slow):
            one.sendall(head + b"x" * (number % 2))
        refused: list[socket.socket] = []
        while len(refused) < 6:
            assert httpx.post(f"{url}/v1/analyze", content=b"x" * 1000).status_code == 200
            refused += [one for one in slow if one not in refused and _has_answer(one)]
        for one in refused:
            answer, _, body = one.recv(10_000).partition(b"\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 503") and b"retry-after: 2" in answer.lower()
            assert json.loads(body)["error"]["code"] == "overloaded"
        waiting = next(one for one in slow if one not in refused)
        waiting.sendall(b"x" * 1000)
        assert waiting.recv(100).startswith(b"HTTP/1.1 200")
        for one in slow:
            one.close()


def _has_answer(one: socket.socket) -> bool:
    one.setblocking(False)
    try:
        return bool(one.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False
    finally:
        one.settimeout(60)


def test_a_proxy_queues_only_so_much():
    assert 0 < Ingress.max_queued_requests == INGRESS_QUEUE < Ingress.max_ongoing_requests == INGRESS_CONCURRENCY
    assert Ingress.backpressure_config.status_code == 503 and Ingress.backpressure_config.retry_after_s
