"""Grafana and Prometheus on the head: Ray's dashboard looks for them where deploy/ puts them."""

from __future__ import annotations

import configparser
import re

import pytest
import yaml

from stetholm.cluster import read_cluster
from tests.conftest import ROOT

GRAFANA = ROOT / "deploy" / "grafana"
PRESETS = ROOT / "platform/stetholm/presets"
HOME = "stetholm-platform/"
"""Where `ray up` puts the project, below a node's home."""


def settings() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(GRAFANA / "grafana.ini")
    return parser


def provisioned(name: str) -> dict[str, object]:
    folder = ROOT / settings()["paths"]["provisioning"].removeprefix("$__env{HOME}/" + HOME)
    found: dict[str, object] = yaml.safe_load((folder / name).read_text())
    return found


@pytest.mark.parametrize("over", [None, "gcp", "on-prem", "redis"])
def test_rays_dashboard_looks_where_they_listen(over: str | None) -> None:
    raw = read_cluster(ROOT / "cluster.yaml", over=[PRESETS / f"cluster-{over}.yaml"] if over else [], environ={}).raw
    given = dict(re.findall(r"(RAY_\w+)=(\S+)", raw["head_start_ray_commands"][-1]))
    server = settings()["server"]
    assert given["RAY_GRAFANA_HOST"] == f"http://{server['http_addr']}:{server['http_port']}"
    (source,) = provisioned("datasources/prometheus.yml")["datasources"]  # type: ignore[misc,attr-defined]
    assert given["RAY_PROMETHEUS_HOST"] == source["url"]


def test_grafana_may_be_framed_and_is_reached_from_the_head_alone() -> None:
    found = settings()
    assert found["security"].getboolean("allow_embedding") and found["auth.anonymous"].getboolean("enabled")
    assert found["server"]["http_addr"] == "127.0.0.1" and found["auth.anonymous"]["org_role"] == "Viewer"


def test_rays_own_names_are_meant() -> None:
    from ray.dashboard.modules.metrics import metrics_head

    (source,) = provisioned("datasources/prometheus.yml")["datasources"]  # type: ignore[misc,attr-defined]
    assert source["name"] == metrics_head.DEFAULT_PROMETHEUS_NAME
    ours, rays = provisioned("dashboards/stetholm.yml")["providers"]  # type: ignore[misc,attr-defined]
    assert list((ROOT / ours["options"]["path"].removeprefix(f"$HOME/{HOME}")).glob("*.json"))
    assert rays["options"]["path"].endswith("metrics/grafana/dashboards")


def test_the_docs_name_the_targets_that_prometheus_reads() -> None:
    (job,) = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text())["scrape_configs"]
    (targets,) = job["file_sd_configs"][0]["files"]
    assert targets in (ROOT / "docs" / "operations.md").read_text()
