"""A node that Ray takes away under a run: a real second and third node on this machine. Minutes; ``make test-long``."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stetholm.corpus.shards import write_corpus
from stetholm.runs import run_uri
from stetholm.settings import Settings
from stetholm.storage import Storage
from stetholm.training.checkpoints import Checkpoints
from stetholm.training.history import FILE, from_lines
from stetholm.training.stage import train_stage
from tests.evaluation.corpus import rows

pytestmark = pytest.mark.long

PREEMPTION = 2
"""Ray's DrainNodeReason."""


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head for the driver and two nodes that each have room for all workers."""
    import ray
    from ray.cluster_utils import Cluster

    assert not ray.is_initialized(), "run this file by itself: it starts a Ray of its own"
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        for _ in range(2):
            nodes.add_node(num_cpus=3)
        ray.init(address=nodes.address, log_to_driver=False)
        yield nodes
    finally:
        ray.shutdown()
        nodes.shutdown()


def drain_the_workers_node(checkpoints: Checkpoints, drained: list[str]) -> None:
    """Give notice, as a spot machine's agent does, once there is a checkpoint."""
    import ray

    while checkpoints.latest() is None:
        time.sleep(0.1)
    free = ray._private.state.available_resources_per_node()
    busy = min(
        (node for node in ray.nodes() if node["Resources"].get("CPU") == 3), key=lambda node: free_cpus(free, node)
    )
    gcs = ray._private.worker.global_worker.gcs_client
    deadline = int((time.time() + 120) * 1000)
    accepted, reason = gcs.drain_node(busy["NodeID"], PREEMPTION, "the machine is taken away", deadline)
    assert accepted, reason
    drained.append(busy["NodeID"])


def free_cpus(free: dict[str, dict[str, float]], node: dict[str, Any]) -> float:
    return free.get(node["NodeID"], {}).get("CPU", 0.0)


def test_a_drained_node_is_left_with_a_checkpoint(
    cluster: Any, storage: Storage, language_model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    corpus = storage.join("test-drain", "corpus")
    write_corpus(storage, corpus, {"train": rows(range(48))}, inputs={}, row_group_rows=4)
    train = {"batch_size": 2, "epochs": 2, "log_every": 1, "checkpoint_every": 10, "max_failures": 0}
    settings = Settings.model_validate(
        {
            "run": {"name": "drained"},
            "corpus": {"uri": corpus},
            "model": {"language_model": str(language_model)},
            "train": {**train, "workers": 2, "cpus_per_worker": 1.5, "trackers": ()},
        }
    )
    drained: list[str] = []
    checkpoints = Checkpoints(storage, run_uri(settings, storage, "sft"), keep=2)
    threading.Thread(target=drain_the_workers_node, args=(checkpoints, drained), daemon=True).start()
    result = train_stage(settings, storage, "sft")
    assert drained
    told = capfd.readouterr().err
    assert f"sft: Ray is about to take away node {drained[0][:8]}: going on from step " in told
    assert result["samples"] == 2 * len(rows(range(48)))
    history = from_lines(storage.read_text(f"{result['output']}/{FILE}"))
    assert [record["step"] for record in history] == list(range(1, result["steps"] + 1))
