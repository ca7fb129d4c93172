"""Nodes come with load and leave when they are idle. The recording: minutes, a Ray of seven nodes on this machine.

make test-long PYTEST="tests/cluster/test_autoscaling.py -s" prints the timeline that docs/cluster-autoscaling.md keeps.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from ray.autoscaler._private.util import validate_config
from rich.console import Console

from stetholm.cluster import read_cluster
from stetholm.cluster.serve_config import serve_config
from stetholm.cluster.status import look, show
from stetholm.corpus.shards import write_corpus
from stetholm.demo.head import Head, free_ports
from stetholm.settings import load_settings
from stetholm.storage import Storage
from tests.cluster.asking import asking
from tests.cluster.autoscaled import FASTER, HEAD_TYPE, LOGICAL, Timeline, autoscaled_head, autoscaling_config, timeline
from tests.cluster.figures import tell
from tests.cluster.ray_on_hosts import until
from tests.conftest import ROOT
from tests.evaluation.corpus import rows
from tests.serving.tiny import save_tiny, save_tiny_llama

CLUSTER = read_cluster(ROOT / "cluster.yaml", environ={}).cluster
DELAYS = ("serve.upscale_delay_s=2", "serve.downscale_delay_s=10")
"""Serve's own: 30 s before a replica more, 600 s before one less."""
WAITS_S = 3.0
WAITS_ARE = "the waits alone before a node is asked for, 2 s of Serve's and 1 s of the autoscaler's (less is better)"
CLIENTS = 12


def test_the_autoscaler_reads_the_files_node_types() -> None:
    config = autoscaling_config(CLUSTER, "127.0.0.1:6379")
    validate_config(config)
    types = config["available_node_types"]
    assert types.keys() == {HEAD_TYPE, *CLUSTER.workers} and LOGICAL.keys() == CLUSTER.workers.keys()
    for name, kind in CLUSTER.workers.items():
        assert (types[name]["min_workers"], types[name]["max_workers"]) == (kind.min_workers, CLUSTER.most(name))
        assert types[name]["labels"] == kind.labels
        assert types[name].get("idle_timeout_s") == (kind.idle_timeout_s and kind.idle_timeout_s / FASTER)


@pytest.fixture
def head(tmp_path: Path, storage: Storage) -> Iterator[Head]:
    storage.upload_dir(save_tiny(tmp_path / "tiny"), storage.join("autoscaling", "tiny"))
    with autoscaled_head(CLUSTER, tmp_path) as head:
        yield head


def deploy(head: Head, storage: Storage, port: int) -> None:
    """The endpoint as ``serve deploy`` would; one proxy, as all nodes share this machine's port."""
    model = storage.join("autoscaling", "tiny")
    chosen = [f"serve.model={model}", f"serve.port={port}", "serve.gpus_per_replica=1", "serve.cpus_per_replica=0.5"]
    chosen += ["serve.target_ongoing_requests=2", "serve.gate=if-there"]
    settings = load_settings(None, [*chosen, *DELAYS], {})
    config = serve_config(settings) | {"proxy_location": "HeadOnly"}
    answer = httpx.put(f"{head.dashboard}/api/serve/applications/", json=config, headers=token(head), timeout=60)
    answer.raise_for_status()
    until(lambda: status(head) == "RUNNING")


def token(head: Head) -> dict[str, str]:
    return {"Authorization": f"Bearer {head.token_file.read_text()}"}


def status(head: Head) -> str:
    found = httpx.get(f"{head.dashboard}/api/serve/applications/", headers=token(head), timeout=60).json()
    return str(found["applications"]["stetholm"]["status"])


def train(head: Head, storage: Storage, language_model: Path) -> str:
    """Submit a training of two workers, each of which fills a trainer node; the job's id."""
    corpus = storage.join("autoscaling", "corpus")
    write_corpus(storage, corpus, {"train": rows(range(24))}, inputs={}, row_group_rows=4)
    values = {
        "run.name": "autoscaling",
        "corpus.uri": corpus,
        "model.language_model": str(language_model),
        "train.workers": 2,
        "train.cpus_per_worker": 3,
        "train.epochs": 4,
        "train.tokens_per_batch": 512,
        "train.precision": "fp32",
        "train.trackers": "[]",
    }
    words = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
    return head.client().submit_job(entrypoint=shlex.join([sys.executable, str(ROOT / "jobs/sft.py"), *words]))


def tables(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    """``make status``, as it looks now."""
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(head.token_file))
    show([sheet for sheet in look(head.dashboard) if sheet.title.startswith("Ray nodes")], Console(width=100))


@pytest.mark.long
def test_nodes_come_with_load_and_leave_when_idle(
    head: Head, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (port,) = free_ports(1)
    with timeline(head) as line:
        until(lambda: line.now["head"] == 1)
        line.say("the endpoint is deployed: at least one replica, at most two, a GPU each")
        deploy(head, storage, port)
        line.say("the endpoint answers")
        at_rest = line.now.copy()
        found = load(head, line, f"http://127.0.0.1:{port}", monkeypatch)
        language_model = save_tiny_llama(tmp_path / "llama")
        found |= training(head, line, lambda: train(head, storage, language_model), monkeypatch)
    tell("cluster/autoscaling", found["server_added_s"], WAITS_S, "s", WAITS_ARE, found)
    most = {name: CLUSTER.most(name) for name in CLUSTER.workers}
    assert all(count <= most.get(role, 1) for role, count in highest(line).items())
    assert highest(line)["server"] == 2 and highest(line)["trainer"] == 2
    assert line.now == at_rest and at_rest["server"] == 1 and not at_rest["trainer"]  # the endpoint's replica stays


def load(head: Head, line: Timeline, url: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Load on the endpoint, until a second server has come, and the end of it, until that has left."""
    began = line.say(f"load begins: {CLIENTS} clients")
    with asking([url], clients=CLIENTS, pause_s=0.0) as clients:
        until(lambda: line.now["server"] == 2, every=0.5)
        tables(head, monkeypatch)
        until(lambda: len(clients.asked) > 200)
    ended = line.say(f"load ends: {len(clients.asked)} answers, {len(clients.failed())} failed")
    assert not clients.failed()
    until(lambda: line.now["server"] == 1, every=0.5)
    return {
        "server_added_s": line.seconds("server", began, more=True),
        "server_removed_s": line.seconds("server", ended, more=False),
    }


def training(head: Head, line: Timeline, submit: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A training job: trainers come for its workers and leave after it."""
    at_rest = line.now.copy()
    began = line.say("a training job is submitted: two workers, each as big as a trainer node")
    job = submit()
    until(lambda: line.now["trainer"] == 2 or head.client().get_job_status(job).is_terminal(), every=0.5)
    tables(head, monkeypatch)
    until(lambda: head.client().get_job_status(job).is_terminal(), every=1.0)
    ended = line.say(f"the job has ended: {head.client().get_job_status(job).value}")
    assert head.client().get_job_status(job).value == "SUCCEEDED", head.client().get_job_logs(job)
    until(lambda: line.now == at_rest, every=0.5)
    return {
        "trainers_added_s": line.seconds("trainer", began, more=True, last=True),
        "trainers_removed_s": line.seconds("trainer", ended, more=False, last=True),
    }


def highest(line: Timeline) -> dict[str, int]:
    """The most nodes that there were of each type at a time."""
    now: dict[str, int] = {}
    most: dict[str, int] = {}
    for _, role, more in line.changes:
        now[role] = now.get(role, 0) + more
        most[role] = max(most.get(role, 0), now[role])
    return most
