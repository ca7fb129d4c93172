"""What stands before Serve's HTTP server, with Serve's own middleware behind it, over real connections."""

from collections.abc import Iterator

import httpx
import pytest
from ray.serve._private.http_util import _apply_middlewares
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.types import Receive, Scope, Send

from serve import edge
from tests.serve.running import listening

WORDS = "Mrs Miller, born 1942"
OWN = {"X-Content-Type-Options": "nosniff"}


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Below /headers/ shows what came, /serve/ answers as Serve does, /own/ as our application, /gone/ not at all."""
    *_, kind, last = scope["path"].split("/")
    if kind == "headers":
        response = JSONResponse([[name.decode(), value.decode("latin-1")] for name, value in scope["headers"]])
    elif kind == "gone":
        return
    elif kind == "own":
        response = PlainTextResponse("ours", int(last), OWN)
    else:
        response = PlainTextResponse("Request dropped due to backpressure", int(last) if last.isdigit() else 503)
    await response(scope, receive, send)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with listening(_apply_middlewares(app, edge.middlewares())) as url:
        yield url


def test_it_is_what_serve_is_told_to_take():
    import os

    from ray._common.utils import import_attr

    named = os.environ["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"]
    assert named == edge.IMPORT_PATH and import_attr(named) is edge.middlewares


@pytest.mark.parametrize(
    "given", [[WORDS], ["x" * 129], [""], ["a\tb"], [], ["abc-1"], ["abc-1", WORDS], [WORDS, "abc-1"]]
)
def test_an_id_is_harmless_and_the_same_for_everybody(url, given):
    response = httpx.get(f"{url}/headers/", headers=[("X-Request-ID", one) for one in given])
    [seen] = [value for name, value in response.json() if name == "x-request-id"]
    assert response.headers.get_list("x-request-id") == [seen]
    assert (seen == "abc-1") == (given[:1] == ["abc-1"]) and WORDS not in seen and 0 < len(seen) <= 128


def test_a_client_does_not_steer_serve(url):
    steering = ["serve_multiplexed_model_id", "Serve-Multiplexed-Model-Id", "X-Session-ID", "x-request-timeout-seconds"]
    steering += ["x-request-disconnect-disabled"]
    response = httpx.get(f"{url}/headers/", headers=[*((name, WORDS) for name in steering), ("X-Other", "1")])
    assert WORDS not in response.text and ["x-other", "1"] in response.json()


@pytest.mark.parametrize(
    ("status", "told", "code"),
    [
        (503, 503, "overloaded"),
        (500, 503, "unavailable"),
        (502, 503, "unavailable"),
        (408, 503, "timeout"),
        (404, 404, None),
    ],
)
def test_what_serve_refuses_by_itself_is_openais_error(url, status, told, code):
    response = httpx.get(f"{url}/serve/{status}", headers={"X-Request-ID": "abc-1"})
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (told, code) and set(error) == {"message", "type", "param", "code"}
    assert response.headers.get("retry-after", "none").isdigit() == (told == 503)
    assert response.headers.get_list("x-request-id") == ["abc-1"]


def test_where_serve_does_not_answer_at_all_we_do(url):
    """As it does when an ingress replica is killed."""
    response = httpx.get(f"{url}/gone/", headers={"X-Request-ID": "abc-1"})
    assert (response.status_code, response.json()["error"]["code"]) == (503, "unavailable")
    assert response.headers["retry-after"] and response.headers["x-request-id"] == "abc-1"


@pytest.mark.parametrize("status", [200, 404, 408, 500, 503])
def test_our_own_answers_and_serves_own_routes_pass(url, status):
    ours = httpx.get(f"{url}/own/{status}")
    assert (ours.status_code, ours.text) == (status, "ours")
    health = httpx.get(f"{url}/-/healthz")
    assert (health.status_code, health.text) == (503, "Request dropped due to backpressure")
