"""A thousand malformed requests over the wire, against Ray Serve; and clients that send as slowly as they can."""

import socket
import time
from collections.abc import Iterator

import httpx
import pytest
from hypothesis import HealthCheck, given, settings

from serve import deploy as deployment
from serve.gate import BODY_TIMEOUT_S
from stetholm.storage import Storage
from tests.serve import attacks
from tests.serve.attacks import ATTACKS, Attack
from tests.serve.test_app import free_port, settings_for

pytestmark = pytest.mark.long
SLOW = 30
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture(scope="module")
def endpoint(ray_cluster: None, storage: Storage, tiny_checkpoint: str) -> Iterator[str]:
    chosen = settings_for(free_port(), f"serve.model={tiny_checkpoint}", "serve.max_new_tokens=4")
    yield deployment.deploy(chosen, storage)
    deployment.shutdown()


@pytest.fixture(scope="module")
def client(endpoint: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=endpoint, timeout=120) as client:
        yield client


def send(client: httpx.Client, attack: Attack) -> httpx.Response:
    return client.request(attack.method, attack.path, content=attack.content, headers=attack.headers)


def answers_a_good_request(client: httpx.Client) -> bool:
    response = client.post(attacks.CHAT, json=attacks.good_chat())
    return response.status_code == 200 and bool(response.json()["choices"])


def test_a_thousand_malformed_requests_over_the_wire(client):
    statuses: dict[int, int] = {}

    @settings(max_examples=1500, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(ATTACKS)
    def attacked(attack: Attack) -> None:
        response = send(client, attack)
        statuses[response.status_code] = statuses.get(response.status_code, 0) + 1
        assert attacks.verdict(attack, response.status_code, response.text) is None

    attacked()
    print(f"\nstatuses: {dict(sorted(statuses.items()))}")
    assert sum(count for status, count in statuses.items() if status >= 400) >= 1000
    assert answers_a_good_request(client)


def test_bombs_over_the_wire(client):
    for attack in attacks.by_hand():
        response = send(client, attack)
        assert 400 <= response.status_code < 500, repr(attack)
        assert attacks.verdict(attack, response.status_code, response.text) is None
    assert answers_a_good_request(client)


def test_slow_clients_hold_nobody_up(endpoint, client):
    """Half of them drip headers, half bodies: others are answered meanwhile, and the bodies end with 408."""
    address = httpx.URL(endpoint)
    slow = [socket.create_connection((address.host, address.port), timeout=120) for _ in range(SLOW)]
    for number, one in enumerate(slow):
        one.sendall(HEAD if number % 2 else HEAD + b"Content-Type: application/json\r\nContent-Length: 100000\r\n\r\n")
    until = time.monotonic() + BODY_TIMEOUT_S + 5
    while time.monotonic() < until:
        for number, one in enumerate(slow):
            try:
                one.sendall(b"X-%d: 1\r\n" % number if number % 2 else b" ")
            except OSError:
                assert number % 2 == 0  # its time is over
        assert answers_a_good_request(client)
        time.sleep(1)
    for one in slow[::2]:
        assert one.recv(100).startswith(b"HTTP/1.1 408")
    for one in slow:
        one.close()
    assert answers_a_good_request(client)
