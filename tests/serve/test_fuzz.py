"""A thousand refused requests against the application in this process: 4xx each, and then a good one is answered."""

import asyncio
import json

import httpx
from hypothesis import HealthCheck, given, settings

from tests.serve import attacks
from tests.serve.attacks import ATTACKS, Attack

REQUESTS = 1500
"""Some are good by chance, or become so: those do not count."""
_loop = asyncio.new_event_loop()


async def send(client: httpx.AsyncClient, attack: Attack) -> tuple[int, str | None]:
    response = await client.request(attack.method, attack.path, content=attack.content, headers=attack.headers)
    return response.status_code, attacks.verdict(attack, response.status_code, response.text)


async def answers_a_good_request(client: httpx.AsyncClient) -> bool:
    response = await client.post(attacks.CHAT, json=attacks.good_chat())
    return response.status_code == 200 and bool(response.json()["choices"])


def test_a_thousand_malformed_requests(client_of):
    refused = 0
    maker = client_of(max_new_tokens=3)
    client = _loop.run_until_complete(maker.__aenter__())

    @settings(max_examples=REQUESTS, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(ATTACKS)
    def attacked(attack: Attack) -> None:
        nonlocal refused
        status, wrong = _loop.run_until_complete(send(client, attack))
        assert wrong is None
        refused += 400 <= status < 500

    try:
        attacked()
        print(f"\n{refused} of {REQUESTS} were refused")
        assert refused >= 1000
        assert _loop.run_until_complete(answers_a_good_request(client))
    finally:
        _loop.run_until_complete(maker.__aexit__(None, None, None))


async def test_bombs_and_what_chance_would_not_find(client_of):
    async with client_of(max_new_tokens=3) as client:
        for attack in attacks.by_hand():
            response = await client.request(attack.method, attack.path, content=attack.content, headers=attack.headers)
            assert 400 <= response.status_code < 500, repr(attack)
            assert attacks.verdict(attack, response.status_code, response.text) is None
        assert await answers_a_good_request(client)


async def test_special_tokens_in_a_question_are_plain_text(client_of):
    """They are answered like any other words, about the one recording there is."""
    async with client_of(max_new_tokens=3) as client:
        for attack in attacks.injected():
            response = await client.post(attack.path, content=attack.content, headers=attack.headers)
            words = json.loads(attack.content)["messages"][0]["content"][1]["text"]
            assert response.status_code == 200, response.text
            # A token a byte: nothing of the text has become the placeholder's single token.
            assert response.json()["usage"]["prompt_tokens"] > len(words.encode())
