"""Trains on a Ray of three nodes, of which one is taken away: ``python -m tests.training.drained <language model>``.

A process of its own, as the one that runs the tests may be connected to another Ray. Prints one JSON object.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from stetholm.corpus.shards import write_corpus
from stetholm.runs import run_uri
from stetholm.settings import Settings, StorageSettings
from stetholm.storage import open_storage
from stetholm.training.checkpoints import Checkpoints
from stetholm.training.history import FILE, from_lines
from stetholm.training.stage import train_stage
from tests.evaluation.corpus import rows

PREEMPTION = 2
"""Ray's DrainNodeReason."""
RECORDINGS = range(48)


@contextmanager
def cluster() -> Iterator[None]:
    """A head for the driver and two nodes that each have room for all workers."""
    import ray
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        for _ in range(2):
            nodes.add_node(num_cpus=3)
        ray.init(address=nodes.address, log_to_driver=False)
        yield
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


def main(language_model: str) -> None:
    storage = open_storage(StorageSettings())
    corpus = storage.join("test-drain", "corpus")
    write_corpus(storage, corpus, {"train": rows(RECORDINGS)}, inputs={}, row_group_rows=4)
    train = {"batch_size": 2, "epochs": 2, "log_every": 1, "checkpoint_every": 10, "max_failures": 0}
    settings = Settings.model_validate(
        {
            "run": {"name": "drained"},
            "corpus": {"uri": corpus},
            "model": {"language_model": language_model},
            "train": {**train, "workers": 2, "cpus_per_worker": 1.5, "trackers": ()},
        }
    )
    drained: list[str] = []
    checkpoints = Checkpoints(storage, run_uri(settings, storage, "sft"), keep=2)
    with cluster():
        threading.Thread(target=drain_the_workers_node, args=(checkpoints, drained), daemon=True).start()
        result = train_stage(settings, storage, "sft")
    logged = [record["step"] for record in from_lines(storage.read_text(f"{result['output']}/{FILE}"))]
    print(json.dumps({"drained": drained, "result": result, "logged": logged}))


if __name__ == "__main__":
    main(sys.argv[1])
