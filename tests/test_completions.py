"""The client of OpenAI-compatible endpoints against a real HTTP server that behaves badly."""

import asyncio
import time
from email.utils import formatdate

import pytest

from stetholm import completions
from stetholm.completions import Completions, EndpointError, NotAnswered, for_all, retry_after
from stetholm.settings.endpoint import EndpointSettings
from tests.endpoint import Reply, endpoint, reply


def settings(url, **more):
    return EndpointSettings(base_url=url, model="m", **{"timeout_s": 5.0, "attempts": 3, **more})


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(completions, "FIRST_PAUSE_S", 0.005)


async def ask_one(ask, prompt):
    return (await ask([{"role": "user", "content": prompt}], max_tokens=5)).text


def run(chosen, prompts):
    found = {}
    for_all(chosen, prompts, ask_one, found.__setitem__, "evaluate.judge")
    return found


def test_all_are_answered_with_the_key_of_the_environment_and_no_more_at_once_than_asked(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "k-123456")
    with endpoint(lambda body, n: reply(body["messages"][0]["content"].upper(), wait=0.02)) as server:
        chosen = settings(server.url, concurrency=3, key_variable="JUDGE_KEY", extra={"seed": 7, "max_tokens": None})
        found = run(chosen, [f"q{i}" for i in range(12)])
    assert found == {i: f"Q{i}" for i in range(12)}
    assert server.most_at_once <= 3
    assert {seen["headers"]["authorization"] for seen in server.seen} == {"Bearer k-123456"}
    body = server.seen[0]["body"]
    assert body["model"] == "m" and body["seed"] == 7 and "max_tokens" not in body


@pytest.mark.parametrize(
    "bad",
    [
        Reply(429, b'{"error": {"message": "slow down"}}', {"Retry-After": "0"}),
        Reply(503, b"busy"),
        Reply(200, b"<html>a proxy</html>", {"Content-Type": "text/html"}),
        Reply(200, b'{"choices": [{"mess'),
        Reply(200, b"[" * 100_000),
        Reply(200, b'{"choices": []}'),
        Reply(None),
    ],
)
def test_what_may_pass_is_tried_again(bad):
    with endpoint(lambda body, n: bad if n < 2 else reply("good")) as server:
        assert run(settings(server.url), ["q"]) == {0: "good"}
    assert len(server.seen) == 3


def test_a_timeout_is_tried_again_and_one_prompt_without_an_answer_does_not_end_the_others():
    with endpoint(lambda body, n: reply("x", wait=3.0 if "slow" in str(body) else 0.0)) as server:
        found = run(settings(server.url, timeout_s=0.3, attempts=2, concurrency=1), ["a", "slow", "b"])
    assert found[0] == found[2] == "x"
    assert isinstance(found[1], NotAnswered) and "no answer within 0.3 s (2 attempts)" in str(found[1])
    assert not found[1].refused


def test_a_pause_that_the_endpoint_asks_for_holds_for_all():
    times = []

    def answer(body, n):
        times.append(time.monotonic())
        return Reply(429, b"", {"Retry-After": "1"}) if n == 0 else reply("x")

    with endpoint(answer) as server:
        run(settings(server.url, concurrency=1), ["a", "b"])
    assert times[1] - times[0] >= 0.9


def test_requests_keep_to_the_rate():
    with endpoint(lambda body, n: reply("x")) as server:
        started = time.monotonic()
        run(settings(server.url, requests_per_minute=600.0), [str(i) for i in range(6)])
    assert time.monotonic() - started >= 0.45  # five pauses of a tenth of a second


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (Reply(401, b'{"error": {"message": "bad key"}}'), "HTTP 401 bad key: set the environment variable OPENAI_API"),
        (Reply(404, b'{"error": "no such model"}'), r"HTTP 404 no such model: see that base_url and model \(m\)"),
        (Reply(302, b"", {"Location": "https://elsewhere.invalid/"}), "HTTP 302"),
        (Reply(429, b"quota", {"Retry-After": "86400"}), "wait 86400 s: start again later"),
        (Reply(500, b"broken"), r"HTTP 500 broken \(3 attempts\)"),
        (Reply(200, b"<!doctype html>", {"Content-Type": "text/html"}), "HTML where JSON should be"),
    ],
)
def test_an_endpoint_that_is_no_use_is_given_up_in_one_line(bad, says):
    with endpoint(lambda body, n: bad) as server, pytest.raises(EndpointError, match=says) as caught:
        run(settings(server.url), [str(i) for i in range(50)])
    assert "evaluate.judge: http://127.0.0.1" in str(caught.value) and "\n" not in str(caught.value)
    assert len(server.seen) <= 3 * (8 + 3)


def test_an_endpoint_that_is_not_there_is_named():
    with endpoint(lambda body, n: reply("x")) as server:
        gone = server.url
    with pytest.raises(EndpointError, match="no connection"):
        run(settings(gone), ["a", "b", "c"])


def test_a_refused_prompt_or_an_empty_answer_concerns_that_prompt_alone():
    def answer(body, n):
        text = body["messages"][0]["content"]
        return {"bad": Reply(400, b'{"error": {"message": "too long"}}'), "empty": reply("")}.get(text, reply("x"))

    with endpoint(answer) as server:
        found = run(settings(server.url), ["a", "bad", "empty"])
    assert found[0] == "x" and "too long" in str(found[1]) and "empty answer" in str(found[2])
    assert found[1].refused and found[2].refused


def test_what_was_done_before_the_endpoint_failed_has_been_reported():
    found = {}
    with endpoint(lambda body, n: reply("x") if n < 4 else Reply(401, b"")) as server, pytest.raises(EndpointError):
        for_all(settings(server.url, concurrency=1), list("abcdefgh"), ask_one, found.__setitem__)
    assert found == dict.fromkeys(range(4), "x")


def test_an_endless_reply_is_cut(monkeypatch):
    monkeypatch.setattr(completions, "MAX_BYTES", 1000)
    with endpoint(lambda body, n: reply("y" * 5000)) as server:
        found = run(settings(server.url, attempts=1), ["a"])
    assert "more than 1000 bytes" in str(found[0])


def test_retry_after_is_seconds_or_a_date():
    assert retry_after("1.5") == 1.5 and retry_after(None) is None and retry_after("soon") is None
    assert 50 < retry_after(formatdate(time.time() + 60, usegmt=True)) <= 60


def test_an_endpoint_without_model_is_refused():
    with pytest.raises(EndpointError, match="needs base_url"):
        Completions(EndpointSettings(model="m"))


def test_the_account_adds_up():
    async def two(url):
        async with Completions(settings(url)) as ask:
            await asyncio.gather(*(ask([{"role": "user", "content": "q"}]) for _ in range(2)))
            return ask.requests, ask.prompt_tokens, ask.completion_tokens

    with endpoint(lambda body, n: reply("x")) as server:
        assert asyncio.run(two(server.url)) == (2, 6, 4)
