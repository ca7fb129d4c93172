"""The writer behind an endpoint, against a real HTTP server that behaves well and badly."""

import asyncio
import json
import math
import threading

import pytest

from stetholm import completions
from stetholm.corpus.synthesis import rounds as rounds_module
from stetholm.corpus.synthesis.endpoint_writer import EndpointWriter, TokenPace
from stetholm.corpus.synthesis.prompts import Prompts
from stetholm.corpus.synthesis.rounds import Rounds
from stetholm.corpus.synthesis.store import AnswerStore
from stetholm.errors import UserError
from stetholm.settings import SynthesizeSettings
from tests.corpus.synthesis.known import all_pairs, answer, good_answers, synthetic
from tests.endpoint import Reply, endpoint, reply

PLAN = all_pairs(synthetic(8))[:24]
GOOD = good_answers(PLAN)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(completions, "FIRST_PAUSE_S", 0.005)


def good(body, number):
    return reply(GOOD[body["messages"][1]["content"]])


def rounds(server, **changes):
    usual = {"writer": "openai", "base_url": server.url, "model": "m", "timeout_s": 5, "attempts": 3}
    chosen = SynthesizeSettings(**{**usual, **changes})
    return Rounds(PLAN, EndpointWriter(chosen), Prompts.load(), AnswerStore(), chosen)


def run(behaviour, **changes):
    with endpoint(behaviour) as server:
        made = rounds(server, **changes)
        made.run()
    return made, server


def test_a_good_endpoint_is_asked_once_a_pair_with_the_settings():
    made, server = run(good, temperature=0.3, max_new_tokens=77, concurrency=3)
    assert all(case.draft for case in made.cases) and len(server.seen) == len(PLAN)
    body = server.seen[0]["body"]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("m", 0.3, 77)
    assert 1 <= server.most_at_once <= 3


def test_an_endpoint_that_tells_no_usage_reaches_max_cost_all_the_same():
    def silent(body, number):
        told = json.loads(good(body, number).data)
        return Reply(200, json.dumps({**told, "usage": None}).encode(), {"Content-Type": "application/json"})

    made, _ = run(silent, price_in=1.0, price_out=1.0)
    (first, *_) = [case for case in made.cases if case.draft]
    assert first.answers[0].tokens_in > 100 and first.answers[0].tokens_out == math.ceil(
        len(first.answers[0].text) / 3.5
    )
    with pytest.raises(UserError, match=r"synthesize.max_cost = 0.001 is spent"):
        run(silent, price_in=1.0, price_out=1.0, max_cost=0.001)


@pytest.mark.parametrize(
    "bad",
    [
        Reply(429, b'{"error": {"message": "slow down"}}', {"Retry-After": "0"}),
        Reply(500, b"broken"),
        Reply(200, b"<html>a proxy</html>", {"Content-Type": "text/html"}),
        Reply(200, b'{"choices": [{"mess'),
    ],
    ids=["429", "500", "html", "half a reply"],
)
def test_what_may_pass_is_waited_for(bad):
    made, server = run(lambda body, n: bad if n in (0, 7, 8) else good(body, n), concurrency=2)
    assert all(case.draft for case in made.cases) and len(server.seen) == len(PLAN) + 3


def test_a_slow_endpoint_times_out_and_the_pair_waits_for_the_next_start():
    texts = [Prompts.load().messages(planned)[1]["content"] for planned in PLAN]
    slow = next(number for number in range(5, len(PLAN)) if texts.count(texts[number]) == 1)

    def behaviour(body, n):
        return reply("late", wait=4.0) if body["messages"][1]["content"] == texts[slow] else good(body, n)

    made, _ = run(behaviour, timeout_s=1.5, attempts=1)
    assert [number for number, case in enumerate(made.cases) if not case.draft] == [slow]
    assert "no answer within 1.5 s" in made.cases[slow].unanswered


def test_an_answer_that_is_not_valid_is_asked_for_again_with_the_reason():
    def behaviour(body, n):
        told = body["messages"][-1]["content"]
        return good(body, n) if "not one JSON object" in told else reply("Sure! Here is a question.")

    made, server = run(behaviour, retries=1)
    assert all(case.draft and case.rules == ["form"] for case in made.cases) and len(server.seen) == 2 * len(PLAN)
    assert server.seen[-1]["body"]["messages"][2] == {"role": "assistant", "content": "Sure! Here is a question."}


def test_what_stays_wrong_is_rejected_with_the_last_reason():
    made, server = run(lambda body, n: reply(answer("What is heard here?", "Snoring.")), retries=2)
    assert not any(case.draft for case in made.cases) and len(server.seen) == 3 * len(PLAN)
    assert all(len(case.turns) == 3 and case.turns[-1].reason for case in made.cases)


def test_a_writer_that_cannot_do_it_is_not_paid_for_ever(monkeypatch):
    monkeypatch.setattr(rounds_module, "HOPELESS", 10)
    with endpoint(lambda body, n: reply("Sure!")) as server:
        made = rounds(server, concurrency=2)
        with pytest.raises(UserError, match=r"none of 1\d answers of m is valid .* is not one JSON object"):
            made.run()
        assert len(server.seen) <= 13 and len(made._store) >= len(server.seen) - 2


def test_a_refused_prompt_is_not_asked_again():
    first = Prompts.load().messages(PLAN[3])[1]["content"]

    def behaviour(body, n):
        same = body["messages"][1]["content"] == first
        return Reply(400, b'{"error": {"message": "content filter"}}') if same else good(body, n)

    made, server = run(behaviour)
    assert "content filter" in made.cases[3].refused and made.cases[3].draft is None
    assert sum(case.draft is not None for case in made.cases) >= len(PLAN) - 4
    assert len(server.seen) == len(PLAN)
    assert not made.open_questions()


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (Reply(401, b'{"error": {"message": "bad key"}}'), "HTTP 401 bad key: set the environment variable OPENAI_API"),
        (Reply(404, b'{"error": {"message": "no model m"}}'), "no model m: see that base_url and model"),
        (Reply(400, b'{"error": {"message": "max_tokens is unknown"}}'), "first 3 questions: HTTP 400 max_tokens is"),
        (Reply(200, b"<html></html>", {"Content-Type": "text/html"}), "HTML where JSON should be"),
        (Reply(503, b"down"), "HTTP 503 down"),
    ],
)
def test_an_endpoint_that_is_no_use_is_refused_before_the_rest_is_asked(bad, says):
    with endpoint(lambda body, n: bad) as server, pytest.raises(UserError, match=says):
        rounds(server, concurrency=8).run()
    assert len(server.seen) <= 9, "three questions one by one, each tried three times at most"


def test_a_key_that_is_refused_later_ends_it_with_all_answers_kept():
    with endpoint(lambda body, n: good(body, n) if n < 10 else Reply(401, b"")) as server:
        made = rounds(server, concurrency=4)
        with pytest.raises(UserError, match="HTTP 401"):
            made.run()
        assert 10 - 3 <= len(made._store) <= 10, "those on their way are given up"


def test_the_job_stops_when_the_money_is_spent():
    with endpoint(good) as server:  # the server counts 3 tokens in and 2 out a question
        made = rounds(server, concurrency=2, price_in=1e6, price_out=1e6, max_cost=30.0)
        with pytest.raises(UserError, match="max_cost = 30 is spent"):
            made.run()
        assert 6 <= len(server.seen) <= 8 and len(made._store) >= len(server.seen) - 2


def test_no_answer_is_waited_for_before_it_is_safe():
    """While an answer is being stored, its place asks nothing more."""
    stored, unsafe, lock = set(), [], threading.Lock()

    def behaviour(body, n):
        with lock:
            unsafe.append(n - len(stored))
        return good(body, n)

    with endpoint(behaviour) as server:
        made = rounds(server, concurrency=3)
        keep = made._store.keep

        def slowly(answers):
            keep(answers)
            with lock:
                stored.update(answer.key for answer in answers)

        made._store.keep = slowly
        made.run()
    assert len(stored) == len(PLAN) and max(unsafe) < 3


def test_tokens_are_spread_over_the_minute():
    async def times():
        pace, loop, taken = TokenPace(60_000), asyncio.get_running_loop(), []
        started = loop.time()
        for _ in range(4):
            await pace.wait(100)
            taken.append(loop.time() - started)
        await TokenPace(None).wait(10**9)
        return taken

    taken = asyncio.run(times())
    assert all(one >= 0.1 * number - 0.01 for number, one in enumerate(taken))


def test_an_endpoint_needs_an_address_and_a_model():
    with pytest.raises(UserError, match="synthesize: an endpoint needs base_url"):
        EndpointWriter(SynthesizeSettings(writer="openai", model="m"))
