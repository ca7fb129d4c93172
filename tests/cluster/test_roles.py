"""Work keeps to the nodes that are for it: Ray's own autoscaler decides here, on the node types of cluster.yaml."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import ray
from ray.autoscaler.v2.instance_manager.config import NodeTypeConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.common_pb2 import LabelSelectorOperator

from stetholm.cluster import read_cluster
from stetholm.roles import LABEL, gpu_nodes, nodes_of
from stetholm.settings import ServeSettings, Settings, TrainSettings
from stetholm.training.fit import _cpus
from tests.conftest import ROOT

IN = LabelSelectorOperator.LABEL_OPERATOR_IN
CLUSTER = read_cluster(ROOT / "cluster.yaml", environ={}).cluster


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``cluster(labels…)``: be connected to a Ray whose nodes have these labels, and no CPU."""

    def connect(*labels: dict[str, str], cpus: float | None = None) -> None:
        nodes = [{"Alive": True, "Labels": {"ray.io/node-id": str(n), **own}} for n, own in enumerate(labels)]
        monkeypatch.setattr(ray, "is_initialized", lambda: True)
        monkeypatch.setattr(ray, "nodes", lambda: nodes)
        monkeypatch.setattr(ray, "cluster_resources", lambda: {} if cpus is None else {"CPU": cpus})

    return connect


def launched(resources: dict[str, float], selector: dict[str, str], count: int) -> dict[str, int]:
    """Nodes that the autoscaler starts, by type, for ``count`` tasks, actors or bundles, when nothing runs yet."""
    types = {
        name: NodeTypeConfig(
            name=name,
            min_worker_nodes=kind.min_workers,
            max_worker_nodes=CLUSTER.most(name),
            resources={key: float(value) for key, value in kind.resources.items()},
            labels=kind.labels,
        )
        for name, kind in CLUSTER.workers.items()
    }
    labels = [[(key, IN, [value]) for key, value in selector.items()]]
    one = [ResourceRequestUtil.make(resources, label_selectors=labels)]
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=types,
        max_num_nodes=CLUSTER.max_workers,
        resource_requests=ResourceRequestUtil.group_by_count(one * count),
    )
    reply = ResourceDemandScheduler(None).schedule(request)
    assert not reply.infeasible_resource_requests
    return dict(Counter({launch.instance_type: launch.count for launch in reply.to_launch}))


def test_training_gets_trainers_and_replicas_get_servers(cluster: Any) -> None:
    cluster(CLUSTER.head.labels)
    train, options = TrainSettings(use_gpu=True), ServeSettings(gpus_per_replica=1)
    worker = {"CPU": _cpus(train), "GPU": 1.0}
    assert launched(worker, nodes_of("trainer", train.label_selector), train.workers) == {"trainer": 2}
    replica = {"CPU": options.cpus_per_replica, "GPU": options.gpus_per_replica}
    assert launched(replica, nodes_of("server", options.label_selector), 2) == {"server": 2}
    engine = gpu_nodes(True)
    assert engine is not None and launched({"GPU": 1.0}, engine, 3) == {"trainer": 3}
    # Without a role, the smallest node with a GPU: a server's.
    assert launched(worker, {}, train.workers) == {"server": 2}


def test_only_where_nodes_say_what_they_are_for(cluster: Any) -> None:
    assert nodes_of("trainer") == {}  # no Ray at all
    cluster({}, {"ray.io/accelerator-type": "L4"})
    assert nodes_of("trainer") == {} and gpu_nodes(True) is None
    cluster({LABEL: "head"}, {})
    assert nodes_of("trainer") == {LABEL: "trainer"}
    assert gpu_nodes(False) is None  # a CPU's work goes where there is room


def test_the_settings_win(cluster: Any) -> None:
    cluster(CLUSTER.head.labels)
    assert nodes_of("server", {"pool": "l4"}) == {"pool": "l4"}
    assert nodes_of("server", {}) == {}
    assert Settings().train.label_selector is None and Settings().serve.label_selector is None


@pytest.mark.parametrize(
    ("cpus", "settings", "wanted"),
    [
        (None, {}, 1.0),  # a head without CPUs, and no node yet: a fraction would put all workers onto one node
        (None, {"use_gpu": True}, 1.0),
        (4.0, {"use_gpu": True, "workers": 8}, 1.0),
        (4.0, {"workers": 2}, 1.0),
        (2.0, {"workers": 2}, 0.5),
        (1.0, {"workers": 2}, 0.25),
        (None, {"cpus_per_worker": 3.0}, 3.0),
    ],
)
def test_cpus_of_a_training_worker(cluster: Any, cpus: float | None, settings: dict[str, Any], wanted: float) -> None:
    cluster({}, cpus=cpus)
    assert _cpus(TrainSettings(**settings)) == wanted
