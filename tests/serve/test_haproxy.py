"""The endpoint behind HAProxy, as the foreground command puts it up: what it does, and what it leaves open."""

import asyncio
import base64
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import psutil
import pytest

from stetholm.storage import Storage
from tests.serve.test_app import free_port
from tests.serving.sounds import wav

pytestmark = pytest.mark.long
ROOT = Path(__file__).resolve().parents[2]
SOUND = {"type": "input_audio", "input_audio": {"data": base64.b64encode(wav()).decode(), "format": "wav"}}
MESSAGES = [{"role": "user", "content": [SOUND, {"type": "text", "text": "Is this normal?"}]}]
WORDS = "Mrs Miller, born 1942"
LONG = 4000
DIRECT = range(30000, 31000)
"""Ports on which ingress replicas answer HAProxy."""


@dataclass(frozen=True)
class Running:
    """The command's process, its endpoint, and the folder of its Ray's logs."""

    process: psutil.Process
    url: str
    folder: Path

    def logs(self) -> str:
        """All of Ray's and Serve's logs."""
        return "\n".join(path.read_text(errors="replace") for path in self.folder.rglob("logs/**/*") if path.is_file())

    def proxies(self) -> list[psutil.Process]:
        """HAProxy's processes, old ones that still drain among them."""
        return [one for one in self.process.children(recursive=True) if one.name() == "haproxy"]

    def ingresses(self) -> list[psutil.Process]:
        """The ingress replicas."""
        title = "ray::ServeReplica:stetholm:Ingress"
        found = []
        for one in self.process.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if one.cmdline() and one.cmdline()[0].startswith(title):
                    found.append(one)
        return found


@pytest.fixture(scope="module")
def running(storage: Storage, tiny_checkpoint: str) -> Iterator[Running]:
    """One replica, two requests at a time, little patience."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # Ray's sockets lie in it: its path must be short
    chosen = [
        f"serve.model={tiny_checkpoint}",
        f"serve.port={free_port()}",
        "serve.gate=if-there",
        "serve.haproxy=true",
    ]
    chosen += ["serve.max_replicas=1", "serve.target_ongoing_requests=1", "serve.max_queued_requests=1"]
    chosen += [f"serve.max_new_tokens={LONG}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "serve.deploy", *(f"--set={one}" for one in chosen)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "RAY_TMPDIR": str(folder)},
    )
    assert process.stdout is not None
    line = next(line for line in iter(process.stdout.readline, "") if "http://" in line)
    yield Running(psutil.Process(process.pid), re.findall(r"http://\S+", line)[0], folder)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=180)
    assert process.returncode == 0
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def client(running: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{running.url}/v1", api_key="unused", max_retries=0, timeout=120)


def test_it_answers_and_streams(running, client):
    assert running.proxies()
    body = {"model": "stetholm", "messages": MESSAGES, "max_tokens": 20}
    whole = client.chat.completions.create(**body)
    pieces = [chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**body, stream=True)]
    assert "".join(pieces) == whole.choices[0].message.content and len(pieces) > 2
    form = {"files": [("audio", wav())], "data": {"task": "Report"}, "timeout": 120}
    assert httpx.post(f"{running.url}/v1/analyze", **form).json()["evidence"]


def test_errors_and_ids_are_as_without_it(running):
    for given, kept in (("abc-1", True), (WORDS, False)):
        response = httpx.get(f"{running.url}/v1/models/nowhere", headers={"X-Request-ID": given}, timeout=60)
        [id] = response.headers.get_list("x-request-id")
        assert response.status_code == 404 and response.json()["error"]["code"] == "model_not_found"
        assert (id == given) == kept
        line_of(running, id)
    large = httpx.post(f"{running.url}/v1/chat/completions", content=b"x" * (33 * 2**20), timeout=60)
    assert large.status_code == 413 and large.json()["error"]["code"] == "request_too_large"
    httpx.get(f"{running.url}/{WORDS}", timeout=60)
    assert WORDS not in running.logs()


def test_a_crowd_gets_answers_or_503_with_retry_after(running):
    body = {"model": "stetholm", "messages": MESSAGES, "max_tokens": 300}

    async def crowd() -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=300) as client:
            url = f"{running.url}/v1/chat/completions"
            return await asyncio.gather(*(client.post(url, json=body) for _ in range(16)))

    responses = asyncio.run(crowd())
    refused = [response for response in responses if response.status_code != 200]
    assert refused and len(refused) < len(responses)
    assert all(one.status_code == 503 and one.headers["retry-after"].isdigit() for one in refused)
    assert {one.json()["error"]["code"] for one in refused} == {"overloaded"}


def test_a_client_that_leaves_stops_the_generation(running):
    body = {"model": "stetholm", "messages": MESSAGES, "stream": True, "max_tokens": LONG}
    headers, url = {"X-Request-ID": "leaves"}, f"{running.url}/v1/chat/completions"
    with httpx.stream("POST", url, json=body, headers=headers, timeout=120) as response:
        assert next(line for line in response.iter_lines() if line.startswith("data: "))
    left = seconds_of(line_of(running, "leaves"))
    full = httpx.post(url, json={**body, "stream": False}, headers={"X-Request-ID": "stays"}, timeout=300)
    assert full.json()["usage"]["completion_tokens"] > 100
    assert left < seconds_of(line_of(running, "stays"))


def line_of(running: Running, id: str) -> str:
    """The access log's line of a request, once it is written."""
    while True:
        found = [line for line in running.logs().splitlines() if f"access id={id} " in line]
        if found:
            return found[0]
        time.sleep(0.1)


def seconds_of(line: str) -> float:
    """How long that request was here."""
    return float(re.findall(r"seconds=([0-9.]+)", line)[0])


def test_only_this_machine_reaches_what_haproxy_and_the_replicas_listen_on(running):
    proxies = [where for one in running.proxies() for where in listening(one)]
    replicas = [where for one in running.ingresses() for where in listening(one) if where[1] in DIRECT]
    assert len(proxies) >= 3 and len(replicas) == 2
    assert {ip for ip, _ in [*proxies, *replicas]} == {"127.0.0.1"}
    [program] = {Path(one.cmdline()[one.cmdline().index("-f") + 1]).parent for one in running.proxies()}
    assert program.parent.stat().st_mode & 0o077 == 0 and (program / "admin.sock").stat().st_mode & 0o077 == 0


def listening(process: psutil.Process) -> list[tuple[str, int]]:
    """Where, for TCP."""
    found = process.net_connections("tcp")
    return [(each.laddr.ip, each.laddr.port) for each in found if each.status == psutil.CONN_LISTEN]


def test_without_a_replica_it_says_so_in_openais_words(running):
    """All ingress replicas die at once; until others are there, HAProxy itself answers."""
    for one in running.ingresses():
        one.kill()
    seen = set()
    while True:
        response = httpx.get(f"{running.url}/v1/models", timeout=60)
        if response.status_code == 200:
            break
        seen.add((response.status_code, response.json()["error"]["code"], response.headers["retry-after"].isdigit()))
    assert seen <= {(503, "unavailable", True), (503, "overloaded", True)}
    assert json.loads(response.text)["data"]
