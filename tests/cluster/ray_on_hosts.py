"""A Ray cluster on hosts of one's own, begun with the lines of ``cluster.yaml`` that begin it on machines."""

from __future__ import annotations

import json
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from stetholm.cluster import read_cluster, render
from stetholm.cluster.file import Described
from stetholm.settings import StorageSettings
from stetholm.storage import Storage, open_storage
from stetholm.storage.embedded import answers, rclone_binary
from tests.cluster.hosts import Host, hosts
from tests.conftest import ROOT

AUTOSCALING = "--autoscaling-config=~/ray_bootstrap_config.yaml"
"""What ``ray up`` has put onto a head's machine; here nobody could start a machine."""
DASHBOARD = "http://127.0.0.1:8265"
REDIS = "redis.example.org"
"""Redis's name in presets/cluster-redis.yaml."""
OBJECT_STORE_BYTES = 256 * 2**20
ASK = """
import sys, urllib.request
from pathlib import Path
token = (Path.home() / ".ray" / "auth_token").read_text()
request = urllib.request.Request(sys.argv[1], headers={"Authorization": f"Bearer {token}"})
print(urllib.request.urlopen(request, timeout=20).read().decode())
"""


@dataclass(frozen=True)
class Cluster:
    """Hosts with an object storage that all of them, and this process, reach; Ray runs where it was started."""

    hosts: Mapping[str, Host]
    storage: Storage
    settings: StorageSettings
    described: Described

    @property
    def head(self) -> Host:
        """Where the head runs, or ran."""
        return self.hosts["head"]

    def start_head(self) -> None:
        """Start Ray's head."""
        kind = self.described.cluster.head
        self._start(self.head, "head_start_ray_commands", kind.resources, kind.labels)

    def start_node(self, host: Host, resources: Mapping[str, int], role: str) -> None:
        """Start a node of the type ``role`` of cluster.yaml, with other resources than there."""
        labels = self.described.cluster.workers[role].labels
        self._start(host, "worker_start_ray_commands", resources, labels)

    def _start(self, host: Host, commands: str, resources: Mapping[str, int], labels: Mapping[str, str]) -> None:
        (line,) = [line for line in self.described.raw[commands] if "ray start" in line]
        given = {
            "RAY_HEAD_IP": self.head.address,
            "RAY_OVERRIDE_RESOURCES": json.dumps({**resources, "object_store_memory": OBJECT_STORE_BYTES}),
            "RAY_OVERRIDE_LABELS": json.dumps(labels),
        }  # as Ray's launcher gives them to these lines
        host.run(["bash", "-c", line.replace(AUTOSCALING, "")], environ=given)

    def ask(self, path: str) -> Any:
        """What the head's dashboard answers, which listens to the head's own machine alone."""
        return json.loads(self.head.run(["python", "-c", ASK, f"{DASHBOARD}{path}"]))

    def nodes(self) -> dict[str, dict[str, Any]]:
        """Ray's nodes by address; of several that had one address, the latest."""
        found = self.ask("/api/v0/nodes?detail=1&limit=1000")["data"]["result"]["result"]
        return {node["node_ip"]: node for node in sorted(found, key=lambda each: each["start_time_ms"])}

    def submit(self, name: str, command: Sequence[str]) -> None:
        """``ray job submit`` on the head."""
        address = ["--address", DASHBOARD, "--submission-id", name]
        self.head.run(["ray", "job", "submit", *address, "--no-wait", "--", *command])

    def job_ended(self, name: str) -> str | None:
        """The status of a submitted job that has ended; None while it runs."""
        status = str(self.ask(f"/api/jobs/{name}")["status"])
        return status if status in ("SUCCEEDED", "FAILED", "STOPPED") else None

    def job_logs(self, name: str) -> str:
        """What a submitted job printed."""
        return str(self.ask(f"/api/jobs/{name}/logs")["logs"])

    def deploy(self, *settings: str) -> None:
        """``serve deploy`` on the head, of what ``stetholm.cluster render`` makes; wait until it runs."""
        ours = [*self.pairs(), "serve.host=0.0.0.0", "serve.allow_anonymous=true", "serve.gate=if-there", *settings]
        described = read_cluster(ROOT / "cluster.yaml", ours, environ={})
        file = self.head.folder / "endpoint.yaml"
        file.write_text(render(described, "serve"))
        self.head.run(["serve", "deploy", str(file), "--address", DASHBOARD])
        until(lambda: self.endpoint()["status"] == "RUNNING")

    def endpoint(self) -> dict[str, Any]:
        """What the dashboard says of the application."""
        found: dict[str, Any] = self.ask("/api/serve/applications/")["applications"]["stetholm"]
        return found

    def pairs(self) -> list[str]:
        """``key=value`` of the storage's settings, less its keys, which are in the hosts' environment."""
        return [f"storage.uri={self.settings.uri}", f"storage.endpoint_url={self.settings.endpoint_url}"]


@contextmanager
def cluster(names: list[str], folder: Path, over: Sequence[Path] = ()) -> Iterator[Cluster]:
    """Hosts ``store``, ``head`` and those of ``names``; the object storage runs, Ray does not yet.

    ``over``: files of differences to cluster.yaml.
    """
    with hosts(["store", "head", *names], folder, {REDIS: "store"}) as found:
        settings = _storage(found["store"])
        token = secrets.token_hex(32)
        for host in found.values():
            _settle(host, token, settings)
        yield Cluster(
            found, open_storage(settings), settings, read_cluster(ROOT / "cluster.yaml", over=over, environ={})
        )


def _storage(host: Host) -> StorageSettings:
    """An S3 server on a host, with a bucket."""
    (host.folder / "s3" / "stetholm").mkdir(parents=True)
    keys = secrets.token_hex(10), secrets.token_hex(20)
    url = f"http://{host.address}:9000"
    environ = {"RCLONE_AUTH_KEY": f'"{keys[0]},{keys[1]}"', "RCLONE_CONFIG": ""}
    words = [rclone_binary(), "serve", "s3", "--addr", url.removeprefix("http://"), str(host.folder / "s3")]
    host.start(words, log="s3.log", environ=environ)
    until(lambda: answers(url))
    return StorageSettings(uri="s3://stetholm", endpoint_url=url, access_key=keys[0], secret_key=SecretStr(keys[1]))


def _settle(host: Host, token: str, storage: StorageSettings) -> None:
    """What ``ray up`` brings to a machine, and the keys that its role would give it."""
    (host.folder / ".ray").mkdir()
    (host.folder / ".ray" / "auth_token").write_text(token)
    (host.folder / "stetholm-platform").symlink_to(ROOT)
    (host.folder / ".venv").symlink_to(ROOT / ".venv")
    host.environ |= {
        "AWS_ACCESS_KEY_ID": str(storage.access_key),
        "AWS_SECRET_ACCESS_KEY": storage.secret_key.get_secret_value() if storage.secret_key else "",
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def until(found: Callable[[], Any], seconds: float = 300, every: float = 0.25) -> Any:
    """The first true value of ``found``; an answer that cannot be had yet is none."""
    deadline = time.monotonic() + seconds
    trouble: Exception | None = None
    while True:
        try:
            if value := found():
                return value
        except (AssertionError, KeyError, OSError, subprocess.TimeoutExpired) as error:
            trouble = error
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {trouble}"
        time.sleep(every)


def words(cluster: Cluster, name: str, **values: Any) -> list[str]:
    """``--set`` words for a job of the run ``name``; ``train__workers=2`` sets train.workers."""
    given = [
        f"{key.replace('__', '.')}={value if isinstance(value, str) else json.dumps(value)}"
        for key, value in values.items()
    ]
    return [word for pair in (*cluster.pairs(), f"run.name={name}", *given) for word in ("--set", pair)]
