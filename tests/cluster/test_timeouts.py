"""How soon a node is given up: one truth for all launchers; and Redis for the head's books, where it is wanted."""

import re

import pytest
import yaml

from stetholm.cluster import read_cluster, render
from stetholm.cluster.timeouts import HEAD_ENVIRONMENT, RECONNECT_S, STOP_WAIT, stop_wait_s
from stetholm.settings import TrainSettings
from tests.conftest import ROOT

PRESETS = ROOT / "platform/stetholm/presets"
REDIS = PRESETS / "cluster-redis.yaml"


def given(line):
    """The variables that a start command sets."""
    return dict(re.findall(r"(RAY_\w+)=(\S+)", line.partition("/ray start")[0]))


def starts(over=()):
    raw = read_cluster(ROOT / "cluster.yaml", over=over, environ={}).raw
    lines = [raw[key][-1] for key in ("head_start_ray_commands", "worker_start_ray_commands")]
    assert all("/ray start" in line for line in lines)
    return [given(line) for line in lines]


@pytest.mark.parametrize("over", [None, "gcp", "on-prem", "redis"])
def test_the_start_commands_say_what_the_renderings_say(over):
    head, worker = starts([PRESETS / f"cluster-{over}.yaml"] if over else [])
    assert head.items() >= HEAD_ENVIRONMENT.items()
    assert not worker.keys() & HEAD_ENVIRONMENT.keys()  # the head alone asks
    assert head[STOP_WAIT] == worker[STOP_WAIT] == str(stop_wait_s(TrainSettings().grace_seconds))


@pytest.mark.parametrize("kind", ["raycluster", "rayjob", "rayservice"])
def test_pods_are_told(rendered, kind):
    spec = yaml.safe_load(rendered(kind))["spec"]
    spec = spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec
    wait = {STOP_WAIT: str(stop_wait_s(TrainSettings().grace_seconds))}
    assert environment(spec["headGroupSpec"]) == HEAD_ENVIRONMENT | wait
    assert all(environment(group) == wait for group in spec["workerGroupSpecs"])


def environment(group):
    (container,) = group["template"]["spec"]["containers"]
    return {each["name"]: each["value"] for each in container["env"]}


def test_the_heads_container_is_told(rendered):
    services = yaml.safe_load(rendered("compose"))["services"]
    assert services["head"]["environment"].items() >= HEAD_ENVIRONMENT.items()
    assert not services["server"]["environment"].keys() & HEAD_ENVIRONMENT.keys()
    assert all(service["environment"][STOP_WAIT] == "70" for service in services.values())


def test_with_redis_nodes_wait_for_the_head():
    head, worker = starts([REDIS])
    assert head["RAY_REDIS_ADDRESS"] == "redis.example.org:6379" and head["RAY_external_storage_namespace"]
    assert head["RAY_gcs_rpc_server_reconnect_timeout_s"] == str(RECONNECT_S)
    assert worker["RAY_gcs_rpc_server_reconnect_timeout_s"] == str(RECONNECT_S)
    assert not any("RAY_REDIS_ADDRESS" in each for each in starts())


def test_kuberay_keeps_the_books_of_clusters_and_endpoints_in_redis():
    described = read_cluster(ROOT / "cluster.yaml", ["serve.allow_anonymous=true"], over=[REDIS], environ={})
    secret = {"secretKeyRef": {"name": "stetholm-redis", "key": "password"}}
    wanted = {"redisAddress": "redis.example.org:6379", "redisPassword": {"valueFrom": secret}}
    specs = {kind: yaml.safe_load(render(described, kind))["spec"] for kind in ("raycluster", "rayservice", "rayjob")}
    assert specs["raycluster"]["gcsFaultToleranceOptions"] == wanted
    assert specs["rayservice"]["rayClusterConfig"]["gcsFaultToleranceOptions"] == wanted
    assert "gcsFaultToleranceOptions" not in specs["rayjob"]["rayClusterSpec"]  # a job ends with its head


def test_without_redis_nothing_is_said_of_it(rendered):
    assert "redis" not in rendered("raycluster").lower()
