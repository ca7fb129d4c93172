"""Several hosts, one of which is cut off: training recovers, the endpoint goes on answering. Minutes, and root.

KEEP_FIGURES=1 make test-long PYTEST=tests/cluster/test_hosts.py: the figures that docs/cluster-hosts.md keeps.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stetholm.corpus.ledger import Ledger
from stetholm.corpus.shards import write_corpus
from stetholm.runs import run_uri
from stetholm.settings import load_settings
from stetholm.training.checkpoints import Checkpoints
from stetholm.training.history import FILE, from_lines
from stetholm.training.lineage import STATE_FOLDER
from tests.cluster.asking import Clients, asking, longest_gap
from tests.cluster.figures import answered, tell
from tests.cluster.hosts import Host, needs_hosts
from tests.cluster.ray_on_hosts import Cluster, cluster, until, words
from tests.conftest import ROOT
from tests.evaluation.corpus import rows
from tests.serving.tiny import save_tiny, save_tiny_llama

pytestmark = [pytest.mark.long, needs_hosts]

RUN, EPOCHS, EVERY, PAUSE_S = "hosts", 12, 5, 6.0
# Two training workers have no room on one host, whatever else is there: each gets a host of its own.
NODE_CPUS, WORKER_CPUS, REPLICA_CPUS = 4, 2.2, 0.25


@pytest.fixture(scope="module")
def ray_hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three hosts beside the head, and an endpoint of two replicas on them."""
    with cluster(["one", "two", "three"], tmp_path_factory.mktemp("hosts")) as made:
        made.storage.upload_dir(save_tiny(tmp_path_factory.mktemp("tiny")), made.storage.join("tiny"))
        made.start_head()
        for name in ("one", "two", "three"):
            made.start_node(made.hosts[name], {"CPU": NODE_CPUS}, "trainer")
        until(lambda: len(alive(made)) == 4)
        bounds = ["serve.min_replicas=2", "serve.max_replicas=2", f"serve.cpus_per_replica={REPLICA_CPUS}"]
        # Hosts are few here: they train and answer.
        made.deploy(f"serve.model={made.storage.join('tiny')}", *bounds, "serve.label_selector={}")
        yield made


def alive(made: Cluster) -> set[str]:
    return {address for address, node in made.nodes().items() if node["state"] == "ALIVE"}


def submit_training(made: Cluster, language_model: Path) -> Checkpoints:
    corpus = made.storage.join("corpus")
    write_corpus(made.storage, corpus, {"train": rows(range(24))}, inputs={}, row_group_rows=4)
    chosen = words(
        made,
        RUN,
        corpus__uri=corpus,
        model__language_model=str(language_model),
        train__workers=2,
        train__cpus_per_worker=WORKER_CPUS,
        train__epochs=EPOCHS,
        train__tokens_per_batch=512,
        train__checkpoint_every=EVERY,
        train__log_every=1,
        train__precision="fp32",
        train__trackers=[],
    )
    made.submit("train", ["python", str(ROOT / "jobs" / "sft.py"), *chosen])
    settings = load_settings(None, [*made.pairs(), f"run.name={RUN}"], {})
    return Checkpoints(made.storage, run_uri(settings, made.storage, "sft"), keep=2)


def where(made: Cluster, word: str) -> list[Host]:
    """The hosts on which processes of that name run."""
    return [host for host in made.hosts.values() if host.processes(word)]


def test_a_host_is_cut_off_in_the_midst_of_training(
    ray_hosts: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Training goes on with workers on the hosts that are left, from its checkpoint; nothing is trained on twice."""
    checkpoints = submit_training(ray_hosts, save_tiny_llama(tmp_path / "llama"))
    until(lambda: checkpoints.latest() or ray_hosts.job_ended("train"), every=1.0)
    assert checkpoints.latest(), ray_hosts.job_logs("train")
    trainers = where(ray_hosts, "RayTrainWorker")
    assert len(trainers) == 2
    # One that answers questions too, if there is one.
    victim = max(trainers, key=lambda host: len(host.processes("ServeReplica")))
    others = [host for name, host in ray_hosts.hosts.items() if name not in ("store", "head", victim.name)]
    replicas = {host.name: len(host.processes("ServeReplica:stetholm:StethoLM")) for host in (victim, *others)}
    with asking([f"http://{host.address}:8000" for host in others]) as clients:
        until(lambda: len(clients.asked) >= 40)
        pause(victim, trainers, checkpoints)
        assert not clients.failed()
        cut = time.time()
        victim.cut_off()
        status = until(lambda: ray_hosts.job_ended("train"), 600, 3.0)
        ended = time.time()
        until(lambda: ray_hosts.endpoint()["status"] == "RUNNING")
    assert status == "SUCCEEDED", ray_hosts.job_logs("train")
    found = figures(ray_hosts, victim, clients, cut, ended)
    with capsys.disabled():
        share = answered(found["requests"], found["failed"])
        shown = {"fault": "a host cut off", "replicas": replicas, "cut": victim.name, **found}
        tell("cluster/hosts", share, 1.0, "share of requests", "every request is answered", shown)
    assert ray_hosts.nodes()[victim.address]["state"] == "DEAD"
    assert trained_once(ray_hosts)
    assert all(each.outcome == "200" for each in clients.since(ended))
    assert not clients.failed()


def pause(victim: Host, trainers: list[Host], checkpoints: Checkpoints) -> None:
    """A link that is down for some seconds costs nothing but them: the same workers go on."""
    before, latest = workers(trainers), checkpoints.latest()
    victim.cut_off()
    time.sleep(PAUSE_S)
    victim.join()
    until(lambda: checkpoints.latest() != latest)
    assert workers(trainers) == before


def workers(trainers: list[Host]) -> set[int]:
    """Process ids of the training workers."""
    return {each.pid for host in trainers for each in host.processes("RayTrainWorker")}


def trained_once(made: Cluster) -> bool:
    """Whether each sample was consumed exactly once an epoch."""
    result = result_of(made)
    state = made.storage.read_json(f"{result['output']}/{STATE_FOLDER}/state.json")
    ledger = Ledger.from_json(state["progress"]["ledger"])
    seen = [len(ledger.seen(epoch)) for epoch in range(EPOCHS)]
    return seen == [len(rows(range(24)))] * EPOCHS and result["samples"] == sum(seen)


def result_of(made: Cluster) -> dict[str, object]:
    (line,) = [line for line in made.job_logs("train").splitlines() if line.startswith("RESULT ")]
    result: dict[str, object] = json.loads(line.removeprefix("RESULT "))
    return result


def figures(made: Cluster, victim: Host, clients: Clients, cut: float, ended: float) -> dict[str, Any]:
    """Seconds from the cut: until Ray gives the host up, until the first step of the new workers; and the requests."""
    records = from_lines(made.storage.read_text(f"{result_of(made)['output']}/{FILE}"))
    noticed = made.nodes()[victim.address]["end_time_ms"] / 1000
    after = clients.since(cut)
    return {
        "noticed_s": round(noticed - cut, 1),
        "next_step_s": round(min(record["time"] for record in records if record["time"] > cut) - cut, 1),
        "requests": len(after),
        "failed": len(clients.failed()),
        "outcomes": sorted({each.outcome for each in after}),
        "slowest_s": round(max(each.ended - each.began for each in after), 1),
        "longest_gap_s": round(longest_gap(clients.asked, cut, ended), 1),
    }
