"""The head dies and comes back; the endpoint on other hosts answers all the time. Minutes, root, and Redis.

KEEP_FIGURES=1 make test-long PYTEST=tests/cluster/test_head_failure.py: the figures of docs/head-failure.md.
"""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.asking import Clients, asking, longest_gap
from tests.cluster.figures import answered, tell
from tests.cluster.hosts import needs_hosts
from tests.cluster.ray_on_hosts import Cluster, cluster, until
from tests.conftest import ROOT
from tests.serving.tiny import save_tiny

pytestmark = [
    pytest.mark.long,
    needs_hosts,
    pytest.mark.skipif(shutil.which("redis-server") is None, reason="there is no redis-server on this machine"),
]

OVER = ROOT / "platform/stetholm/presets/cluster-redis.yaml"
NODES = ("one", "two")
AWAY_S = 30.0


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A head whose books lie in Redis, two hosts beside it, and an endpoint of two replicas on them."""
    with cluster(list(NODES), tmp_path_factory.mktemp("hosts"), [OVER]) as made:
        start_redis(made)
        made.storage.upload_dir(save_tiny(tmp_path_factory.mktemp("tiny")), made.storage.join("tiny"))
        made.start_head()
        for name in NODES:
            made.start_node(made.hosts[name], {"CPU": 2}, "server")
        until(lambda: len(made.nodes()) == 3)
        made.deploy(
            f"serve.model={made.storage.join('tiny')}",
            "serve.min_replicas=2",
            "serve.max_replicas=2",
            "serve.cpus_per_replica=0.5",
        )
        yield made


def start_redis(made: Cluster) -> None:
    """Redis beside the object storage; the head knows it by the preset's name and a password in a file."""
    store, password = made.hosts["store"], secrets.token_hex(16)
    (made.head.folder / ".redis_password").write_text(password)
    file = store.folder / "redis.conf"
    file.write_text(f"bind {store.address}\nport 6379\nrequirepass {password}\ndir {store.folder}\nappendonly yes\n")
    store.start(["redis-server", str(file)], log="redis.log")


def test_the_head_is_killed_and_begun_again(endpoint: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    """All of the head's processes die; half a minute later a head begins that finds its books in Redis."""
    nodes, replicas = workers(endpoint), pids(endpoint)
    assert len(replicas) == 4  # two of the model, two of the ingress
    with asking([f"http://{endpoint.hosts[name].address}:8000" for name in NODES]) as clients:
        until(lambda: len(clients.asked) >= 20)
        assert not clients.failed()
        killed = time.time()
        assert endpoint.head.kill_all() > 3
        time.sleep(AWAY_S)
        begun = time.time()
        endpoint.start_head()
        until(lambda: workers(endpoint) == nodes)
        known = time.time()
        until(lambda: endpoint.endpoint()["status"] == "RUNNING")
        running = time.time()
        time.sleep(10.0)
    with capsys.disabled():
        times = {"away_s": begun - killed, "nodes_known_s": known - begun, "endpoint_known_s": running - begun}
        found = {**{name: round(each, 1) for name, each in times.items()}, **asked(clients, killed)}
        share = answered(found["requests"], found["failed"])
        shown = {"fault": "the head killed and begun again", **found}
        tell("cluster/head", share, 1.0, "share of requests", "every request is answered", shown)
    assert pids(endpoint) == replicas  # nobody had to begin again
    assert len([each for each in clients.asked if each.outcome == "200" and killed < each.ended < begun]) > 10
    assert not clients.failed()


def test_the_new_head_looks_after_the_endpoint(endpoint: Cluster) -> None:
    """A replica that dies is replaced, a change of the settings is rolled out: Serve's controller is at work."""
    before = pids(endpoint)
    for process in endpoint.hosts["one"].processes("ServeReplica:stetholm:StethoLM"):
        process.kill()
    until(lambda: len(pids(endpoint)) == 4 and pids(endpoint) != before)
    until(lambda: endpoint.endpoint()["status"] == "RUNNING")
    model = endpoint.storage.join("tiny")
    endpoint.deploy(
        f"serve.model={model}", "serve.min_replicas=1", "serve.max_replicas=2", "serve.cpus_per_replica=0.5"
    )
    with asking([f"http://{endpoint.hosts[name].address}:8000" for name in NODES]) as clients:
        until(lambda: len(clients.asked) >= 10)
    assert not clients.failed()


def workers(made: Cluster) -> dict[str, str]:
    """Ids of the living nodes beside the head, by address."""
    found = {address: node for address, node in made.nodes().items() if not node["is_head_node"]}
    return {address: node["node_id"] for address, node in found.items() if node["state"] == "ALIVE"}


def pids(made: Cluster) -> set[int]:
    """Of the replicas' processes."""
    return {each.pid for name in NODES for each in made.hosts[name].processes("ServeReplica:stetholm")}


def asked(clients: Clients, since: float) -> dict[str, Any]:
    """What became of the requests that ended after a time."""
    after = clients.since(since)
    return {
        "requests": len(after),
        "failed": len(clients.failed()),
        "slowest_s": round(max(each.ended - each.began for each in after), 2),
        "longest_gap_s": round(longest_gap(after, since, max(each.ended for each in after)), 2),
    }
