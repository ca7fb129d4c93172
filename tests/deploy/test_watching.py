"""deploy/: what Prometheus and Grafana are given is valid, and asks for numbers that we have."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import promql_parser
import pytest
import yaml

from serve import metrics as serving
from stetholm.training.metrics import Counts, Interval, summary
from tests.conftest import ROOT

DEPLOY = ROOT / "deploy"
RATE_INTERVAL = {"$__rate_interval": "5m", "$run": ".*", "$stage": ".*"}


def rules():
    groups = yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def dashboards():
    return {path.name: json.loads(path.read_text()) for path in sorted((DEPLOY / "grafana").glob("*.json"))}


def expressions():
    """All of dashboards and alerts, with Grafana's variables filled in."""
    found = [rule["expr"] for rule in rules().values()]
    for board in dashboards().values():
        found += [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    for name, value in RATE_INTERVAL.items():
        found = [text.replace(name, value) for text in found]
    return found


def trained():
    """Names that training gives to Ray's metrics, beside those of a stage's own terms."""
    interval = Interval(Counts(1, 1, 1, 1, 1, 1), 1, 0.0, 1.0, 0.0, 1.0, 1.0, 1, 1, {})
    names = {*summary([interval]), "learning_rate", "grad_norm", "eta_s", "step", "val_loss"}
    return {f"ray_stetholm_train_{name}" for name in names}


def served():
    """Names of the endpoint's own metrics, as Prometheus sees them."""
    source = Path(serving.__file__).read_text()
    made = re.findall(r'metrics\.(Counter|Gauge|Histogram)\(\s*"(\w+)"', source)
    suffix = {"Counter": "_total", "Gauge": "", "Histogram": "_bucket"}
    return {f"ray_{name}{suffix[kind]}" for kind, name in made}


def test_each_expression_is_promql():
    assert len(expressions()) > 20
    for text in expressions():
        promql_parser.parse(text)


def test_our_numbers_are_asked_for_by_the_names_they_have():
    asked = {name for text in expressions() for name in re.findall(r"ray_stetholm_\w+", text)}
    assert asked <= trained() | served()
    assert {"ray_stetholm_train_step", "ray_stetholm_http_requests_total"} <= asked


def test_the_four_alerts_are_there_and_say_what_to_do():
    told = (ROOT / "docs" / "operations.md").read_text()
    assert {"TrainingNoProgress", "TrainingDataStarved", "EndpointErrors", "EndpointSlow"} <= set(rules())
    for name, rule in rules().items():
        assert rule["annotations"]["summary"] and rule["labels"]["severity"] in ("critical", "warning")
        assert f"`{name}`" in told


@pytest.mark.parametrize("name", ["training.json", "serving.json"])
def test_a_dashboard_asks_which_prometheus_and_lays_out_its_panels(name):
    board = dashboards()[name]
    assert board["templating"]["list"][0]["type"] == "datasource"
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]]
    assert len(set(places)) == len(places) and len({panel["id"] for panel in board["panels"]}) == len(places)
    assert all(panel["datasource"]["uid"] == "${datasource}" for panel in board["panels"])


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool on this machine (Debian: prometheus)")
def test_promtool_takes_the_configuration_and_the_alerts_do_what_they_say():
    for words in (["check", "config", "prometheus.yml"], ["test", "rules", "alerts_test.yml"]):
        ran = subprocess.run(["promtool", *words], cwd=DEPLOY, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stdout + ran.stderr


def test_the_pod_monitor_finds_our_pods():
    from stetholm.cluster import read_cluster
    from stetholm.cluster.kuberay import ray_cluster

    monitor = yaml.safe_load((DEPLOY / "kubernetes/podmonitor.yaml").read_text())
    manifest = ray_cluster(read_cluster(ROOT / "cluster.yaml", environ={}))
    head = manifest["spec"]["headGroupSpec"]["template"]
    wanted = monitor["spec"]["selector"]["matchLabels"]
    assert wanted.items() <= head["metadata"]["labels"].items()
    (container,) = head["spec"]["containers"]
    assert monitor["spec"]["podMetricsEndpoints"][0]["port"] in {port["name"] for port in container["ports"]}


def test_the_image_is_made_of_this_ray_and_of_what_is_here():
    import ray

    from stetholm.cluster.kuberay import HOME

    text = (DEPLOY / "Dockerfile").read_text()
    assert f"rayproject/ray:{ray.__version__}-" in text and f"WORKDIR {HOME}\n" in text
    copied = [words[2:-1] for line in text.splitlines() if (words := line.split())[:1] == ["COPY"]]
    let_in = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    for name in (name for names in copied for name in names):
        assert (ROOT / name).exists() and f"!{name}" in let_in
